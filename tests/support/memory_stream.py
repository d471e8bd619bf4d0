"""Streams in memory: in order, each message late by a little, cut or silenced when told."""

import asyncio
import random
from collections import deque

from common.streams import StreamClosed

WINDOW = 64  # messages that may be under way


class Wire:
    """Both ends of one stream."""

    def __init__(self, rng: random.Random | None = None, delay_s: float = 0.0) -> None:
        """Each message takes up to `delay_s`."""
        self.silent = False  # nothing arrives, as when the network between is gone for a while
        self.closed = False  # what was sent before is still received
        self.broken = False  # it is not
        self._rng = rng or random.Random(0)
        self._delay_s = delay_s
        self._moved = asyncio.Condition()
        there: deque[tuple[float, bytes]] = deque()
        back: deque[tuple[float, bytes]] = deque()
        self.ends = MemoryStream(self, there, back), MemoryStream(self, back, there)

    def cut(self) -> None:
        """The connection breaks; what is under way is lost."""
        self.broken = True
        self.close()

    def silence(self, silent: bool) -> None:
        """While silent nothing arrives; what was sent then comes later, as with TCP."""
        self.silent = silent
        self._tell_soon()

    def close(self) -> None:
        self.closed = True
        self._tell_soon()

    async def until(self, condition) -> None:  # type: ignore[no-untyped-def]
        async with self._moved:
            await self._moved.wait_for(condition)

    async def tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    def due(self) -> float:
        now = asyncio.get_running_loop().time()
        return now + self._rng.uniform(0, self._delay_s)

    def _tell_soon(self) -> None:
        self._telling = asyncio.get_running_loop().create_task(self.tell())


class MemoryStream:
    def __init__(
        self,
        wire: Wire,
        outgoing: deque[tuple[float, bytes]],
        incoming: deque[tuple[float, bytes]],
    ) -> None:
        self._wire = wire
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, data: bytes) -> None:
        await self._wire.until(lambda: self._wire.closed or len(self._outgoing) < WINDOW)
        if self._wire.closed:
            raise StreamClosed("the wire is closed")
        self._outgoing.append((self._wire.due(), data))
        await self._wire.tell()

    async def receive(self) -> bytes:
        await self._wire.until(self._readable)
        if self._wire.broken or not self._incoming:
            raise StreamClosed("the wire is closed")
        due, data = self._incoming.popleft()
        await self._wire.tell()
        late = due - asyncio.get_running_loop().time()
        if late > 0:
            await asyncio.sleep(late)
        return data

    async def close(self) -> None:
        self._wire.close()

    def _readable(self) -> bool:
        return self._wire.broken or (
            not self._wire.silent and (self._wire.closed or bool(self._incoming))
        )
