"""Which tasks are moved so that a service is spread anew."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.scheduler.nodeset import NodeSet
from manager.scheduler.rebalance import Move, may_gain, moves
from tests.support import build


def books(nodes: Iterable[Node], tasks: Iterable[Task]) -> NodeSet:
    found = NodeSet()
    for node in nodes:
        found.put_node(node)
    for task in tasks:
        found.put_task(task)
    return found


def spread(of: Service, *node_ids: str) -> list[Task]:
    return [
        build.task(of, slot=slot, node=id, state=TaskState.RUNNING)
        for slot, id in enumerate(node_ids, 1)
    ]


def after(tasks: Iterable[Task], found: Iterable[Move]) -> Counter[str]:
    where = {task.id: task.node_id for task in tasks}
    return Counter((where | {move.task.id: move.target for move in found}).values())


def test_an_empty_node_gets_its_share() -> None:
    tasks = spread(build.service(), "n1", "n1", "n1", "n2", "n2", "n2")
    found = moves(books(map(build.node, ("n1", "n2", "n3")), tasks), tasks, 10)
    assert after(tasks, found) == {"n1": 2, "n2": 2, "n3": 2}
    assert len(found) == 2
    assert [move.task.slot for move in found] in ([3, 6], [6, 3])  # the newest of each node


def test_the_limit_and_the_books_are_kept() -> None:
    tasks = spread(build.service(), *["n1"] * 9)
    nodes = books(map(build.node, ("n1", "n2", "n3")), tasks)
    assert len(moves(nodes, tasks, 2)) == 2
    assert {i: nodes.get(i).active for i in ("n1", "n2", "n3")} == {"n1": 9, "n2": 0, "n3": 0}  # type: ignore[union-attr]
    assert len(moves(nodes, tasks, 100)) == 6
    assert moves(nodes, tasks, 0) == []


def test_many_small_services_are_spread_by_all_tasks() -> None:
    """Each has one task, so only the sum says that a node is full."""
    tasks = [spread(build.service(f"s{i}"), "n1")[0] for i in range(6)]
    nodes = books(map(build.node, ("n1", "n2")), tasks)
    moved: list[Move] = []
    for task in tasks:
        assert may_gain(nodes, [task]) == (len(moved) < 3)
        for move in moves(nodes, [task], 10):
            nodes.remove_task(task.id)
            nodes.put_task(build.task(id=task.id, node=move.target, state=TaskState.RUNNING))
            moved.append(move)
    assert len(moved) == 3


def test_only_where_a_task_fits_and_only_to_targets() -> None:
    gpu = build.service(constraints=["node.labels.gpu==yes"])
    tasks = spread(gpu, "n1", "n1", "n1", "n1")
    labelled = [build.node(id, labels={"gpu": "yes"}) for id in ("n1", "n2", "n3")]
    nodes = books([*labelled, build.node("n4")], tasks)
    assert {move.target for move in moves(nodes, tasks, 10)} == {"n2", "n3"}
    assert [move.target for move in moves(nodes, tasks, 10, {"n3"})] == ["n3", "n3"]
    assert moves(nodes, tasks, 10, {"n4"}) == []


def test_preferences_come_first() -> None:
    """Zone b has one node for as many tasks as zone a has on two."""
    web = build.service(preferences=["node.labels.zone"])
    zones = {"a1": "a", "a2": "a", "b1": "b"}
    tasks = spread(web, "a1", "a1", "a1", "a2", "a2", "a2")
    nodes = books([build.node(id, labels={"zone": z}) for id, z in zones.items()], tasks)
    found = moves(nodes, tasks, 10)
    assert after(tasks, found)["b1"] == 3
    assert may_gain(nodes, tasks)
    # a zone of its own is balanced, but its nodes are not
    tasks = spread(web, "a1", "a1", "b1", "b1")
    nodes = books([build.node(id, labels={"zone": z}) for id, z in zones.items()], tasks)
    assert after(tasks, moves(nodes, tasks, 10)) == {"a1": 1, "a2": 1, "b1": 2}


@pytest.mark.parametrize("preferences", [[], ["node.labels.zone"]])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_it_ends_and_a_second_look_finds_nothing(preferences: list[str], seed: int) -> None:
    rng = random.Random(seed)
    ids = [f"n{i}" for i in range(rng.randint(1, 6))]
    zones = {id: rng.choice("abc") for id in ids}
    web = build.service(preferences=preferences)
    tasks = spread(web, *(rng.choice(ids) for _ in range(rng.randint(1, 20))))
    others = [
        build.task(id=f"o{i}", node=rng.choice(ids), state=TaskState.RUNNING) for i in range(10)
    ]
    nodes = books([build.node(id, labels={"zone": zones[id]}) for id in ids], [*tasks, *others])
    found = moves(nodes, tasks, 1000)
    assert len(found) <= len(tasks) * 2
    for move in found:
        task = next(task for task in tasks if task.id == move.task.id)
        nodes.remove_task(task.id)
        tasks[tasks.index(task)] = moved = build.task(
            web, slot=task.slot, node=move.target, state=TaskState.RUNNING
        )
        nodes.put_task(moved)
    assert moves(nodes, tasks, 1000) == []
    if not preferences:
        counts = [Counter(task.node_id for task in tasks)[id] for id in ids]
        assert max(counts) - min(counts) <= 1
