"""The manager's end of one session: what waits to be sent to one agent, and its sending.

Assignments are sent in order. If an agent is so slow that too many wait, they are dropped and it
gets a complete set when it is ready for one; so nobody's slowness makes the others wait or
memory grow. What else there is to say is kept in its newest form only.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from common.protocol.dispatcher import (
    Alive,
    Assign,
    LogCancel,
    LogCredit,
    LogRequest,
    SessionUpdate,
    StatusStored,
    ToAgent,
    encode,
)
from common.protocol.execs import ToAgentExec
from common.protocol.usage import UsageRequest
from common.streams import Stream, StreamClosed

ASSIGNS_MAX = 64
LOG_MESSAGES_MAX = 4096
SEND_S = 10.0

LogMessage = LogRequest | LogCredit | LogCancel | ToAgentExec | UsageRequest


class Connection:
    """Sends to one agent, in a session of its own."""

    def __init__(
        self,
        node_id: str,
        session_id: str,
        stream: Stream,
        complete: Callable[[], Assign],
        ask: Callable[["Connection"], None],
    ) -> None:
        """`complete` makes the complete set. It is called when the set can be sent, in the turn
        that was asked for with `ask` and that `grant` gives."""
        self._ask = ask
        self._asked = self._granted = False
        self.node_id = node_id
        self.session_id = session_id
        self._stream = stream
        self._complete = complete
        self._stale = True  # the next assignment to send is a complete one
        self._assigns: deque[Assign] = deque()
        self._logs: deque[LogMessage] = deque()
        self._stored = 0
        self._update: SessionUpdate | None = None
        self._alive = False
        self._last: ToAgent | None = None
        self._ended = False
        self._news = asyncio.Event()
        self._news.set()

    # What is to be sent

    def assign(self, increment: Assign) -> None:
        if self._stale:
            return  # the complete set will hold it
        if len(self._assigns) >= ASSIGNS_MAX:
            self.resync()
            return
        self._assigns.append(increment)
        self._news.set()

    def resync(self) -> None:
        """Send a complete set instead of what waits."""
        self._assigns.clear()
        self._stale = True
        self._news.set()

    def grant(self) -> None:
        """It is this connection's turn to make a complete set."""
        self._granted = True
        self._news.set()

    def stored(self, number: int) -> None:
        self._stored = number
        self._news.set()

    def update(self, update: SessionUpdate) -> None:
        self._update = update
        self._news.set()

    def alive(self) -> None:
        self._alive = True
        self._news.set()

    def log(self, message: LogMessage) -> None:
        if len(self._logs) >= LOG_MESSAGES_MAX:
            self.end()
            return
        self._logs.append(message)
        self._news.set()

    def end(self, last: ToAgent | None = None) -> None:
        """End the session; `last` is sent before, if the agent takes it."""
        if not self._ended:
            self._ended, self._last = True, last
            self._news.set()

    # Sending

    async def run(self, first: ToAgent) -> None:
        """Send `first` and then what there is, until `end`. Raises StreamClosed."""
        await self._send(first)
        while not self._ended:
            await self._news.wait()
            self._news.clear()
            while not self._ended and (message := self._next()) is not None:
                await self._send(message)
        if self._last is not None:
            await self._send(self._last)

    async def _send(self, message: ToAgent) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await self._stream.send(encode(message))
        except TimeoutError as error:
            raise StreamClosed(f"{self.node_id} took nothing for {SEND_S:g} s") from error

    def _completed(self) -> Assign | None:
        """The complete set, if it is this connection's turn; else that is asked for."""
        if not self._granted:
            if not self._asked:
                self._asked = True
                self._ask(self)
            return None
        assign = self._complete()
        self._asked = self._granted = self._stale = False
        return assign

    def _next(self) -> ToAgent | None:
        if self._alive:
            self._alive = False
            return Alive()
        if self._update is not None:
            update, self._update = self._update, None
            return update
        if self._stale:
            return self._completed()
        if self._assigns:
            return self._assigns.popleft()
        if self._stored:
            number, self._stored = self._stored, 0
            return StatusStored(number=number)
        return self._logs.popleft() if self._logs else None
