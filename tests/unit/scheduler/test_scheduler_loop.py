"""The scheduler over a store: where tasks go, why they wait, and what lets them go on."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from common.model.base import Object, Version
from common.model.mounts import DriverConfig, Mount, VolumeOptions
from common.model.node import Availability, Node, NodeDescription, NodeState, NodeStatus
from common.model.service import Service
from common.model.task import (
    ContainerSpec,
    LogDriver,
    Platform,
    ResourceRequirements,
    Resources,
    Task,
    TaskState,
)
from manager.scheduler.nodeset import NodeInfo
from manager.scheduler.scheduler import Scheduler
from manager.store.store import Tx
from tests.support import build
from tests.support.loops import Loops
from tests.support.memory_proposer import memory_store

GIB = build.GIB


class World:
    def __init__(self) -> None:
        self.store = memory_store()
        self.loops = Loops(self.store, Scheduler())

    def new_leader(self) -> None:
        self.loops = Loops(self.store, Scheduler())

    async def put(self, *objects: Object) -> None:
        await self.store.update(lambda tx: [tx.put(object) for object in objects])
        await self.loops.settle()

    async def delete(self, *objects: Object) -> None:
        def write(tx: Tx) -> None:
            for object in objects:
                tx.delete(type(object), object.id)

        await self.store.update(write)
        await self.loops.settle()

    async def run(self, service: Service, slots: Iterable[int] = (1,), **more: Any) -> None:
        """Put tasks as the allocator leaves them."""
        more.setdefault("state", TaskState.PENDING)
        await self.put(*(build.task(service, slot=slot, **more) for slot in slots))

    async def end(self, id: str, state: TaskState = TaskState.FAILED) -> None:
        task = self.task(id)
        await self.put(replace(task, status=replace(task.status, state=state)))

    def task(self, id: str) -> Task:
        found = self.store.view().get(Task, id)
        assert found is not None
        return found

    def where(self, service: Service, slot: int = 1) -> str:
        return self.task(f"task-{service.spec.name}-{slot}").node_id

    def why(self, service: Service, slot: int = 1) -> str:
        return self.task(f"task-{service.spec.name}-{slot}").status.err

    def spread(self, service: Service) -> dict[str, int]:
        """Live tasks of the service by node."""
        tasks = self.store.view().find(Task, service_id=service.id)
        return dict(
            Counter(
                task.node_id
                for task in tasks
                if task.node_id and task.status.state <= TaskState.RUNNING
            )
        )


@pytest.fixture
def world() -> World:
    return World()


def nodes(count: int, **more: Any) -> list[Node]:
    return [build.node(f"n{number}", **more) for number in range(1, count + 1)]


async def test_six_replicas_over_three_nodes_are_two_each(world: World) -> None:
    """SCH 1, 3."""
    web = build.service("web", replicas=6)
    await world.put(*nodes(3))
    await world.run(web, range(1, 7))
    assert world.spread(web) == {"n1": 2, "n2": 2, "n3": 2}
    task = world.task("task-web-1")
    assert task.status.state is TaskState.ASSIGNED
    assert task.status.message == "scheduler assigned task to node"


async def test_a_second_service_spreads_although_totals_differ(world: World) -> None:
    """SCH 3: tasks of the service come before tasks in all; 2: then fewest tasks in all."""
    web, other = build.service("web"), build.service("other")
    await world.put(*nodes(2))
    await world.run(web, (1, 2, 3))
    await world.put(build.node("n3"))
    await world.run(other, (1,))
    assert world.where(other) == "n3"
    await world.run(other, (2, 3))
    assert world.spread(other) == {"n1": 1, "n2": 1, "n3": 1}
    await world.run(build.service("third"), (1,))
    assert world.where(build.service("third")) == "n3"


async def test_an_update_of_a_node_keeps_the_count_of_its_tasks(world: World) -> None:
    """SCH 4."""
    web = build.service("web")
    await world.put(*nodes(2))
    await world.run(web, (1, 2))
    for node in world.store.view().find(Node):
        await world.put(replace(node, spec=replace(node.spec, labels={"x": "y"})))
    await world.put(build.node("n3"))
    await world.run(web, (3,))
    assert world.where(web, 3) == "n3"


async def test_a_deleted_task_frees_its_place(world: World) -> None:
    """SCH 5."""
    web = build.service("web")
    await world.put(*nodes(3))
    await world.run(web, (1, 2, 3))
    freed = world.where(web, 2)
    await world.delete(world.task("task-web-2"))
    await world.run(web, (4,))
    assert world.where(web, 4) == freed


async def test_a_deleted_node_is_never_chosen(world: World) -> None:
    """SCH 6."""
    web = build.service("web")
    await world.put(*nodes(2))
    await world.delete(build.node("n1"))
    await world.run(web, (1, 2, 3))
    assert world.spread(web) == {"n2": 3}


@pytest.mark.parametrize(
    "obstacle",
    [
        {"state": NodeState.DOWN},
        {"state": NodeState.UNKNOWN},
        {"availability": Availability.PAUSE},
        {"availability": Availability.DRAIN},
    ],
)
async def test_waiting_tasks_use_a_node_as_soon_as_it_is_ready(
    world: World, obstacle: dict[str, Any]
) -> None:
    """SCH 7, 8, 11."""
    web = build.service("web")
    await world.put(build.node("n1", **obstacle))
    await world.run(web)
    assert world.where(web) == ""
    assert world.why(web) == "no suitable node (1 node not available for new tasks)"
    await world.put(build.node("n1"))
    assert world.where(web) == "n1"
    assert world.why(web) == ""


async def test_a_node_that_went_down_at_once_is_not_used(world: World) -> None:
    """SCH 9."""
    web = build.service("web")
    await world.store.update(lambda tx: tx.put(build.node("n1")))
    await world.store.update(lambda tx: tx.put(build.node("n1", state=NodeState.DOWN)))
    await world.run(web)
    assert world.where(web) == ""


async def test_without_any_node_the_reason_says_so(world: World) -> None:
    web = build.service("web")
    await world.run(web)
    assert world.why(web) == "no suitable node"


async def test_a_task_whose_assignment_is_cleared_is_placed_again(world: World) -> None:
    """SCH 10."""
    web = build.service("web")
    await world.put(*nodes(1))
    await world.run(web)
    task = world.task("task-web-1")
    cleared = replace(task, node_id="", status=replace(task.status, state=TaskState.PENDING))
    await world.put(cleared)
    assert world.where(web) == "n1"


async def test_spread_over_a_label_balances_values_not_nodes(world: World) -> None:
    """SCH 12, 13: nodes without the label are one group."""
    web = build.service("web", preferences=["node.labels.zone"])
    await world.put(
        *(build.node(f"a{i}", labels={"zone": "a"}) for i in range(3)),
        build.node("b0", labels={"zone": "b"}),
        build.node("x0"),
        build.node("x1"),
    )
    await world.run(web, range(1, 10))
    placed = world.spread(web)
    zones = Counter({"a": 0, "b": 0, "x": 0})
    for node, tasks in placed.items():
        zones[node[0]] += tasks
    assert zones == {"a": 3, "b": 3, "x": 3}
    assert placed["a0"] == placed["a1"] == placed["a2"] == 1


async def test_a_full_group_leaves_the_rest_to_the_others(world: World) -> None:
    """SCH 14, and 24."""
    web = build.service("web", preferences=["node.labels.zone"], memory=GIB)
    await world.put(
        build.node("a", labels={"zone": "a"}, memory=2 * GIB),
        build.node("b", labels={"zone": "b"}, memory=8 * GIB),
    )
    await world.run(web, range(1, 12))
    assert world.spread(web) == {"a": 2, "b": 8}
    reasons = {task.status.err for task in world.store.view().find(Task) if not task.node_id}
    assert reasons == {"no suitable node (insufficient resources on 2 nodes)"}


async def test_nested_preferences_balance_level_by_level(world: World) -> None:
    """SCH 15, 17."""
    web = build.service("web", preferences=["node.labels.zone", "engine.labels.rack"])
    racks = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "1"), ("b", "2"), ("b", "3")]
    await world.put(
        *(
            build.node(f"{zone}{rack}-{i}", labels={"zone": zone}, engine_labels={"rack": rack})
            for i, (zone, rack) in enumerate(racks)
        )
    )
    for first, last in ((1, 5), (5, 13)):
        await world.run(web, range(first, last))
    by_rack: Counter[str] = Counter()
    for node, tasks in world.spread(web).items():
        by_rack[node[:2]] += tasks
    assert by_rack == {"a1": 3, "a2": 3, "b1": 2, "b2": 2, "b3": 2}


async def test_faulty_nodes_come_last_for_that_version_only(world: World) -> None:
    """SCH 18, 20, 21."""
    web, other = build.service("web"), build.service("other")
    await world.put(*nodes(2))
    await world.run(build.service("ballast"), range(1, 6), node="n2", state=TaskState.RUNNING)
    for slot in range(1, 6):
        await world.run(web, (slot,))
        assert world.where(web, slot) == "n1"
        await world.end(f"task-web-{slot}")
    await world.run(web, (6, 7))
    assert world.spread(web) == {"n2": 2}
    await world.run(other, (1,))
    assert world.where(other) == "n1"
    again = replace(web, spec_version=Version(index=99))
    await world.run(again, (8,))
    assert world.where(web, 8) == "n1"


async def test_a_node_where_a_process_has_the_port_comes_last_at_once(world: World) -> None:
    web = build.service("web")
    await world.put(*nodes(2))
    await world.run(build.service("ballast"), range(1, 6), node="n2", state=TaskState.RUNNING)
    await world.run(web, (1,))
    task = world.task("task-web-1")
    assert task.node_id == "n1"
    err = "failed to bind host port 0.0.0.0:80/tcp: address already in use by a process"
    rejected = replace(task.status, state=TaskState.REJECTED, err=err)
    await world.put(replace(task, status=rejected))
    await world.run(web, (2,))
    assert world.where(web, 2) == "n2"


async def test_failures_of_node_bound_tasks_do_not_count(world: World) -> None:
    """SCH 19."""
    web = build.service("web")
    await world.put(*nodes(2))
    await world.run(build.service("ballast"), range(1, 3), node="n2", state=TaskState.RUNNING)
    for number in range(6):
        task = build.task(web, slot=0, id=f"g{number}", node="n1", state=TaskState.RUNNING)
        await world.put(task)
        await world.end(task.id)
    await world.run(web)
    assert world.where(web) == "n1"


async def test_reservations_wait_for_a_big_node(world: World) -> None:
    """SCH 22."""
    web = build.service("web", memory=16 * GIB)
    await world.put(*nodes(3))
    await world.run(web)
    assert world.why(web) == "no suitable node (insufficient resources on 3 nodes)"
    await world.put(build.node("big", memory=32 * GIB))
    assert world.where(web) == "big"


async def test_generic_resources_are_counted(world: World) -> None:
    """SCH 23."""

    def resources(*generic: dict[str, object]) -> Resources:
        return Resources(generic_resources=generic)

    ssd: dict[str, object] = {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 2}}
    gpus: list[dict[str, object]] = [
        {"NamedResourceSpec": {"Kind": "gpu", "Value": name}} for name in ("one", "two")
    ]
    node = build.node("n1")
    await world.put(
        replace(node, description=replace(node.description, resources=resources(ssd, *gpus)))
    )
    want: dict[str, object] = {"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}
    spec = replace(build.task_spec(), resources=ResourceRequirements(reservations=resources(want)))
    web = build.service("web", task=spec)
    await world.run(web, (1, 2, 3))
    assert world.spread(web) == {"n1": 2}


@pytest.mark.parametrize("leader_change", [False, True])
async def test_dead_tasks_hold_nothing(world: World, leader_change: bool) -> None:
    """SCH 25, 26."""
    web = build.service("web", memory=8 * GIB)
    await world.put(*nodes(1))
    await world.run(web, (1, 2))
    assert world.spread(web) == {"n1": 1}
    winner = 1 if world.where(web, 1) else 2
    await world.put(replace(world.task(f"task-web-{winner}"), desired_state=TaskState.SHUTDOWN))
    assert world.where(web, 3 - winner) == "", "it has not ended yet"
    if leader_change:
        world.new_leader()
    await world.end(f"task-web-{winner}", TaskState.SHUTDOWN)
    assert world.where(web, 3 - winner) == "n1"


@pytest.mark.parametrize(
    ("wanted", "os", "arch", "fits"),
    [
        pytest.param(Platform(os="linux"), "linux", "x86_64", True, id="system only"),
        pytest.param(
            Platform(os="linux", architecture="amd64"), "linux", "x86_64", True, id="alias"
        ),
        pytest.param(
            Platform(os="linux", architecture="aarch64"), "linux", "arm64", True, id="arm"
        ),
        pytest.param(
            Platform(os="linux", architecture="arm64"), "linux", "x86_64", False, id="other"
        ),
        pytest.param(Platform(architecture="amd64"), "", "", False, id="unknown node"),
        pytest.param(Platform(), "linux", "x86_64", True, id="any"),
        pytest.param(None, "", "", True, id="no wish"),
    ],
)
async def test_platforms(
    world: World, wanted: Platform | None, os: str, arch: str, fits: bool
) -> None:
    """SCH 27."""
    web = build.service("web", platforms=[wanted] if wanted is not None else [])
    await world.put(build.node("n1", os=os, arch=arch))
    await world.run(web)
    assert bool(world.where(web)) == fits
    if not fits:
        assert world.why(web) == "no suitable node (unsupported platform on 1 node)"


async def test_a_removed_services_waiting_tasks_are_forgotten(world: World) -> None:
    """SCH 28: those that wait for a place go with their service, and take none later."""
    web, other = build.service("web"), build.service("other")
    await world.put(web, other)
    await world.run(web, range(1, 4))
    await world.run(other)
    (scheduler,) = world.loops.loops
    assert isinstance(scheduler, Scheduler)
    assert scheduler.waiting == 4
    tasks = world.store.view().find(Task, service_id=web.id)
    await world.delete(web, *tasks)
    assert scheduler.waiting == 1
    await world.put(build.node("n1"))
    assert scheduler.waiting == 0
    assert world.where(other) == "n1"
    assert world.spread(web) == {}


async def test_bound_tasks_are_checked_first_and_block_nobody(world: World) -> None:
    """SCH 29, 30."""
    web = build.service("web", memory=5 * GIB)
    bound = build.service("bound", memory=5 * GIB, global_=True)
    huge = build.service("huge", memory=99 * GIB, global_=True)
    await world.put(
        build.task(web, state=TaskState.PENDING),
        build.task(huge, slot=0, node="n1", state=TaskState.PENDING),
        build.task(bound, slot=0, node="n1", state=TaskState.PENDING),
    )
    await world.put(build.node("n1"))
    assert world.task("task-bound-0").status.state is TaskState.ASSIGNED
    assert world.why(huge, 0) == "no suitable node (insufficient resources on 1 node)"
    assert world.where(web) == ""
    await world.delete(world.task("task-bound-0"))
    assert world.where(web) == "n1"


async def test_tasks_that_should_not_run_are_not_placed_but_closed(world: World) -> None:
    """SCH 31, 32."""
    web = build.service("web", memory=99 * GIB)
    await world.put(*nodes(1))
    await world.run(web, (1,), desired=TaskState.REMOVE)
    assert world.task("task-web-1").status.state is TaskState.PENDING
    await world.run(web, (2,))
    await world.put(replace(world.task("task-web-2"), desired_state=TaskState.SHUTDOWN))
    assert world.task("task-web-2").status.state is TaskState.SHUTDOWN
    assert world.task("task-web-2").status.err == ""


def with_volume(driver: str) -> ContainerSpec:
    options = VolumeOptions(driver_config=DriverConfig(name=driver))
    return ContainerSpec(
        image="web",
        mounts=(
            Mount(type="volume", source="data", target="/data", volume_options=options),
            Mount(type="bind", source="/etc", target="/host"),
        ),
    )


@pytest.mark.parametrize(
    ("driver", "plugins", "fits"),
    [
        ("nfs", [("Volume", "nfs:latest")], True),
        ("nfs:latest", [("Volume", "nfs")], True),
        ("nfs", [("Volume", "other")], False),
        ("nfs", [], False),
        ("local", [], True),
        ("", [], True),
    ],
)
async def test_volume_plugins(
    world: World, driver: str, plugins: list[tuple[str, str]], fits: bool
) -> None:
    """SCH 33, 34."""
    web = build.service("web", container_spec=with_volume(driver))
    await world.put(build.node("n1", plugins=plugins))
    await world.run(web)
    assert bool(world.where(web)) == fits
    if not fits:
        assert world.why(web) == "no suitable node (missing plugin on 1 node)"


@pytest.mark.parametrize(
    ("plugins", "fits"),
    [([], True), ([("Log", "json-file")], False), ([("Log", "syslog")], True)],
)
async def test_log_plugins(world: World, plugins: list[tuple[str, str]], fits: bool) -> None:
    """SCH 33: a node that reports no log plugins is not filtered."""
    web = build.service("web", log_driver=LogDriver(name="syslog"))
    await world.put(build.node("n1", plugins=plugins))
    await world.run(web)
    assert bool(world.where(web)) == fits


async def test_host_ports_exclude_each_other(world: World) -> None:
    """SCH 35, 36."""
    ports = (build.port(80, 8080, publish_mode="host"),)
    udp = (build.port(80, 8080, publish_mode="host", protocol="udp"),)
    web, other = build.service("web"), build.service("other")
    await world.put(*nodes(2))
    await world.run(web, (1, 2, 3), ports=ports)
    assert world.spread(web) == {"n1": 1, "n2": 1}
    reasons = {task.status.err for task in world.store.view().find(Task) if not task.node_id}
    assert reasons == {"no suitable node (host-mode port already in use on 2 nodes)"}
    await world.run(other, (1,), ports=udp)
    assert world.where(other)
    await world.put(build.node("n3"))
    assert world.spread(web) == {"n1": 1, "n2": 1, "n3": 1}


async def test_max_replicas_per_node(world: World) -> None:
    """SCH 37."""
    web = build.service("web", max_replicas=2)
    await world.put(*nodes(2))
    await world.run(web, range(1, 6))
    assert world.spread(web) == {"n1": 2, "n2": 2}
    reasons = {task.status.err for task in world.store.view().find(Task) if not task.node_id}
    assert reasons == {"no suitable node (max replicas per node limit exceeded on 2 nodes)"}
    await world.end(next(t.id for t in world.store.view().find(Task) if t.node_id))
    assert sum(world.spread(web).values()) == 4


async def test_constraints_are_all_needed_and_a_malformed_one_matches_nothing(
    world: World,
) -> None:
    """SCH 39."""
    await world.put(
        build.node("n1", labels={"disk": "ssd"}),
        build.node("n2", labels={"disk": "ssd", "zone": "b"}),
    )
    both = build.service("both", constraints=["node.labels.disk==SSD", "node.labels.zone != a"])
    await world.run(both, (1, 2))
    assert world.spread(both) == {"n1": 1, "n2": 1}
    wrong = build.service("wrong", constraints=["node.labels.disk ~ ssd"])
    await world.run(wrong)
    assert world.why(wrong) == "no suitable node (scheduling constraints not satisfied on 2 nodes)"


async def test_the_reason_names_each_filter_biggest_first(world: World) -> None:
    """SCH 42."""
    web = build.service("web", memory=9 * GIB, constraints=["node.labels.disk==ssd"])
    await world.put(
        build.node("other", memory=99 * GIB),
        build.node("drained", availability=Availability.DRAIN),
        *nodes(3),
    )
    await world.run(web)
    assert world.why(web) == (
        "no suitable node (insufficient resources on 3 nodes; 1 node not available for new tasks;"
        " scheduling constraints not satisfied on 1 node)"
    )


async def test_the_reason_is_written_only_when_it_changes(world: World) -> None:
    web = build.service("web", memory=99 * GIB)
    await world.put(*nodes(2))
    await world.run(web)
    version = world.task("task-web-1").version
    node = world.store.view().find(Node)[0]
    await world.put(replace(node, status=NodeStatus(state=NodeState.READY, message="x")))
    assert world.task("task-web-1").version == version
    await world.put(build.node("n9", memory=1))
    assert "3 nodes" in world.why(web)


async def test_tasks_without_a_service_are_judged_one_by_one(world: World) -> None:
    await world.put(*nodes(1))
    small, big = build.task_spec(), build.task_spec(memory=99 * GIB)
    await world.put(
        build.task(id="big", spec=big, state=TaskState.PENDING),
        build.task(id="small", spec=small, state=TaskState.PENDING),
    )
    assert world.task("small").node_id == "n1"
    assert world.task("big").node_id == ""


async def test_a_new_leader_goes_on_where_the_last_one_was(world: World) -> None:
    web = build.service("web", memory=4 * GIB)
    await world.put(*nodes(2))
    await world.run(web, (1, 2, 3))
    await world.store.update(lambda tx: tx.put(build.task(web, slot=4, state=TaskState.PENDING)))
    await world.store.update(lambda tx: tx.put(build.task(web, slot=5, state=TaskState.PENDING)))
    world.new_leader()
    await world.loops.settle()
    assert world.spread(web) == {"n1": 2, "n2": 2}
    assert world.why(web, 5) or world.why(web, 4)


async def test_a_node_that_has_not_said_what_it_has_takes_only_modest_tasks(world: World) -> None:
    node = replace(build.node("n1"), description=NodeDescription())
    web, hungry = build.service("web"), build.service("hungry", cpus=0.1)
    await world.put(node)
    await world.run(web)
    await world.run(hungry)
    assert world.where(web) == "n1"
    assert world.where(hungry) == ""


def test_failures_are_forgotten_after_five_minutes() -> None:
    """SCH 21."""
    info, start = NodeInfo("n1"), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    for minute in range(5):
        info.note_failure(("s", 1), start + dt.timedelta(minutes=minute))
    assert info.failures(("s", 1), start + dt.timedelta(minutes=4)) == 5
    assert info.failures(("s", 1), start + dt.timedelta(minutes=5, seconds=1)) == 0
    assert info.failures(("s", 2), start + dt.timedelta(minutes=4)) == 0
