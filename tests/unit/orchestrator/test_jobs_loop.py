"""Jobs in a cluster of fake agents: JOB 104-116."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from common.model.node import Availability, NodeState
from common.model.service import GlobalJob, ReplicatedJob, Service, ServiceMode
from common.model.task import RestartPolicy, Task, TaskState
from manager.orchestrator.jobs import iteration
from manager.orchestrator.scene import has_completed
from manager.store.store import View
from tests.support import build
from tests.support.fake_agents import until
from tests.unit.orchestrator.conftest import World

GLOBAL = ServiceMode(global_job=GlobalJob())


def mode(at_once: int, total: int) -> ServiceMode:
    return ServiceMode(
        replicated_job=ReplicatedJob(max_concurrent=at_once, total_completions=total)
    )


async def create(world: World, wanted: ServiceMode, **template: Any) -> Service:
    spec = build.service("work", **template).spec
    return await world.services.create(replace(spec, mode=wanted))


async def done(world: World, job: Service, count: int) -> list[Task]:
    """The tasks of the job's present run, once `count` completed and no other is left to do."""

    def of_this_run(view: View) -> list[Task]:
        now = view.get(Service, job.id)
        assert now is not None
        tasks = view.find(Task, service_id=job.id)
        return [task for task in tasks if task.job_iteration == iteration(now)]

    def over(view: View) -> bool:
        tasks = of_this_run(view)
        return sum(map(has_completed, tasks)) == count and not unfinished(tasks)

    return of_this_run(await until(world.store, over, f"{count} completions"))


def unfinished(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if task.status.state <= TaskState.RUNNING]


async def test_as_many_at_once_as_allowed_until_all_are_done(world: World) -> None:
    """JOB 104-107: unique slots, desired COMPLETE, never more than needed."""
    job = await create(world, mode(3, 7))
    most = 0
    with world.store.watch() as watcher:
        while sum(map(has_completed, world.tasks())) < 7:
            most = max(most, len(unfinished(world.tasks())))
            await watcher.next()
    assert most == 3
    tasks = await done(world, job, 7)
    assert sorted(task.slot for task in tasks) == [1, 2, 3, 4, 5, 6, 7]
    assert {task.desired_state for task in tasks} == {TaskState.COMPLETE}
    status = world.services.statuses()[job.id]
    assert (status.running_tasks, status.desired_tasks, status.completed_tasks) == (0, 3, 7)
    await asyncio.sleep(60)
    assert len(world.tasks()) == 7


async def test_a_failed_task_is_tried_again_in_its_slot(world: World) -> None:
    """JOB 108: by the restart policy alone, after its delay; the slot is not given away."""
    world.agents.fails["bad:1"] = TaskState.FAILED
    job = await create(
        world, mode(1, 2), image="bad:1", restart=RestartPolicy(delay=10**9, max_attempts=5)
    )
    await until(world.store, lambda view: len(view.find(Task)) == 3, "two more attempts")
    assert {task.slot for task in world.tasks(job.id)} == {1}
    del world.agents.fails["bad:1"]
    assert {task.slot for task in await done(world, job, 2) if has_completed(task)} == {1, 2}


@pytest.mark.parametrize(("condition", "attempts"), [("none", 0), ("on-failure", 2)])
async def test_a_slot_that_failed_for_good_stays_so(
    world: World, condition: str, attempts: int
) -> None:
    """JOB 114: the other slots are done all the same."""
    world.agents.fails["bad:1"] = TaskState.FAILED
    policy = RestartPolicy(condition=condition, delay=10**9, max_attempts=attempts)
    job = await create(world, mode(1, 3), image="bad:1", restart=policy)
    count = 3 * (1 + attempts)
    await until(world.store, lambda view: len(view.find(Task)) == count, "all slots tried")
    await asyncio.sleep(60)
    assert len(world.tasks(job.id)) == count
    assert {task.status.state for task in world.tasks()} == {TaskState.FAILED}


async def test_a_change_runs_it_again(world: World) -> None:
    """JOB 110: the earlier run's tasks go, also those that run; its completions don't count."""
    job = await create(world, mode(2, 3))
    await until(world.store, lambda view: any(map(has_completed, view.find(Task))), "one is done")
    again = await world.update(job, image="web:2")
    assert again.job_status is not None
    assert again.job_status.job_iteration.index == 1
    tasks = await done(world, job, 3)
    await until(world.store, lambda view: len(view.find(Task)) == 3, "the earlier run is gone")
    assert {task.job_iteration for task in world.tasks()} == {again.job_status.job_iteration}
    assert len(tasks) >= 3


async def test_the_same_spec_does_not_run_it_again(world: World) -> None:
    job = await create(world, mode(1, 1))
    before = await done(world, job, 1)
    same = await world.update(job)
    assert same.job_status == job.job_status
    await asyncio.sleep(5)
    assert world.tasks() == before


async def test_fewer_wanted_than_run(world: World) -> None:
    """JOB 109: nothing is made, and nothing wraps."""
    job = await create(world, mode(5, 5))
    await until(world.store, lambda view: len(view.find(Task)) == 5, "all started")
    await world.update(job, mode=mode(0, 0))
    await until(world.store, lambda view: not view.find(Task), "the earlier run is gone")


async def test_tasks_of_a_lost_node_run_elsewhere_but_not_what_was_done(world: World) -> None:
    """JOB 107: the slot of a lost task is filled again, that of a completed one is not."""
    job = await create(world, mode(3, 3))
    await done(world, job, 3)
    await world.node("n1", state=NodeState.DOWN)
    await world.node("n2", availability=Availability.DRAIN)
    await asyncio.sleep(10)
    assert len(world.tasks()) == 3
    await world.update(job, image="web:2")
    tasks = await done(world, job, 3)
    assert {task.node_id for task in tasks if has_completed(task)} == {"n3"}


async def test_a_run_survives_the_leader(world: World) -> None:
    job = await create(world, mode(2, 6))
    await until(world.store, lambda view: any(map(has_completed, view.find(Task))), "one is done")
    await world.leader.kill()
    world.leader.start()
    assert len(await done(world, job, 6)) == 6


async def test_once_on_each_eligible_node(world: World) -> None:
    """JOB 111, 112: also on nodes that come later; a drained one stops."""
    await world.node("n1", availability=Availability.DRAIN)
    await world.node("n2", labels={"gpu": "no"})
    job = await create(world, GLOBAL, constraints=["node.labels.gpu!=no"])
    assert {task.node_id for task in await done(world, job, 1)} == {"n3"}
    await world.put(build.node("n4"))
    await done(world, job, 2)
    await world.node("n1", availability=Availability.ACTIVE)
    await until(
        world.store,
        lambda view: any(task.status.state is TaskState.RUNNING for task in view.find(Task)),
        "n1 has one",
    )
    await world.node("n1", availability=Availability.DRAIN)
    tasks = await done(world, job, 2)
    assert {task.node_id for task in tasks if has_completed(task)} == {"n3", "n4"}
    await asyncio.sleep(30)
    assert len(world.tasks()) == 3


async def test_a_removed_job_takes_its_tasks_with_it(world: World) -> None:
    """JOB 115."""
    job = await create(world, mode(2, 4))
    await until(world.store, lambda view: any(map(has_completed, view.find(Task))), "one is done")
    await world.services.remove("work")
    await until(world.store, lambda view: view.get(Service, job.id) is None, "gone")
    assert not world.tasks()


async def test_jobs_and_services_do_not_disturb_each_other(world: World) -> None:
    """JOB 113."""
    web = await world.create(replicas=2)
    job = await create(world, mode(1, 2))
    await create_global(world)
    await done(world, job, 2)
    await world.all_running(web, 2)
    await asyncio.sleep(30)
    await world.all_running(web, 2)
    assert len(world.tasks(web.id)) == 2


async def create_global(world: World) -> Service:
    spec = build.service("everywhere").spec
    return await world.services.create(replace(spec, mode=GLOBAL))
