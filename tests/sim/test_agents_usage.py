"""What tasks use, from the agents' engines to the leader's book."""

from pathlib import Path

import pytest

from common.model.task import TaskState
from common.protocol.usage import TaskUsage, UsageReport
from manager.dispatcher.usage import UsageBook
from tests.support.agents_world import AgentsWorld


@pytest.fixture
def world(tmp_path: Path) -> AgentsWorld:
    return AgentsWorld(tmp_path, seed=1, nodes=2)


async def test_cpus_and_memory_reach_the_leader(world: AgentsWorld) -> None:
    async with world.running():
        first, second = world.machines
        first.engine.cpus, first.engine.memory = 0.25, 7
        tasks = [await world.create(machine) for machine in (first, second, first)]
        for task in tasks[:2]:
            await world.until_state(task, TaskState.RUNNING)
        await world.until_state(tasks[2], TaskState.RUNNING)
        book: UsageBook = world.dispatcher.usage
        wanted = {tasks[0]: first.id, tasks[1]: second.id, "task-gone": first.id}
        book.ask(wanted)
        await world.until(lambda: book.of(tasks[0]) is not None)
        used = book.of(tasks[0])
        assert used is not None
        assert (used.cpus, used.memory) == (None, 7)  # one word is no rate yet
        await world.until(lambda: book.of(tasks[1]) is not None)
        book.ask(wanted)
        await world.until(lambda: (book.of(tasks[0]) or used).cpus is not None)
        again = book.of(tasks[0])
        assert again is not None
        assert again.cpus == pytest.approx(0.25, rel=0.01)
        assert book.of(tasks[2]) is None  # not asked for
        assert book.of("task-gone") is None
        book.ask({})
        assert book.of(tasks[0]) is None


async def test_a_node_is_believed_about_its_own_tasks_only(world: AgentsWorld) -> None:
    book = UsageBook(lambda node_id, message: True, lambda: None)  # type: ignore[arg-type, return-value]
    book.ask({"a": "n1"})
    lies = UsageReport(at_ns=1, tasks=(TaskUsage(task_id="a", cpu_ns=1, memory=1),))
    book.take("n2", lies)
    assert book.of("a") is None
    book.take("n1", lies)
    book.take("n1", UsageReport(at_ns=1, tasks=lies.tasks))  # its clock stands still
    used = book.of("a")
    assert used is not None
    assert used.cpus is None
