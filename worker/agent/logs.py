"""Sends log lines of this node's tasks to the manager that asked, as fast as it reads them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from common.errors import ShoalError
from common.protocol.dispatcher import LogChunk, LogEnd, LogLine, LogRequest
from worker.agent.executor import Executor

CHUNK_BYTES = 64 * 1024
BUFFER_BYTES = 256 * 1024
CREDIT_MAX = 64

Send = Callable[[LogChunk | LogEnd], Awaitable[None]]


class LogSender:
    """Serves one request."""

    def __init__(
        self,
        request: LogRequest,
        executor: Executor,
        made: Callable[[str], Awaitable[bool]],
        send: Send,
    ) -> None:
        """`made` waits until a task has its container; False if it will have none."""
        self._request = request
        self._executor = executor
        self._made = made
        self._send = send
        self._credit = asyncio.Semaphore(max(1, min(request.credit, CREDIT_MAX)))
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self._moved = asyncio.Condition()
        self._readers = 0

    def credit(self, chunks: int) -> None:
        """So many more chunks may be sent."""
        for _ in range(max(0, min(chunks, CREDIT_MAX))):
            self._credit.release()

    async def run(self) -> None:
        """Send all lines and the end. Ends early when cancelled."""
        errors: list[str] = []
        self._readers = len(self._request.task_ids)
        async with asyncio.TaskGroup() as group:
            for task_id in self._request.task_ids:
                group.create_task(self._read(task_id, errors))
            while lines := await self._take():
                await self._credit.acquire()
                await self._send(LogChunk(request_id=self._request.request_id, lines=lines))
        await self._send(LogEnd(request_id=self._request.request_id, error="; ".join(errors)))

    async def _read(self, task_id: str, errors: list[str]) -> None:
        try:
            if self._executor.look(task_id) is None and not (
                self._request.follow and await self._made(task_id)
            ):
                return  # not made yet, or gone: no lines, no error (LOG 170)
            lines = self._executor.logs(task_id, self._request)
            async with _closing(lines):
                async for line in lines:
                    await self._put(line)
        except ShoalError as error:
            errors.append(str(error))
        finally:
            self._readers -= 1
            async with self._moved:
                self._moved.notify_all()

    async def _put(self, line: LogLine) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._bytes < BUFFER_BYTES)
            self._lines.append(line)
            self._bytes += len(line.data)
            self._moved.notify_all()

    async def _take(self) -> tuple[LogLine, ...]:
        """The next lines; none at the end."""
        async with self._moved:
            await self._moved.wait_for(lambda: bool(self._lines) or not self._readers)
            taken: list[LogLine] = []
            size = 0
            while self._lines and size < CHUNK_BYTES:
                line = self._lines.popleft()
                taken.append(line)
                size += len(line.data) + 64
                self._bytes -= len(line.data)
            self._moved.notify_all()
            return tuple(taken)


@contextlib.asynccontextmanager
async def _closing(lines: AsyncIterator[LogLine]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        close = getattr(lines, "aclose", None)
        if close is not None:
            await close()
