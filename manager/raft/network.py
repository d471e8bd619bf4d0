"""Messages to other managers: what the driver needs, and senders that keep connections open.

Transport-independent: whoever has sockets, or pipes in a test, gives `Peers` a function that
opens a connection. What is sent goes to it at once, without a task in between. Receiving is the
listener's business: it hands what arrives to `Driver.receive`.
"""

import asyncio
import collections
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from manager.raft.message import Member

QUEUE_BYTES = 32 << 20  # waiting for one peer; beyond, messages are dropped and Raft repeats them
QUEUE_MESSAGES = 4096
CONNECT_S = 3.0  # the deadline of one attempt to connect
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
IDLE_S = 60.0  # a peer with nothing to send for so long is let go


class Network(Protocol):
    """Carries messages, and may lose, delay, repeat and reorder them."""

    def send(self, member: Member, message: bytes) -> None:
        """Send soon, or drop. Never blocks."""
        ...


class Connection(Protocol):
    """One way to one peer; messages keep their bounds."""

    @property
    def waiting_bytes(self) -> int:
        """Sent, but still in this process."""
        ...

    def send(self, message: bytes) -> None:
        """Send soon; nothing happens if the connection is broken."""
        ...

    async def lost(self) -> None:
        """Wait until it is broken."""
        ...

    def close(self) -> None: ...


Dial = Callable[[Member], Awaitable[Connection]]
"""Opens a connection to a member. Raises OSError, also for a peer that is not who it should be."""


class Peers:
    """A `Network` that has one connection and one bounded queue for each peer."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._peers: dict[tuple[str, str], _Peer] = {}
        self._new: asyncio.Queue[_Peer] = asyncio.Queue(64)

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                peer = await self._new.get()
                group.create_task(self._serve(peer), name=f"raft to {peer.member.address}")

    def send(self, member: Member, message: bytes) -> None:
        key = (member.id, member.address)
        peer = self._peers.get(key)
        if peer is None:
            if self._new.full():
                return
            peer = self._peers[key] = _Peer(member)
            self._new.put_nowait(peer)
        peer.put(message)

    async def _serve(self, peer: "_Peer") -> None:
        try:
            await peer.run(self._dial)
        finally:
            self._peers = {key: kept for key, kept in self._peers.items() if kept is not peer}


class _Peer:
    """What waits for one member at one address, until there is a connection."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._queue: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._connection: Connection | None = None
        self._used = False  # since somebody last looked

    def put(self, message: bytes) -> None:
        self._used = True
        if self._connection is not None:
            if self._connection.waiting_bytes + len(message) <= QUEUE_BYTES:
                self._connection.send(message)
        elif len(self._queue) < QUEUE_MESSAGES and self._bytes + len(message) <= QUEUE_BYTES:
            self._queue.append(message)
            self._bytes += len(message)
            self._filled.set()

    async def run(self, dial: Dial) -> None:
        """Connect and send, until there has been nothing to send for a while."""
        backoff = BACKOFF_MIN_S
        while await self._wait():
            try:
                async with asyncio.timeout(CONNECT_S):
                    connection = await dial(self.member)
            except OSError:  # TimeoutError is one
                # What waited meanwhile is old, and a flood of it would only slow the peer down.
                self._clear()
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, BACKOFF_MAX_S)
                continue
            backoff = BACKOFF_MIN_S
            try:
                await self._send_all(connection)
            finally:
                self._connection = None
                connection.close()
            await asyncio.sleep(BACKOFF_MIN_S)

    async def _send_all(self, connection: Connection) -> None:
        """Send what waits, and let `put` send, until the connection breaks or the peer is idle."""
        for message in self._queue:
            connection.send(message)
        self._clear()
        self._connection = connection
        self._used = True
        while self._used:
            self._used = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await connection.lost()
                    return

    async def _wait(self) -> bool:
        """Wait until something is queued; False if nothing came for IDLE_S."""
        while not self._queue:
            self._filled.clear()
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._filled.wait()
            except TimeoutError:
                if not self._queue:
                    return False
        return True

    def _clear(self) -> None:
        self._queue.clear()
        self._bytes = 0
