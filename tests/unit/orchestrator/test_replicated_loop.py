"""Replicated services in a cluster of fake agents: REP 59-75, REA 117-125."""

import asyncio

import pytest
from msgspec.structs import replace

from common.model.node import Availability, Node, NodeState
from common.model.service import ReplicatedService, Service, ServiceMode
from common.model.task import SECOND, RestartPolicy, Task, TaskState
from tests.support import build
from tests.support.fake_agents import running, until
from tests.unit.orchestrator.conftest import World


def replicas(count: int) -> ServiceMode:
    return ServiceMode(replicated=ReplicatedService(replicas=count))


async def test_create_fills_slots(world: World) -> None:
    """REP 59, 60."""
    web = await world.create(replicas=5)
    await world.all_running(web, 5)
    assert sorted(task.slot for task in world.tasks()) == [1, 2, 3, 4, 5]
    task = world.tasks()[0]
    assert task.name == f"web.{task.slot}.{task.id}"
    await world.update(web, mode=replicas(7))
    await world.all_running(web, 7)
    assert world.services.get(web.id).update_status is None
    await world.update(web, mode=replicas(2))
    await until(world.store, lambda view: len(view.find(Task)) == 2, "the surplus is deleted")


async def test_a_deleted_task_is_replaced(world: World) -> None:
    """REP 61."""
    web = await world.create(replicas=2)
    view = await world.all_running(web, 2)
    gone = view.find(Task)[0].id
    await world.store.update(lambda tx: tx.delete(Task, gone))
    await world.all_running(web, 2)


async def test_remove_deletes_tasks_then_the_service(world: World) -> None:
    """REP 62, REA 118, 119: only once the agent says that they have stopped."""
    web = await world.create(replicas=3)
    await world.all_running(web, 3)
    began = world.now
    await world.services.remove("web")
    assert not world.services.list({})
    again = await world.create(replicas=1)  # the name is free at once
    await until(world.store, lambda view: view.get(Service, web.id) is None, "web is gone")
    assert world.now - began >= 0.4
    await world.all_running(again, 1)


@pytest.mark.parametrize("availability", [None, Availability.DRAIN])
async def test_tasks_leave_a_node(world: World, availability: Availability | None) -> None:
    """REP 66, 71, 74: from a drained node once stopped, from one that is down at once."""
    web = await world.create(replicas=6)
    await world.all_running(web, 6)
    began = world.now
    if availability is None:
        await world.node("n1", state=NodeState.DOWN)
    else:
        await world.node("n1", availability=availability)
    await world.all_running(web, 6)
    took = world.now - began
    assert not [task for task in running(world.tasks()) if task.node_id == "n1"]
    assert took < 0.3 if availability is None else 0.4 < took < 1.0


async def test_paused_and_unknown_nodes_keep_their_tasks(world: World) -> None:
    """REP 67."""
    web = await world.create(replicas=6)
    before = {task.id for task in (await world.all_running(web, 6)).find(Task)}
    await world.node("n1", availability=Availability.PAUSE)
    await world.node("n2", state=NodeState.UNKNOWN)
    await asyncio.sleep(30)
    assert {task.id for task in running(world.tasks())} == before


async def test_a_node_comes_back_with_tasks_that_were_replaced(world: World) -> None:
    web = await world.create(replicas=3)
    await world.all_running(web, 3)
    await world.node("n1", state=NodeState.DOWN)
    await world.all_running(web, 3)
    old = [task for task in world.tasks() if task.node_id == "n1"]
    assert [task.desired_state for task in old] == [TaskState.SHUTDOWN]
    await world.node("n1", state=NodeState.READY)
    await until(
        world.store,
        lambda view: view.get(Task, old[0].id).status.state is TaskState.SHUTDOWN,  # type: ignore[union-attr]
        "the old task stops",
    )
    await world.all_running(web, 3)


async def end(world: World, task: Task, state: TaskState) -> None:
    await world.put(replace(task, status=replace(task.status, state=state)))


async def test_restart_after_the_delay(world: World) -> None:
    """REP 70; 65: the rest of the delay is kept by a new leader."""
    web = await world.create(restart=RestartPolicy(delay=5 * SECOND))
    view = await world.all_running(web, 1)
    began = world.now
    await end(world, view.find(Task)[0], TaskState.FAILED)
    await asyncio.sleep(2)
    waiting = [task for task in world.tasks() if task.desired_state is TaskState.READY]
    assert [task.status.state for task in waiting] == [TaskState.READY]
    await world.leader.kill()
    world.leader.start()
    await world.all_running(web, 1)
    assert 5 <= world.now - began < 5.5


async def test_what_is_refused_in_preparation_waits_for_the_delay_too(world: World) -> None:
    """REP 70: a task is prepared during its delay; one refused then is not followed at once."""
    world.agents.fails["bad"] = TaskState.REJECTED
    world.agents.fails_in_preparation = True
    web = await world.create(image="bad", restart=RestartPolicy(delay=5 * SECOND))
    seen: set[str] = set()
    for _ in range(210):
        await asyncio.sleep(0.1)
        seen |= {task.id for task in world.tasks(web.id)}
    assert 5 <= len(seen) <= 6  # at 0 the first, and then one for each delay
    await world.update(web, image="good")
    await world.all_running(web, 1)


@pytest.mark.parametrize(
    ("condition", "ended", "again"),
    [
        pytest.param("any", TaskState.COMPLETE, True, id="any restarts what is done"),
        pytest.param("on-failure", TaskState.COMPLETE, False, id="on-failure does not"),
        pytest.param("on-failure", TaskState.FAILED, True, id="on-failure restarts failures"),
        pytest.param("none", TaskState.FAILED, False, id="none never restarts"),
    ],
)
async def test_restart_conditions(
    world: World, condition: str, ended: TaskState, again: bool
) -> None:
    """REP 68, 69: what stays dead is started by a spec that changes something, and only by it."""
    web = await world.create(restart=RestartPolicy(condition=condition, delay=SECOND))
    view = await world.all_running(web, 1)
    await end(world, view.find(Task)[0], ended)
    await asyncio.sleep(60)
    assert len(running(world.tasks())) == again
    await world.update(web, labels={"a": "b"})
    await asyncio.sleep(60)
    assert len(running(world.tasks())) == again
    await world.update(web, image="web:2")
    await world.all_running(web, 1, "web:2")


async def test_max_attempts_survive_leaders(world: World) -> None:
    """REP 72, 75."""
    world.agents.fails["bad"] = TaskState.FAILED
    policy = RestartPolicy(delay=SECOND, max_attempts=3)
    web = await world.create(image="bad", restart=policy)
    for _ in range(10):
        await asyncio.sleep(1)
        await world.leader.kill()
        world.leader.start()
    await asyncio.sleep(60)
    assert len(world.tasks()) == 4
    assert not [task for task in world.tasks() if task.desired_state <= TaskState.RUNNING]
    await world.update(web, image="good")
    await world.all_running(web, 1)


async def test_old_attempts_age_out_of_the_window(world: World) -> None:
    """REP 73."""
    policy = RestartPolicy(delay=SECOND, max_attempts=2, window=10 * SECOND)
    web = await world.create(restart=policy)
    for _ in range(5):
        await world.all_running(web, 1)
        await asyncio.sleep(20)
        await end(world, running(world.tasks())[0], TaskState.FAILED)
    await world.all_running(web, 1)


async def test_history_is_kept_to_its_limit(world: World) -> None:
    """REA 117, 122."""
    world.agents.fails["bad"] = TaskState.FAILED
    await world.create(image="bad", restart=RestartPolicy(delay=SECOND))
    await asyncio.sleep(100)
    assert len(world.tasks()) == 5


async def test_a_leader_repairs_what_it_finds(world: World) -> None:
    """REP 64, REA 120, GLO 101."""
    await world.leader.kill()
    web = build.service("web", replicas=3)
    gone = build.service("gone", id="gone")
    await world.put(
        web,
        build.task(web, slot=1, id="t1", node="n1", state=TaskState.FAILED),
        build.task(web, slot=2, id="t2", node="n9", state=TaskState.RUNNING),
        build.task(web, slot=3, id="t3", node="n3", state=TaskState.REJECTED),
        build.task(gone, slot=1, id="t4", node="n1", state=TaskState.RUNNING),
        build.task(gone, slot=2, id="t5", node="n1", state=TaskState.FAILED),
        replace(build.service("half"), pending_delete=True),
    )
    world.leader.start()
    await world.all_running(web, 3)
    await until(
        world.store,
        lambda view: not view.find(Task, service_id="gone") and len(view.find(Service)) == 1,
        "the rest is cleaned",
    )


async def test_a_removed_node_gives_up_its_tasks(world: World) -> None:
    """REP 66, REA 118."""
    web = await world.create(replicas=3)
    await world.all_running(web, 3)
    await world.store.update(lambda tx: tx.delete(Node, "n1"))
    await world.all_running(web, 3)
    await world.services.remove("web")
    await until(world.store, lambda view: not view.find(Task), "all tasks are deleted")


async def test_a_lost_label_evicts(world: World) -> None:
    """REA 123, 125: by the service's constraints."""
    for id in ("n1", "n2"):
        await world.node(id, labels={"disk": "ssd"})
    web = await world.create(replicas=2, constraints=["node.labels.disk == ssd"])
    await world.all_running(web, 2)
    await world.node("n1", labels={})
    await until(
        world.store,
        lambda view: [task.node_id for task in running(view.find(Task))] == ["n2", "n2"],
        "both run on n2",
    )


async def test_less_memory_evicts_just_enough(world: World) -> None:
    """REA 124: the newest go."""
    web = await world.create(replicas=6, memory=build.GIB)
    await world.all_running(web, 6)
    old = world.store.view().get(Node, "n1")
    assert old is not None
    small = replace(old.description.resources, memory_bytes=build.GIB)
    await world.agents.store.update(
        lambda tx: tx.put(replace(old, description=replace(old.description, resources=small)))
    )
    await asyncio.sleep(0.1)
    stopping = [task for task in world.tasks() if task.desired_state is TaskState.SHUTDOWN]
    assert [task.node_id for task in stopping] == ["n1"]
