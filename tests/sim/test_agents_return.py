"""Agents that nobody could reach for an hour come back: at spread moments, once each, and one after
the other where the manager has much to do for each."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.model.node import Node, NodeState
from common.model.task import TaskState
from manager.dispatcher.dispatcher import Dispatcher
from tests.support.agents_world import AgentsWorld

HOUR_S = 3600.0
NODES = 20


@pytest.fixture
def world(tmp_path: Path) -> AgentsWorld:
    return AgentsWorld(tmp_path, seed=11, nodes=NODES)


def tries(world: AgentsWorld, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """When who tries to reach the manager; filled from now on."""
    seen: list[tuple[float, str]] = []
    accept = world.accept

    def note(node_id: str, wire) -> None:  # type: ignore[no-untyped-def]
        seen.append((asyncio.get_running_loop().time(), node_id))
        accept(node_id, wire)

    monkeypatch.setattr(world, "accept", note)
    return seen


def ready(world: AgentsWorld) -> int:
    states = Counter(node.status.state for node in world.store.view().find(Node))
    return states[NodeState.READY]


async def test_agents_without_a_manager_for_an_hour(
    world: AgentsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs goes on, tries are few and never in step, and each registers once."""
    async with world.running():
        ids = [await world.create(machine) for machine in world.machines]
        for id in ids:
            await world.until_state(id, TaskState.RUNNING)
        await world.end_term()
        seen = tries(world, monkeypatch)
        await asyncio.sleep(HOUR_S)
        by_node = Counter(node_id for _, node_id in seen)
        assert len(by_node) == NODES
        assert max(by_node.values()) < HOUR_S / 4  # 4 to 8 s apart
        assert _most_within([at for at, _ in seen if at > 60], 0.5) < NODES / 2
        seen.clear()
        world.lead()
        await world.until(lambda: len(seen) >= NODES and ready(world) == NODES, 20)
        back = Counter(node_id for _, node_id in seen)
        assert set(back.values()) == {1}
        assert _most_within([at for at, _ in seen], 0.5) < NODES / 2
        await asyncio.sleep(30)
        assert len(seen) == NODES
        for machine, id in zip(world.machines, ids, strict=True):
            assert machine.engine.started == [id]
            assert world.state(id) is TaskState.RUNNING


async def test_complete_sets_are_made_one_in_a_turn_of_the_loop(
    world: AgentsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many agents come at once, others are served in between."""
    turns = 0
    made: list[int] = []
    right = Dispatcher._complete

    def note(self: Dispatcher, node_id: str):  # type: ignore[no-untyped-def]
        made.append(turns)
        asyncio.get_running_loop().call_soon(tick)
        return right(self, node_id)

    def tick() -> None:
        nonlocal turns
        turns += 1

    monkeypatch.setattr(Dispatcher, "_complete", note)
    world.delay_s = 0.0
    async with world.running():
        await world.until(lambda: len(made) >= NODES, 20)
    assert max(Counter(made).values()) == 1


def _most_within(times: list[float], seconds: float) -> int:
    """The most of `times`, which are sorted, that are in one span of so many seconds."""

    def counts() -> Iterator[int]:
        first = 0
        for last, at in enumerate(times):
            while times[first] <= at - seconds:
                first += 1
            yield last - first + 1

    return max(counts(), default=0)
