"""Connections that stop being HTTP: attach and exec.

After the answer's head the connection carries bytes both ways: the client's are the process's
stdin, ours are its output. The end of the client's bytes is only a half-close: output goes on.
aiohttp's server has no way out of HTTP but WebSocket, so the transport is given another protocol.
"""

import asyncio
import contextlib
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from node.api.detaching import DEFAULT, Escape
from node.api.routes import API_VERSION_ASKED
from node.api.streaming import MULTIPLEXED, RAW, frame

HANG_UP_CHECK_S = 2.0
STDIN_QUEUE = 64  # pieces the process may lag behind before the client is made to wait


class Duplex(Protocol):
    """A process's stdio, as the engine hands it out."""

    async def read(self) -> tuple[int, bytes] | None:
        """The next output (1 stdout, 2 stderr, its bytes); None at the end of all output."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to stdin; what comes after the process closed it is dropped."""
        ...

    async def close_stdin(self) -> None:
        """No more stdin."""
        ...

    async def close(self) -> None:
        """Let go. The process goes on."""
        ...


class _Detached(Exception):
    """The user left the terminal; the process goes on."""


class _Hijacked(web.StreamResponse):
    """Tells aiohttp that the answer has been given."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _Connection(asyncio.Protocol):
    """The bytes of a connection that was HTTP."""

    def __init__(self, transport: asyncio.Transport, http: asyncio.BaseProtocol) -> None:
        self._transport = transport
        self._http = http
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        self.input.put_nowait(data)
        if self.input.qsize() >= STDIN_QUEUE:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self.input.put_nowait(None)
        return True  # half-close: keep writing

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self._writable.set()
        self.input.put_nowait(None)
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self) -> bytes | None:
        """The client's next bytes; None when it will send no more."""
        data = await self.input.get()
        if self.input.qsize() < STDIN_QUEUE and not self._lost.is_set():
            self._transport.resume_reading()
        return data

    async def send(self, data: bytes) -> None:
        """Raises ConnectionResetError when the client has gone."""
        await self._writable.wait()
        if self._lost.is_set():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)

    async def watch(self) -> None:
        """Raises ConnectionResetError once the client has gone, however silent the process is.

        A client that has gone looks like a half-close to the event loop, until something is
        written; so the socket is asked now and then.
        """
        raw: socket.socket = self._transport.get_extra_info("socket")
        hung_up = select.poll()
        hung_up.register(raw.fileno(), 0)  # hang-up and error are always reported
        while not self._lost.is_set() and not hung_up.poll(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), HANG_UP_CHECK_S)
        raise ConnectionResetError("the client has gone")


async def attach_stream(
    request: web.Request,
    duplex: Duplex,
    *,
    tty: bool,
    ended: Callable[[], Awaitable[None]] | None = None,
    detach_keys: bytes = DEFAULT,
    detached: Callable[[], None] = lambda: None,
) -> web.StreamResponse:
    """Join the client of `request` with a process's stdio until the output ends, or until
    `detach_keys` are typed on a terminal: then `detached` is called.

    `ended` is awaited before the connection is closed: clients ask for the exit code right after.
    """
    transport = request.transport
    if transport is None:
        await duplex.close()
        raise ConnectionResetError("the client has gone")
    await request.read()
    connection = _Connection(transport, transport.get_protocol())
    transport.set_protocol(connection)
    transport.write(_head(request, tty))
    escape = Escape(detach_keys) if tty else None
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(_copy_in(connection, duplex, escape), name="stdin"),
                group.create_task(connection.watch(), name="client"),
            ]
            await _copy_out(connection, duplex, tty)
            if ended is not None:
                await ended()
            for helper in helpers:
                helper.cancel()
    except* ConnectionResetError:
        pass  # the client went away; the process goes on
    except* _Detached:
        detached()
    finally:
        await duplex.close()
        transport.close()
    return _Hijacked()


def _head(request: web.Request, tty: bool) -> bytes:
    """The answer's head: 101 for a client that asked to upgrade, else 200 (older clients)."""
    multiplexed = not tty and request[API_VERSION_ASKED] >= (1, 42)
    content_type = MULTIPLEXED if multiplexed else RAW
    if request.headers.get("Upgrade", "").lower() == "tcp":
        return (
            f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {content_type}\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        ).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode()


async def _copy_in(connection: _Connection, duplex: Duplex, escape: Escape | None) -> None:
    """Raises _Detached once the keys for that have been typed."""
    while (data := await connection.receive()) is not None:
        leave = False
        if escape is not None:
            data, leave = escape.feed(data)
        if data:
            await duplex.write(data)
        if leave:
            raise _Detached
    await duplex.close_stdin()


async def _copy_out(connection: _Connection, duplex: Duplex, tty: bool) -> None:
    while (output := await duplex.read()) is not None:
        stream, data = output
        await connection.send(data if tty else frame(stream, data))
