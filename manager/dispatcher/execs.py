"""Processes run in tasks' containers for clients of this manager; the agents carry the bytes.

Lives in the leader's memory, as the agents' sessions do: when the leader changes, or a node's
session ends, its clients are told; the processes go on.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from common.errors import Conflict, NotFound, Unavailable
from common.ids import Ids
from common.protocol.execs import (
    CREDIT,
    INPUT_CREDIT,
    PIECE,
    ExecCancel,
    ExecCredit,
    ExecEnd,
    ExecInput,
    ExecOutput,
    ExecRequest,
    ExecResize,
    ExecTaken,
    FromAgentExec,
    ToAgentExec,
)

OPEN_MAX = 256  # that have not ended
KEPT = 200  # ended ones whose exit code can still be asked for

Send = Callable[[str, ToAgentExec], bool]


class RemoteExec:
    """One process: its stdio, and what became of it."""

    def __init__(self, node_id: str, request: ExecRequest, send: Send) -> None:
        self.node_id = node_id
        self.request = request
        self.exit_code: int | None = None
        self.error = ""
        self.started = False
        self.ended = asyncio.Event()
        self._send = send
        self._output: deque[tuple[int, bytes]] = deque()  # bounded by the credit
        self._news = asyncio.Event()
        self._may_send = asyncio.Semaphore(INPUT_CREDIT)
        self._under_way = 0  # messages of output that were given leave, and not used
        self._closed = False

    # For the client

    def start(self) -> None:
        """Raises Conflict if it was started already, Unavailable if its node is not there."""
        if self.started:
            raise Conflict(f"exec {self.request.request_id} has been started already")
        self._under_way = CREDIT
        if not self._tell(self.request):
            raise Unavailable(f"node {self.node_id} is not connected; try again in a moment")
        self.started = True

    async def read(self) -> tuple[int, bytes] | None:
        """The next output (1 stdout, 2 stderr, its bytes); None at the end."""
        while not self._output:
            if self.ended.is_set():
                return None
            self._news.clear()
            await self._news.wait()
        piece = self._output.popleft()
        if not self.ended.is_set():
            self._under_way += 1
            self._tell(ExecCredit(request_id=self.request.request_id))
        return piece

    async def write(self, data: bytes) -> None:
        """Write to stdin, at the pace at which the process reads; lost once it has ended."""
        for begin in range(0, len(data), PIECE):
            await self._input(data[begin : begin + PIECE])

    async def close_stdin(self) -> None:
        await self._input(b"")

    async def wait(self) -> None:
        """Until it has ended."""
        await self.ended.wait()

    async def close(self) -> None:
        """Let go. The process goes on."""
        if self.started and not self._closed and not self.ended.is_set():
            self._closed = True
            self._tell(ExecCancel(request_id=self.request.request_id))
            self.finish(ExecEnd(request_id=self.request.request_id, error="nobody listens"))

    def resize(self, rows: int, columns: int) -> None:
        if self.started and not self.ended.is_set():
            id = self.request.request_id
            self._tell(ExecResize(request_id=id, rows=rows, columns=columns))

    async def _input(self, data: bytes) -> None:
        if self.ended.is_set():
            return
        await self._may_send.acquire()
        if self.started and not self.ended.is_set():
            self._tell(ExecInput(request_id=self.request.request_id, data=data))

    def _tell(self, message: ToAgentExec) -> bool:
        return self._send(self.node_id, message)

    # From the agent

    def output(self, message: ExecOutput) -> None:
        """Raises Conflict if the agent sends more than it may."""
        if self._under_way <= 0 or len(message.data) > 4 * PIECE:
            raise Conflict(f"node {self.node_id} sends more than it may")
        self._under_way -= 1
        self._output.append((message.stream, message.data))
        self._news.set()

    def taken(self) -> None:
        self._may_send.release()

    def finish(self, end: ExecEnd) -> None:
        """It has ended, or will not be heard of any more."""
        self.exit_code, self.error = end.exit_code, end.error
        self.ended.set()
        self._news.set()
        self._may_send.release()  # who waits to write is let go


class ExecRelay:
    """All such processes."""

    def __init__(self, ids: Ids, send: Send) -> None:
        """`send` hands a message to a node's agent; False if it is not connected."""
        self._ids = ids
        self._send = send
        self._execs: dict[str, RemoteExec] = {}

    def create(self, node_id: str, request: ExecRequest) -> RemoteExec:
        """Raises Unavailable if there are too many. The request gets its id here."""
        self._drop_old()
        open_ones = (e for e in self._execs.values() if e.started and not e.ended.is_set())
        if sum(1 for _ in open_ones) >= OPEN_MAX:
            raise Unavailable(f"{OPEN_MAX} processes are run for clients already; end some first")
        id = self._ids.hex(64)
        entry = RemoteExec(node_id, replace(request, request_id=id), self._send)
        self._execs[id] = entry
        return entry

    def find(self, id: str) -> RemoteExec:
        """Raises NotFound, also for one that was made under another leader."""
        if id not in self._execs:
            raise NotFound(f"no such exec: {id[:64]}; it may have been lost with the leader")
        return self._execs[id]

    def take(self, node_id: str, message: FromAgentExec) -> None:
        """What an agent says; of processes that it was not asked for it is dropped."""
        entry = self._execs.get(message.request_id)
        if entry is None or entry.node_id != node_id or entry.ended.is_set():
            return
        match message:
            case ExecTaken():
                entry.taken()
            case ExecEnd():
                entry.finish(message)
            case ExecOutput():
                try:
                    entry.output(message)
                except Conflict as error:
                    self._send(node_id, ExecCancel(request_id=message.request_id))
                    entry.finish(ExecEnd(request_id=message.request_id, error=str(error)))

    def disconnected(self, node_id: str) -> None:
        """A node's session ended, and with it the relaying."""
        for id, entry in self._execs.items():
            if entry.node_id == node_id and entry.started and not entry.ended.is_set():
                error = f"the connection to node {node_id} is lost; the process may go on"
                entry.finish(ExecEnd(request_id=id, error=error))

    def _drop_old(self) -> None:
        """Also those which were never started: clients start at once what they create."""
        done = [id for id, each in self._execs.items() if each.ended.is_set() or not each.started]
        for id in done[:-KEPT]:
            del self._execs[id]
