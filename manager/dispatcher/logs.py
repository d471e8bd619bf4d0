"""Service logs: one stream of lines out of many nodes' streams.

Each node is asked for the lines of its tasks. A reader takes lines at its own pace: a node may
have `CREDIT` chunks under way and gets leave for one more with each that was read, so a slow
reader makes the nodes wait, not this manager's memory grow.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

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

CREDIT = 8
STDERR = 2

Send = Callable[[str, LogRequest | LogCredit | LogCancel], bool]


class _Part:
    """One request to one node."""

    def __init__(self, node_id: str, task_ids: tuple[str, ...], since_ns: int, tail: int) -> None:
        self.node_id = node_id
        self.task_ids = task_ids
        self.since_ns = since_ns  # moves on with what was read, for asking again
        self.tail = tail
        self.credit = CREDIT


class _Subscription:
    """One reader."""

    def __init__(self, request: LogRequest, service_id: str, clock_ns: Callable[[], int]) -> None:
        self.request = request
        self.service_id = service_id
        self.clock_ns = clock_ns
        self.parts: dict[str, _Part] = {}  # by request id
        self.waiting: list[_Part] = []  # to be asked when their node is back
        self.tasks: set[str] = set()
        self.lines: deque[tuple[str, tuple[LogLine, ...]]] = deque()  # bounded by the credits
        self.news = asyncio.Event()

    def push(self, request_id: str, lines: tuple[LogLine, ...]) -> None:
        self.lines.append((request_id, lines))
        self.news.set()

    def warn(self, part: _Part, text: str) -> None:
        line = LogLine(
            task_id=part.task_ids[0],
            stream=STDERR,
            time_ns=self.clock_ns(),
            data=f"warning: incomplete log stream: {text}\n".encode(),
        )
        self.push("", (line,))

    @property
    def done(self) -> bool:
        return not self.request.follow and not self.parts


class LogRelay:
    """All readers of service logs."""

    def __init__(self, ids: Ids, send: Send, clock_ns: Callable[[], int]) -> None:
        """`send` hands a message to a node's agent; False if it is not connected."""
        self._ids = ids
        self._send = send
        self._clock_ns = clock_ns
        self._readers: dict[int, _Subscription] = {}
        self._requests: dict[str, _Subscription] = {}
        self._count = 0

    # For readers

    async def read(
        self, request: LogRequest, tasks: Iterable[Task], service_id: str = ""
    ) -> AsyncIterator[LogLine]:
        """Lines of `tasks`, and with `follow` also of tasks that `service_id` gets later.

        What cannot be read is said in a line of its own. Close the iterator when done.
        """
        self._count += 1
        number = self._count
        reader = self._readers[number] = _Subscription(request, service_id, self._clock_ns)
        try:
            self._ask(reader, tasks)
            while reader.lines or not reader.done:
                if not reader.lines:
                    reader.news.clear()
                    await reader.news.wait()
                    continue
                request_id, lines = reader.lines.popleft()
                for line in lines:
                    yield line
                self._credit(reader, request_id)
        finally:
            del self._readers[number]
            for request_id, part in reader.parts.items():
                del self._requests[request_id]
                self._send(part.node_id, LogCancel(request_id=request_id))

    # From agents

    def chunk(self, node_id: str, chunk: LogChunk) -> None:
        """Take in lines; those that nobody asked this node for are dropped."""
        found = self._find(node_id, chunk.request_id)
        if found is None:
            return
        reader, part = found
        lines = tuple(line for line in chunk.lines if line.task_id in part.task_ids)
        if part.credit <= 0:
            self._send(node_id, LogCancel(request_id=chunk.request_id))
            self._finish(chunk.request_id, f"node {node_id} sends more than it may")
            return
        part.credit -= 1
        part.since_ns = max((line.time_ns + 1 for line in lines), default=part.since_ns)
        part.tail = -1
        reader.push(chunk.request_id, lines)

    def end(self, node_id: str, end: LogEnd) -> None:
        if self._find(node_id, end.request_id) is not None:
            self._finish(end.request_id, end.error and f"node {node_id}: {end.error}")

    # From the dispatcher

    def connected(self, node_id: str) -> None:
        """A node is back: ask it what waits for it (LOG 167)."""
        for reader in self._readers.values():
            parts = [part for part in reader.waiting if part.node_id == node_id]
            reader.waiting = [part for part in reader.waiting if part.node_id != node_id]
            for part in parts:
                self._open(reader, part)

    def disconnected(self, node_id: str) -> None:
        """A node's session ended: followers wait for it, others are told (LOG 171)."""
        for request_id, reader in list(self._requests.items()):
            part = reader.parts[request_id]
            if part.node_id != node_id:
                continue
            if reader.request.follow:
                self._close(reader, request_id)
                reader.waiting.append(part)
            else:
                self._finish(request_id, f"node {node_id} disconnected")

    def observe(self, task: Task) -> None:
        """A task has a node now: whoever follows its service wants its lines too."""
        for reader in self._readers.values():
            if reader.request.follow and reader.service_id == task.service_id != "":
                self._ask(reader, (task,))

    def _ask(self, reader: _Subscription, tasks: Iterable[Task]) -> None:
        by_node: dict[str, list[str]] = {}
        for task in tasks:
            if task.node_id and task.id not in reader.tasks:
                reader.tasks.add(task.id)
                by_node.setdefault(task.node_id, []).append(task.id)
        for node_id, ids in by_node.items():
            since, tail = reader.request.since_ns, reader.request.tail
            self._open(reader, _Part(node_id, tuple(ids), since, tail))

    def _open(self, reader: _Subscription, part: _Part) -> None:
        request_id = self._ids.new()
        part.credit = CREDIT
        request = msgspec.structs.replace(
            reader.request,
            request_id=request_id,
            task_ids=part.task_ids,
            since_ns=part.since_ns,
            tail=part.tail,
            credit=CREDIT,
        )
        if self._send(part.node_id, request):
            reader.parts[request_id] = part
            self._requests[request_id] = reader
            return
        reader.warn(part, f"node {part.node_id} is not available")
        if reader.request.follow:
            reader.waiting.append(part)

    def _credit(self, reader: _Subscription, request_id: str) -> None:
        part = reader.parts.get(request_id)
        if part is not None:
            part.credit += 1
            self._send(part.node_id, LogCredit(request_id=request_id))

    def _find(self, node_id: str, request_id: str) -> tuple[_Subscription, _Part] | None:
        reader = self._requests.get(request_id)
        if reader is None or reader.parts[request_id].node_id != node_id:
            return None
        return reader, reader.parts[request_id]

    def _finish(self, request_id: str, warning: str) -> None:
        reader = self._requests[request_id]
        part = self._close(reader, request_id)
        if warning:
            reader.warn(part, warning)
        reader.news.set()

    def _close(self, reader: _Subscription, request_id: str) -> _Part:
        del self._requests[request_id]
        return reader.parts.pop(request_id)
