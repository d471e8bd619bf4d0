"""Service logs: many nodes' lines in one stream."""

import asyncio
import random
from collections.abc import AsyncIterator

from msgspec.structs import replace

from common.ids import Ids
from common.model.task import Task
from common.protocol.dispatcher import (
    LogCancel,
    LogChunk,
    LogCredit,
    LogEnd,
    LogLine,
    LogRequest,
)
from manager.dispatcher.logs import CREDIT, LogRelay
from tests.support import build


class World:
    def __init__(self, *nodes: str) -> None:
        self.nodes = set(nodes)
        self.sent: list[tuple[str, LogRequest | LogCredit | LogCancel]] = []
        self.relay = LogRelay(Ids(random.Random(1)), self._send, lambda: 7)
        self.lines: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    def _send(self, node_id: str, message: LogRequest | LogCredit | LogCancel) -> bool:
        if node_id in self.nodes:
            self.sent.append((node_id, message))
        return node_id in self.nodes

    async def read(self, tasks: list[Task], *, follow: bool = False) -> None:
        request = LogRequest(request_id="", task_ids=(), follow=follow)
        lines = self.relay.read(request, tasks, "service-web")
        self._reading = asyncio.get_running_loop().create_task(self._collect(lines))
        await asyncio.sleep(0.01)

    async def _collect(self, lines: AsyncIterator[LogLine]) -> None:
        try:
            async for line in lines:
                self.lines.append(line.data.decode())
        finally:
            await lines.aclose()  # type: ignore[attr-defined]

    @property
    def done(self) -> bool:
        return self._reading is not None and self._reading.done()

    async def cancel(self) -> None:
        assert self._reading is not None
        self._reading.cancel()
        await asyncio.wait([self._reading])

    def request(self, node: str) -> LogRequest:
        found = [m for n, m in self.sent if n == node and isinstance(m, LogRequest)]
        return found[-1]

    def say(self, node: str, *texts: str, time_ns: int = 1) -> None:
        request = self.request(node)
        lines = tuple(
            LogLine(task_id=request.task_ids[0], stream=1, time_ns=time_ns, data=text.encode())
            for text in texts
        )
        self.relay.chunk(node, LogChunk(request_id=request.request_id, lines=lines))

    async def end(self, node: str, error: str = "") -> None:
        self.relay.end(node, LogEnd(request_id=self.request(node).request_id, error=error))
        await asyncio.sleep(0.01)


def tasks(*nodes: str) -> list[Task]:
    web = build.service("web")
    return [build.task(web, id=f"t{n}", slot=n, node=node) for n, node in enumerate(nodes, 1)]


async def test_streams_are_merged_and_end_together() -> None:
    """LOG 166, 168."""
    world = World("a", "b")
    await world.read(tasks("a", "b", "a"))
    assert world.request("a").task_ids == ("t1", "t3")
    world.say("a", "1\n")
    world.say("b", "2\n")
    await world.end("a")
    assert not world.done
    await world.end("b")
    assert world.done
    assert world.lines == ["1\n", "2\n"]


async def test_a_missing_node_is_named() -> None:
    """LOG 169."""
    world = World("a")
    await world.read(tasks("a", "b"))
    await world.end("a")
    assert world.done
    assert world.lines == ["warning: incomplete log stream: node b is not available\n"]


async def test_a_node_lost_in_the_middle_ends_what_does_not_follow() -> None:
    """LOG 171."""
    world = World("a")
    await world.read(tasks("a"))
    world.say("a", "1\n")
    world.relay.disconnected("a")
    await asyncio.sleep(0.01)
    assert world.done
    assert world.lines[0] == "1\n"
    assert "node a disconnected" in world.lines[1]


async def test_a_follower_goes_on_where_a_lost_node_stopped() -> None:
    """LOG 167: and each line once."""
    world = World("a")
    await world.read(tasks("a"), follow=True)
    world.say("a", "1\n", time_ns=41)
    world.relay.disconnected("a")
    world.relay.connected("a")
    assert world.request("a").since_ns == 42
    world.say("a", "2\n", time_ns=43)
    await asyncio.sleep(0.01)
    assert world.lines == ["1\n", "2\n"]
    await world.cancel()
    assert isinstance(world.sent[-1][1], LogCancel)


async def test_a_follower_gets_tasks_that_come_later() -> None:
    world = World("a", "b")
    await world.read(tasks("a"), follow=True)
    (later,) = tasks("b")
    world.relay.observe(replace(later, id="t9"))
    world.relay.observe(replace(later, id="t9"))
    assert [m for n, m in world.sent if n == "b"] == [world.request("b")]
    await world.cancel()


async def test_a_node_cannot_fill_the_managers_memory() -> None:
    world = World("a")
    await world.read(tasks("a"))
    for number in range(CREDIT + 1):
        world.say("a", f"{number}\n")
    await asyncio.sleep(0.01)
    assert world.done
    assert len(world.lines) == CREDIT + 1
    assert "more than it may" in world.lines[-1]


async def test_reading_gives_new_credit_and_foreign_lines_are_dropped() -> None:
    world = World("a", "b")
    await world.read(tasks("a"))
    world.say("a", "1\n")
    await asyncio.sleep(0.01)
    assert isinstance(world.sent[-1][1], LogCredit)
    request = world.request("a")
    line = LogLine(task_id="foreign", stream=1, time_ns=1, data=b"x")
    world.relay.chunk("a", LogChunk(request_id=request.request_id, lines=(line,)))
    world.relay.chunk("b", LogChunk(request_id=request.request_id, lines=(line,)))
    await world.end("a")
    assert world.lines == ["1\n"]
