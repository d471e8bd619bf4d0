"""One-way streams of messages, for senders whose every message counts: managers' Raft messages.

A connection that begins as HTTP, so that the cluster's one listener serves it and says who may
use it, and after the answer 101 carries nothing but frames from the client: four bytes of length,
big-endian, and the message. Compared with a WebSocket there is no masking, no task that wakes
for each message, and nothing to wait for when sending.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

MESSAGE_LIMIT = 32 << 20  # bytes
HEAD_LIMIT = 16 << 10  # bytes of the answer's head, and of a refusal's beginning
_LENGTH = struct.Struct(">I")
_ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: frames\r\n\r\n"


class Transport(Protocol):
    """What is used of asyncio's transports; those of uvloop are none of its classes."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str) -> Any: ...


class FrameSender(asyncio.Protocol):
    """The client's end, once `opened`."""

    def __init__(self, path: str) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._path = path
        self._head = b""
        self._lost = asyncio.Event()
        self._transport: Transport | None = None

    def about(self, name: str) -> Any:
        """What the transport knows of the connection: "socket", "ssl_object"; None once lost."""
        return self._transport.get_extra_info(name) if self._transport is not None else None

    def send(self, message: bytes) -> None:
        """Send soon. On a broken connection nothing happens; see `lost`."""
        if self._transport is not None:
            self._transport.write(_LENGTH.pack(len(message)) + message)

    @property
    def waiting_bytes(self) -> int:
        """Sent, but not yet taken by the kernel."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    async def lost(self) -> None:
        """Wait until the connection is broken or closed."""
        await self._lost.wait()

    def close(self) -> None:
        """At once; what waits is dropped. Safe to repeat."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(Transport, transport)
        request = f"GET {self._path} HTTP/1.1\r\nHost: manager\r\n"
        self._transport.write(request.encode() + b"Connection: Upgrade\r\nUpgrade: frames\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return  # this end only sends
        self._head += data
        if b"\r\n\r\n" not in self._head and len(self._head) < HEAD_LIMIT:
            return
        if self._head.startswith(b"HTTP/1.1 101 "):
            self.opened.set_result(None)
        else:
            status = self._head.partition(b"\r\n")[0].decode("latin-1")
            self.opened.set_exception(ConnectionRefusedError(f"refused: {status[:80]}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost.set()
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("the connection broke"))


class FrameReader(asyncio.Protocol):
    """The server's end."""

    def __init__(self, transport: Transport, http: asyncio.BaseProtocol, take: "Take") -> None:
        self._transport = transport
        self._http = http
        self._take = take
        self._buffer = bytearray()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            self._buffer += data
            used = self._take_all(self._buffer)
            del self._buffer[:used]
        else:
            used = self._take_all(data)
            self._buffer += memoryview(data)[used:]

    def _take_all(self, data: bytes | bytearray) -> int:
        """Hand on the whole messages in `data`; how many bytes they were."""
        begin = 0
        while len(data) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, begin)
            if length > MESSAGE_LIMIT:
                self._transport.abort()
                return len(data)
            end = begin + _LENGTH.size + length
            if end > len(data):
                break
            self._take(bytes(data[begin + _LENGTH.size : end]))
            begin = end
        return begin

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._http.connection_lost(exc)


Take = Callable[[bytes], None]
"""What a message is given to; called on the loop, once for each."""


class _Taken(web.StreamResponse):
    """Tells aiohttp that the answer has been given."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def accept_frames(request: web.Request, take: Take) -> web.StreamResponse:
    """Hand the frames of the client of `request` to `take` until the connection ends."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    reader = FrameReader(transport, transport.get_protocol(), take)
    transport.set_protocol(reader)
    transport.write(_ACCEPTED)
    try:
        await reader.lost.wait()
    finally:
        transport.abort()
    return _Taken()
