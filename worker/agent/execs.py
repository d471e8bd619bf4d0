"""Runs a process beside that of a task, for a client of the manager, and carries its bytes."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from common.errors import ShoalError
from common.protocol.execs import (
    CREDIT,
    INPUT_CREDIT,
    PIECE,
    ExecCredit,
    ExecEnd,
    ExecInput,
    ExecOutput,
    ExecRequest,
    ExecResize,
    ExecTaken,
    FromAgentExec,
)

Send = Callable[[FromAgentExec], Awaitable[None]]


class NotStarted(ShoalError):
    """It could not be run: `exit_code` is what a shell would give, 126 or 127."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Process(Protocol):
    """What was started, with its stdio."""

    async def read(self) -> tuple[int, bytes] | None:
        """The next output (1 stdout, 2 stderr, its bytes); None at the end of all output."""
        ...

    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def close(self) -> None:
        """Let go; it goes on."""
        ...

    def resize(self, rows: int, columns: int) -> None: ...
    async def exit_code(self) -> int | None:
        """Once it has ended; None at once for a detached one."""
        ...


Start = Callable[[ExecRequest], Awaitable[Process]]


class ExecRunner:
    """Serves one request; `take` gets what the manager says of it."""

    def __init__(self, request: ExecRequest, start: Start, send: Send) -> None:
        self._request = request
        self._start = start
        self._send = send
        self._credit = asyncio.Semaphore(CREDIT)
        self._input: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._process: Process | None = None
        self._size: tuple[int, int] | None = None

    def take(self, message: ExecInput | ExecCredit | ExecResize) -> None:
        """What goes beyond its leave is dropped: the manager must not make this node's memory
        grow."""
        match message:
            case ExecCredit():
                self._credit.release()
            case ExecInput() if len(self._input) < INPUT_CREDIT and len(message.data) <= PIECE:
                self._input.append(message.data)
                self._more.set()
            case ExecResize():
                self._size = message.rows, message.columns
                self._resize()

    async def run(self) -> None:
        """Until it has ended and the manager knows. Lets go of the process when cancelled."""
        try:
            self._process = await self._start(self._request)
        except NotStarted as error:
            await self._output(1, f"{error}\r\n".encode())
            await self._end(error.exit_code)
            return
        except ShoalError as error:
            await self._end(None, str(error))
            return
        self._resize()
        try:
            await self._carry(self._process)
        finally:
            await self._process.close()

    async def _carry(self, process: Process) -> None:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write(process), name="exec input")
            while (piece := await process.read()) is not None:
                stream, data = piece
                for begin in range(0, len(data), PIECE):
                    await self._output(stream, data[begin : begin + PIECE])
            code = await process.exit_code()
            writer.cancel()
        await self._end(code)

    async def _write(self, process: Process) -> None:
        while True:
            while not self._input:
                self._more.clear()
                await self._more.wait()
            data = self._input.popleft()
            if not data:
                await process.close_stdin()
            else:
                await process.write(data)
            await self._send(ExecTaken(request_id=self._request.request_id))

    async def _output(self, stream: int, data: bytes) -> None:
        await self._credit.acquire()
        id = self._request.request_id
        await self._send(ExecOutput(request_id=id, stream=stream, data=data))

    async def _end(self, code: int | None, error: str = "") -> None:
        id = self._request.request_id
        await self._send(ExecEnd(request_id=id, exit_code=code, error=error))

    def _resize(self) -> None:
        if self._process is not None and self._size is not None:
            self._process.resize(*self._size)
