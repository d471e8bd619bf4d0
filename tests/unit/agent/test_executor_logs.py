"""What the engine is asked for when somebody wants a task's lines."""

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from common.errors import NotFound
from common.model.node import NodeDescription
from common.protocol.dispatcher import LogLine, LogRequest
from common.protocol.usage import TaskUsage
from worker.agent.executor import EngineExecutor, task_usage
from worker.agent.task_files import TaskFiles
from worker.engine.logs import LogQuery


class Engine:
    """Has one container, of task t1."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def list(self, *, all: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(id="c1", owner="t1")] if all else []

    def find(self, id: str) -> SimpleNamespace:
        return SimpleNamespace(id=id)

    async def logs(self, id: str, query: LogQuery) -> AsyncIterator[SimpleNamespace]:
        self.asked.append({"id": id, **msgspec.structs.asdict(query)})
        yield SimpleNamespace(stream=2, time_ns=9, data=b"said\n")


async def lines(executor: EngineExecutor, task_id: str, request: LogRequest) -> list[LogLine]:
    async with contextlib.aclosing(executor.logs(task_id, request)) as found:  # type: ignore[type-var]
        return [line async for line in found]


async def test_every_wish_reaches_the_engine() -> None:
    """LOG 172; a container that was deleted meanwhile is named in an error of its own."""
    engine = Engine()
    executor = EngineExecutor(engine, None, NodeDescription, TaskFiles())  # type: ignore[arg-type]
    wishes: dict[str, Any] = {
        "follow": True,
        "tail": 4,
        "since_ns": 5,
        "until_ns": 7,
        "stdout": False,
        "stderr": True,
    }
    request = LogRequest(request_id="r", task_ids=("t1", "t2"), **wishes)
    found = await lines(executor, "t1", request)
    assert found == [LogLine(task_id="t1", stream=2, time_ns=9, data=b"said\n")]
    assert engine.asked == [{"id": "c1", **wishes}]
    with pytest.raises(NotFound, match="container of task t2 is gone"):
        await lines(executor, "t2", request)


@pytest.mark.parametrize(
    ("stats", "memory"),
    [({}, 100), ({"inactive_file": 30}, 70), ({"total_inactive_file": 200}, 0)],
)
def test_what_a_task_uses_is_without_what_the_kernel_can_drop(
    stats: dict[str, int], memory: int
) -> None:
    sample = {
        "cpu_stats": {"cpu_usage": {"total_usage": 5}},
        "memory_stats": {"usage": 100, "stats": stats},
    }
    assert task_usage("t1", sample) == TaskUsage(task_id="t1", cpu_ns=5, memory=memory)
