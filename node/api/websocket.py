"""Attaching by WebSocket, for browsers' terminals.

Output goes out as binary messages, both streams in one, as Docker has it; what comes in, binary or
text, is the process's stdin. There is no half-close: who closes leaves.
"""

import asyncio
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from common.errors import Forbidden, Invalid
from node.api.detaching import DEFAULT, Escape
from node.api.hijack import Duplex

PING_S = 30.0  # a client that does not answer for half of this again has gone


class _Left(Exception):
    """The client closed, or typed the keys that leave a terminal; the process goes on."""

    def __init__(self, by_keys: bool = False) -> None:
        super().__init__()
        self.by_keys = by_keys


def check(request: web.Request) -> None:
    """Before anything is done. Raises Invalid; Forbidden for another site's page in a browser,
    which no browser holds back from connecting to a port of its machine."""
    if not web.WebSocketResponse().can_prepare(request).ok:
        raise Invalid("this path is for WebSockets: ask for an upgrade to one, or POST …/attach")
    origin = request.headers.get("Origin", "")
    if origin and _by_port(request) and urlsplit(origin).netloc != request.host:
        raise Forbidden(f"pages of {origin[:80]!r} may not attach to containers")


def _by_port(request: web.Request) -> bool:
    """Whether it came over TCP; browsers cannot reach a Unix socket."""
    raw = request.transport.get_extra_info("socket") if request.transport is not None else None
    return raw is not None and raw.family != socket.AF_UNIX


async def attach_websocket(
    request: web.Request,
    duplex: Duplex,
    *,
    tty: bool,
    detach_keys: bytes = DEFAULT,
    detached: Callable[[], None] = lambda: None,
) -> web.StreamResponse:
    """Join the client with a process's stdio until the output ends or the client leaves; if by
    `detach_keys` on a terminal, `detached` is called."""
    connection = web.WebSocketResponse(heartbeat=PING_S)
    escape = Escape(detach_keys) if tty else None
    try:
        await connection.prepare(request)
        async with asyncio.TaskGroup() as group:
            incoming = group.create_task(_copy_in(connection, duplex, escape), name="stdin")
            while (output := await duplex.read()) is not None:
                await connection.send_bytes(output[1])
            incoming.cancel()
    except* ConnectionResetError:
        pass  # the client has gone; the process goes on
    except* _Left as left:
        if any(isinstance(error, _Left) and error.by_keys for error in left.exceptions):
            detached()
    finally:
        await duplex.close()
    await connection.close()
    return connection


async def _copy_in(
    connection: web.WebSocketResponse, duplex: Duplex, escape: Escape | None
) -> None:
    """Raises _Left when the client does."""
    async for message in connection:
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            continue
        data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
        leave = False
        if escape is not None:
            data, leave = escape.feed(data)
        if data:
            await duplex.write(data)
        if leave:
            raise _Left(by_keys=True)
    raise _Left
