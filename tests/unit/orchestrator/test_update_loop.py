"""Rolling updates in a cluster of fake agents: UPD 76-92."""

import asyncio

import pytest
from msgspec.structs import replace

from common.model.cluster import ClusterSpec, TaskDefaults
from common.model.node import NodeState
from common.model.service import ReplicatedService, Service, ServiceMode, UpdateConfig
from common.model.task import (
    SECOND,
    LogDriver,
    Placement,
    PortConfig,
    RestartPolicy,
    Task,
    TaskState,
)
from manager.store.store import View
from tests.support import build
from tests.support.fake_agents import running, until
from tests.unit.orchestrator.conftest import World

FAST = UpdateConfig(parallelism=1, monitor=SECOND // 2)


class Watch:
    """Notes how few tasks of a service ran at once, and how many."""

    def __init__(self, world: World, service: Service) -> None:
        self._world, self._id = world, service.id
        self.least = self.most = len(running(world.tasks(service.id)))

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        with self._world.store.watch() as watcher:
            while True:
                count = len(running(self._world.tasks(self._id)))
                self.least, self.most = min(self.least, count), max(self.most, count)
                await watcher.wait(None)
                watcher.take()


async def started(world: World, count: int, config: UpdateConfig, **more: object) -> Service:
    service = await world.create(replicas=count, update=config, **more)
    await world.all_running(service, count)
    return service


async def test_five_at_a_time_stop_first_is_fast(world: World) -> None:
    """UPD 76: 20 replicas, 5 at a time, 0.4 s to stop, in little more than 4 x 0.5 s."""
    web = await started(world, 20, UpdateConfig(parallelism=5, monitor=0))
    began = world.now
    async with Watch(world, web) as watch:
        await world.update(web, image="web:2")
        done = await world.state(web, "completed")
    assert world.now - began < 3.0
    assert watch.least == 15
    assert world.images(web) == ["web:2"] * 20
    assert done.update_status is not None
    assert done.update_status.message == "update completed"
    assert done.update_status.completed_at is not None


async def test_all_at_once_and_start_first(world: World) -> None:
    """UPD 84: with start-first nothing ever stops running."""
    web = await started(world, 4, UpdateConfig(parallelism=0, order="start-first", monitor=0))
    async with Watch(world, web) as watch:
        await world.update(web, image="web:2")
        await world.state(web, "completed")
    assert watch.least == 4
    await world.all_running(web, 4, "web:2")


async def test_delay_between_slots(world: World) -> None:
    web = await started(world, 3, UpdateConfig(parallelism=1, delay=10 * SECOND, monitor=0))
    began = world.now
    await world.update(web, image="web:2")
    await world.all_running(web, 3, "web:2")
    assert 20 < world.now - began < 23


async def test_monitor_delays_only_the_completion(world: World) -> None:
    """UPD 90."""
    web = await started(world, 3, UpdateConfig(parallelism=1, monitor=60 * SECOND))
    began = world.now
    await world.update(web, image="web:2")
    await world.all_running(web, 3, "web:2")
    assert world.now - began < 3
    await world.state(web, "completed")
    assert 60 < world.now - began < 63


async def test_force_update_replaces_all(world: World) -> None:
    web = await started(world, 2, FAST)
    before = {task.id for task in running(world.tasks())}
    await world.update(web, task={"force_update": 1})
    await world.state(web, "completed")
    assert not before & {task.id for task in running(world.tasks())}


async def test_pause_on_the_first_failure(world: World) -> None:
    """UPD 80, 81: no other slot is touched, and nothing goes on by itself."""
    world.agents.fails["bad"] = TaskState.REJECTED
    web = await started(world, 4, FAST)
    await world.update(web, image="bad")
    paused = await world.state(web, "paused")
    assert paused.update_status is not None
    assert paused.update_status.message.startswith(
        "update paused due to failure or early termination of task "
    )
    await asyncio.sleep(120)
    assert world.images(web) == ["web:1"] * 3
    await world.update(web, image="web:3")
    await world.state(web, "completed")
    assert world.images(web) == ["web:3"] * 4


async def test_an_update_that_changes_nothing_resumes_a_paused_one(world: World) -> None:
    world.agents.fails["bad"] = TaskState.FAILED
    web = await started(world, 2, FAST, restart=RestartPolicy(delay=SECOND))
    await world.update(web, image="bad")
    await world.state(web, "paused")
    del world.agents.fails["bad"]
    await world.update(web)
    await world.state(web, "completed")
    assert world.images(web) == ["bad"] * 2


async def test_continue_in_spite_of_failures(world: World) -> None:
    """UPD 82."""
    world.agents.fails["bad"] = TaskState.FAILED
    config = replace(FAST, failure_action="continue")
    web = await started(world, 4, config, restart=RestartPolicy(condition="none"))
    await world.update(web, image="bad")
    await world.state(web, "completed")
    assert world.images(web) == []


async def test_start_first_keeps_the_old_task_if_the_new_one_fails(world: World) -> None:
    """UPD 85."""
    world.agents.fails["bad"] = TaskState.FAILED
    for action in ("pause", "continue"):
        config = replace(FAST, failure_action=action, order="start-first")
        web = await world.create(f"web-{action}", replicas=3, update=config)
        await world.all_running(web, 3)
        async with Watch(world, web) as watch:
            await world.update(web, image="bad")
            await asyncio.sleep(100)
        assert watch.least == 3
        assert world.images(web) == ["web:1"] * 3


async def test_roll_back_a_failing_image(world: World) -> None:
    """UPD 86."""
    world.agents.fails["bad"] = TaskState.FAILED
    config = replace(FAST, failure_action="rollback", parallelism=2)
    web = await started(world, 6, config)
    async with Watch(world, web) as watch:
        await world.update(web, image="bad")
        done = await world.state(web, "rollback_completed")
    assert world.images(web) == ["web:1"] * 6
    assert watch.least == 4
    assert done.previous_spec is None
    causes = [revision.cause for revision, _ in world.services.history(web.id)]
    assert causes == ["rollback of a failed update", "update", "create"]
    ids = {task.id for task in running(world.tasks())}
    await asyncio.sleep(100)
    assert ids == {task.id for task in running(world.tasks())}


async def test_a_rollback_that_fails_is_paused(world: World) -> None:
    """UPD 87."""
    world.agents.fails["bad"] = TaskState.FAILED
    web = await started(world, 3, replace(FAST, failure_action="rollback"))
    world.agents.fails["web:1"] = TaskState.FAILED
    await world.update(web, image="bad")
    paused = await world.state(web, "rollback_paused")
    assert paused.update_status is not None
    assert paused.update_status.message.startswith("rollback paused due to failure")
    await asyncio.sleep(100)
    assert world.images(web) == ["web:1"] * 2


async def test_some_failures_are_tolerated(world: World) -> None:
    """UPD 88: 2 of 5 fail under a ratio of 0.4; a third one would be over it."""
    world.agents.fails["bad"] = TaskState.FAILED
    config = replace(FAST, failure_action="rollback", max_failure_ratio=0.4)
    web = await started(world, 5, config, restart=RestartPolicy(delay=30 * SECOND))
    await world.update(web, image="bad")

    def two_failed(view: View) -> bool:
        return sum(task.status.state is TaskState.FAILED for task in view.find(Task)) == 2

    await until(world.store, two_failed, "two fail")
    del world.agents.fails["bad"]
    await world.state(web, "completed")
    await world.all_running(web, 5, "bad")


async def test_late_failure_is_no_matter_of_the_update(world: World) -> None:
    """A task that ran longer than the monitoring time and then ends does not fail the update."""
    web = await started(world, 3, UpdateConfig(parallelism=1, delay=5 * SECOND, monitor=SECOND))
    await world.update(web, image="web:2")
    await asyncio.sleep(10)
    first = min(running(world.tasks(), "web:2"), key=lambda task: task.created_at)
    ended = replace(first.status, state=TaskState.FAILED)
    assert world.now > 8
    await world.put(replace(first, status=ended))
    await world.state(web, "completed")


async def test_a_second_update_supersedes_the_first(world: World) -> None:
    """UPD 89."""
    web = await started(world, 10, replace(FAST, parallelism=2))
    async with Watch(world, web) as watch:
        await world.update(web, image="web:2")
        await until(world.store, lambda view: "web:2" in world.images(web), "the first begins")
        await world.update(web, image="web:3")
        await world.state(web, "completed")
    assert world.images(web) == ["web:3"] * 10
    assert watch.least >= 8


async def test_back_again_in_mid_update(world: World) -> None:
    """UPD 89: tasks of the spec that is wanted again are kept."""
    web = await started(world, 6, FAST)
    ids = {task.slot: task.id for task in running(world.tasks())}
    await world.update(web, image="web:2")
    await until(world.store, lambda view: world.images(web).count("web:2") == 2, "two are new")
    await world.services.update(
        web.id, world.services.get(web.id).version.index, web.spec, "previous"
    )
    await world.state(web, "rollback_completed")
    assert world.images(web) == ["web:1"] * 6
    same = [task for task in running(world.tasks()) if ids[task.slot] == task.id]
    assert len(same) >= 3
    service = world.services.get(web.id)
    assert service.previous_spec is not None


async def test_leaders_change_in_mid_update(world: World) -> None:
    """UPD 91: each new leader goes on, within the parallelism."""
    web = await started(world, 10, replace(FAST, parallelism=2))
    async with Watch(world, web) as watch:
        await world.update(web, image="web:2")
        for _ in range(10):
            await asyncio.sleep(0.2)
            await world.leader.kill()
            world.leader.start()
        await world.state(web, "completed")
    assert watch.least == 8
    assert world.images(web) == ["web:2"] * 10


async def test_a_task_without_a_place_ends_the_update(world: World) -> None:
    """UPD 92: by a deadline, with the reason."""
    web = await started(world, 3, FAST)
    world.agents.full = True
    await world.update(web, image="web:2")
    began = world.now
    paused = await world.state(web, "paused")
    assert 600 <= world.now - began < 605
    assert paused.update_status is not None
    assert "did not run within 10 minutes" in paused.update_status.message
    assert world.images(web) == ["web:1"] * 2


async def test_an_old_task_that_does_not_stop(world: World) -> None:
    """UPD 83: waited for, but not for ever."""
    web = await started(world, 2, FAST)
    world.agents.stops_s = None
    began = world.now
    await world.update(web, image="web:2")
    await world.all_running(web, 2, "web:2")
    assert 120 <= world.now - began < 125


async def test_placement_alone_leaves_what_fits(world: World) -> None:
    """UPD 79."""
    await world.node("n1", labels={"disk": "ssd"})
    await world.node("n2", labels={"disk": "ssd"})
    web = await started(world, 3, FAST)
    kept = {task.id for task in running(world.tasks()) if task.node_id != "n3"}
    wanted = Placement(constraints=("node.labels.disk == ssd",))
    await world.update(web, task={"placement": wanted})
    await world.state(web, "completed")
    now = running(world.tasks())
    assert kept < {task.id for task in now}
    assert {task.node_id for task in now} == {"n1", "n2"}


async def test_ports_of_the_mesh_restart_nothing(world: World) -> None:
    """Only host-mode ports are part of a container."""
    web = await started(world, 2, FAST)
    ids = {task.id for task in running(world.tasks())}
    mesh = build.service(ports=[PortConfig(target_port=80, published_port=8080)]).spec
    await world.update(web, endpoint_spec=mesh.endpoint_spec)
    await asyncio.sleep(10)
    assert ids == {task.id for task in running(world.tasks())}
    host = build.service(ports=[PortConfig(target_port=80, publish_mode="host")]).spec
    await world.update(web, endpoint_spec=host.endpoint_spec)
    await world.state(web, "completed")
    assert not ids & {task.id for task in running(world.tasks())}


async def test_the_clusters_log_driver(world: World) -> None:
    """UPD 77: used where the service gives none; a change of it restarts nothing."""
    web = await started(world, 1, FAST)
    driver = LogDriver(name="json-file", options={"max-size": "1m"})
    spec = ClusterSpec(name="default", task_defaults=TaskDefaults(log_driver=driver))
    await world.put(build.cluster(spec=spec))
    await world.update(web, mode=ServiceMode(replicated=ReplicatedService(replicas=2)))
    await world.all_running(web, 2)
    assert {task.slot: task.spec.log_driver for task in running(world.tasks())} == {
        1: None,
        2: driver,
    }


@pytest.mark.parametrize("seed", range(5))
async def test_nodes_go_and_come_in_mid_update(world: World, seed: int) -> None:
    """Whatever happens to nodes, it ends with each slot filled once by the new image."""
    web = await started(world, 9, replace(FAST, parallelism=3, failure_action="continue"))
    await world.update(web, image="web:2")
    for number in range(6):
        await asyncio.sleep(0.1 + 0.17 * seed)
        state = NodeState.DOWN if number % 2 == 0 else NodeState.READY
        await world.node(f"n{1 + (number // 2 + seed) % 3}", state=state)
        if number == 3:
            await world.leader.kill()
            world.leader.start()
    await world.state(web, "completed")
    await world.all_running(web, 9, "web:2")
    slots = sorted(task.slot for task in running(world.tasks()))
    assert slots == list(range(1, 10))
