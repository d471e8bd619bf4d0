"""What becomes of the statuses that agents report."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from common.model.task import Task, TaskState, TaskStatus
from common.protocol.dispatcher import StatusReport, TaskStatusUpdate
from manager.dispatcher.statuses import TEXT_MAX, StatusIntake, newer
from manager.store.store import Store
from tests.support import build
from tests.support.memory_proposer import LoopClock, MemoryProposer

S = TaskState


class World:
    def __init__(self) -> None:
        self.store = Store(LoopClock())
        self.proposer = MemoryProposer(self.store)
        self.store.lead(self.proposer)
        self.stored: list[tuple[str, str, int]] = []
        self.intake = StatusIntake(self.store, self.node_of, lambda *a: self.stored.append(a))

    def node_of(self, task_id: str) -> str:
        task = self.store.view().get(Task, task_id)
        return "" if task is None else task.node_id

    def report(self, number: int, node: str = "a", **states: TaskState) -> list[str]:
        updates = tuple(
            TaskStatusUpdate(task_id=id, status=TaskStatus(state=state))
            for id, state in states.items()
        )
        return self.intake.take(node, "session", StatusReport(number=number, updates=updates))

    def state(self, id: str) -> TaskState:
        task = self.store.view().get(Task, id)
        assert task is not None
        return task.status.state

    async def settle(self) -> None:
        await asyncio.sleep(1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    for id, node in (("one", "a"), ("two", "a"), ("other", "b")):
        task = build.task(id=id, node=node, state=S.ASSIGNED)
        await world.store.update(lambda tx, task=task: tx.put(task))  # type: ignore[misc]
    running = asyncio.get_running_loop().create_task(world.intake.run())
    yield world
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_stored_is_said_after_the_commit(world: World) -> None:
    world.proposer.hold()
    world.report(1, one=S.RUNNING)
    await world.settle()
    assert world.stored == []
    world.proposer.release()
    await world.settle()
    assert world.stored == [("a", "session", 1)]
    assert world.state("one") is S.RUNNING


async def test_what_comes_during_a_write_goes_together_into_the_next(world: World) -> None:
    world.proposer.hold()
    entries = len(world.proposer.entries)
    world.report(1, one=S.ACCEPTED)
    await world.settle()
    world.report(2, one=S.PREPARING)
    world.report(3, one=S.RUNNING, two=S.RUNNING)
    world.proposer.release()
    await world.settle()
    assert len(world.proposer.entries) == entries + 2
    assert world.stored == [("a", "session", 1), ("a", "session", 3)]
    assert (world.state("one"), world.state("two")) == (S.RUNNING, S.RUNNING)


async def test_statuses_of_other_nodes_tasks_and_backward_ones_are_refused(world: World) -> None:
    """DIS 161."""
    assert world.report(1, other=S.RUNNING, one=S.RUNNING) == ["other"]
    await world.settle()
    world.report(2, one=S.PREPARING)
    await world.settle()
    assert (world.state("other"), world.state("one")) == (S.ASSIGNED, S.RUNNING)
    assert world.stored[-1] == ("a", "session", 2)


@pytest.mark.parametrize("state", [S.NEW, S.ASSIGNED, S.REMOVE, S.ORPHANED])
async def test_an_agent_cannot_say_what_is_the_managers_to_say(
    world: World, state: TaskState
) -> None:
    assert world.report(1, one=state) == ["one"]


async def test_a_deleted_task_is_settled(world: World) -> None:
    assert world.report(1, gone=S.RUNNING) == []
    await world.settle()
    assert world.stored == [("a", "session", 1)]


async def test_an_agent_cannot_fill_the_log(world: World) -> None:
    status = TaskStatus(state=S.FAILED, err="x" * 1_000_000)
    update = TaskStatusUpdate(task_id="one", status=status)
    world.intake.take("a", "session", StatusReport(number=1, updates=(update,)))
    await world.settle()
    task = world.store.view().get(Task, "one")
    assert task is not None
    assert len(task.status.err) == TEXT_MAX


@pytest.mark.parametrize(
    ("old", "new", "expect"),
    [
        pytest.param(S.READY, S.RUNNING, True, id="forward"),
        pytest.param(S.RUNNING, S.READY, False, id="backward"),
        pytest.param(S.COMPLETE, S.FAILED, False, id="an end is final"),
        pytest.param(S.RUNNING, S.RUNNING, False, id="nothing new"),
    ],
)
def test_states_only_move_forward(old: TaskState, new: TaskState, expect: bool) -> None:
    assert newer(TaskStatus(state=old), TaskStatus(state=new)) is expect
