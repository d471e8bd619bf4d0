"""Whatever happens, the books are those of the tasks, and placement is even."""

import datetime as dt
from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.model.task import Task, TaskState
from manager.scheduler.demand import demand
from manager.scheduler.nodeset import NodeInfo, NodeSet
from manager.scheduler.placement import place
from tests.support import build

NOW = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
SERVICES = [build.service(f"s{number}", memory=number) for number in range(3)]
PORTS = (build.port(80, 8080, publish_mode="host"),)

tasks = st.builds(
    lambda number, service, node, state, desired, ports: build.task(
        SERVICES[service],
        id=f"t{number}",
        node=node,
        state=state,
        desired=desired,
        ports=PORTS if ports else (),
    ),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from(["", "n0", "n1", "n2"]),
    st.sampled_from([TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING, TaskState.FAILED]),
    st.sampled_from([TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]),
    st.booleans(),
)
steps = st.lists(
    st.one_of(
        tasks,
        st.tuples(st.just("remove task"), st.integers(0, 4)),
        st.tuples(st.just("put node"), st.integers(0, 2)),
        st.tuples(st.just("remove node"), st.integers(0, 2)),
    ),
    min_size=10,
    max_size=40,
)


def books(info: NodeInfo) -> tuple[object, ...]:
    ports, services = dict(info.ports), dict(info.active_of)
    return info.held, info.memory_bytes, info.active, ports, services


@given(steps)
def test_the_books_are_the_sum_of_the_tasks(steps: list[Task | tuple[str, int]]) -> None:
    """SCH 4, 5, 40: in whatever order, how often ever, known node or not."""
    nodes, present = NodeSet(), dict[str, Task]()
    for step in steps:
        match step:
            case Task():
                nodes.put_task(step)
                nodes.put_task(step)
                present[step.id] = step
            case ("remove task", number):
                nodes.remove_task(f"t{number}")
                nodes.remove_task(f"t{number}")
                present.pop(f"t{number}", None)
            case ("put node", number):
                nodes.put_node(build.node(f"n{number}"))
            case ("remove node", number):
                nodes.remove_node(f"n{number}")
        list(nodes.emptiest())
    expected = NodeSet()
    for task in present.values():
        expected.put_task(task)
    for node_id in ("n0", "n1", "n2"):
        have, want = nodes.get(node_id), expected.get(node_id)
        assert books(have or NodeInfo(node_id)) == books(want or NodeInfo(node_id))
    counts = [info.active for info in nodes.emptiest()]
    assert counts == sorted(counts)
    assert {info.id for info in nodes.emptiest()} == {info.id for info in nodes.ready()}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 3))
def test_placement_is_as_even_as_it_can_be(before: list[int], count: int, other: int) -> None:
    """SCH 1-3: nobody gets a task while another node has fewer of the service."""
    web = build.service("web")
    nodes = NodeSet()
    for number, tasks in enumerate(before):
        nodes.put_node(build.node(f"n{number}"))
        for slot in range(tasks):
            nodes.add(f"old-{number}-{slot}", f"n{number}", demand(build.task(web)))
        for slot in range(other * number):
            nodes.add(f"x-{number}-{slot}", f"n{number}", demand(build.task()))
    group = [build.task(web, slot=slot, state=TaskState.PENDING) for slot in range(count)]
    placed, reason = place(nodes, group, NOW)
    assert (len(placed), reason) == (count, "")
    got = Counter(placed.values())
    after = {f"n{number}": tasks + got[f"n{number}"] for number, tasks in enumerate(before)}
    assert all(after[node] <= min(after.values()) + 1 for node in got)


racks = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.integers(0, 5)),
    min_size=1,
    max_size=8,
)


@given(racks, st.integers(1, 30))
def test_preferences_place_all_that_can_be_placed(
    racks: list[tuple[str, str, int]], count: int
) -> None:
    """SCH 14, 16, 17, 41: full groups leave the rest to others, and no group with room left
    has two tasks fewer than one that got a task."""
    web = build.service("web", preferences=["node.labels.zone", "node.labels.rack"], memory=1)
    nodes = NodeSet()
    for number, (zone, rack, room) in enumerate(racks):
        labels = {"zone": zone, "rack": rack}
        nodes.put_node(build.node(f"n{number}", labels=labels, memory=room))
    group = [build.task(web, slot=slot, state=TaskState.PENDING) for slot in range(count)]
    placed, reason = place(nodes, group, NOW)
    total = Counter[str]()
    for zone, _, free in racks:
        total[zone] += free
    assert len(placed) == min(count, total.total())
    assert bool(reason) == (count > total.total())
    got = Counter(racks[int(node[1:])][0] for node in placed.values())
    open_zones = [zone for zone in total if got[zone] < total[zone]]
    assert all(got[zone] <= got[other] + 1 for zone in got for other in open_zones)


@given(st.integers(1, 40), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_no_node_is_overbooked(count: int, rooms: list[int]) -> None:
    """SCH 22, 24."""
    web = build.service("web", memory=2)
    nodes = NodeSet()
    for number, room in enumerate(rooms):
        nodes.put_node(build.node(f"n{number}", memory=2 * room + 1))
    group = [build.task(web, slot=slot, state=TaskState.PENDING) for slot in range(count)]
    placed, _ = place(nodes, group, NOW)
    assert len(placed) == min(count, sum(rooms))
    got = Counter(placed.values())
    assert all(got[f"n{number}"] <= room for number, room in enumerate(rooms))


@given(st.permutations(range(5)))
def test_the_order_of_tasks_does_not_matter_to_the_books(order: list[int]) -> None:
    web = build.service("web", memory=1)
    one, two = NodeSet(), NodeSet()
    for nodes in (one, two):
        for number in range(3):
            nodes.put_node(build.node(f"n{number}"))
    group = [build.task(web, slot=slot, state=TaskState.PENDING) for slot in range(5)]
    place(one, group, NOW)
    place(two, [group[slot] for slot in order], NOW)
    assert [books(info) for info in one.all()] == [books(info) for info in two.all()]


def test_placing_reads_only_as_many_nodes_as_it_needs() -> None:
    """Many small services are as cheap as one large one."""

    class Counting(NodeSet):
        read = 0

        def emptiest(self) -> Iterator[NodeInfo]:
            for info in super().emptiest():
                self.read += 1
                yield info

        def ready(self) -> list[NodeInfo]:
            raise AssertionError("walked over all nodes")

    nodes = Counting()
    for number in range(500):
        nodes.put_node(build.node(f"n{number}"))
    for number in range(100):
        placed, _ = place(
            nodes, [build.task(build.service(f"s{number}"), state=TaskState.PENDING)], NOW
        )
        assert placed
    assert nodes.read <= 200
    group = [
        build.task(build.service("big"), slot=slot, state=TaskState.PENDING) for slot in range(300)
    ]
    placed, _ = place(nodes, group, NOW)
    assert len(set(placed.values())) == 300
    assert replace(group[0]).id in placed
