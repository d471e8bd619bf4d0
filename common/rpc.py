"""How daemons talk: HTTP calls and WebSocket streams over mutual TLS, on aiohttp.

A call names the host it wants to reach by role or node id, not by address: that name is checked
against the certificate before anything is sent (`common.tls`). Errors travel as Docker's
`{"message": …}` and come out as the error class of their status.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from common import errors
from common.errors import Forbidden, NotFound, ShoalError, Unavailable
from common.frames import FrameSender
from common.streams import StreamClosed
from common.tls import MANAGER, Identity, peer_identity

T = TypeVar("T")

CALL_S = 10.0  # deadline of a call, connecting included
CONNECT_S = 3.0
CLOSE_S = 1.0  # for the other end to say goodbye as well
MESSAGE_LIMIT = 32 * 1024 * 1024  # bytes of one message; senders cut larger things
REPLY_LIMIT = 4 * 1024 * 1024  # bytes of the answer to a call
SILENCE_MS = 5_000  # sent and not acknowledged for so long: the connection is dead


class WebSocketStream:
    """A Stream (`common.streams`) over a WebSocket, of either end."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse | web.WebSocketResponse") -> None:
        self._socket = socket

    @property
    def identity(self) -> Identity | None:
        """Who is at the other end, by certificate."""
        return peer_identity(self._socket.get_extra_info("ssl_object"))

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            # RuntimeError: what aiohttp says where the connection was never or is no more there
            raise StreamClosed(str(error) or "the connection is closed") from error

    async def receive(self) -> bytes:
        try:
            message = await self._socket.receive()
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            raise StreamClosed(str(error) or "the connection is closed") from error
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data)
        await self.close()
        raise StreamClosed("the other end closed the connection")

    async def close(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, RuntimeError, TimeoutError):
            async with asyncio.timeout(2 * CLOSE_S):
                await self._socket.close()


async def accept_stream(request: web.Request, limit: int = MESSAGE_LIMIT) -> WebSocketStream:
    """Turn `request` into a stream. The handler then returns `web.Response()` when it is done."""
    answer = web.WebSocketResponse(timeout=CLOSE_S, max_msg_size=limit, compress=False)
    if not answer.can_prepare(request):
        raise errors.Invalid("this address speaks WebSocket only")
    await answer.prepare(request)
    notice_silence(request.get_extra_info("socket"))
    return WebSocketStream(answer)


def notice_silence(connection: Any) -> None:
    """Let the kernel end `connection` soon after its peer has vanished without a word."""
    if connection is None:
        return
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class Attempt:
    """What became of one request."""

    def __init__(self) -> None:
        self.sent = False  # the other end may have begun to work on it


async def _note_sent(session: aiohttp.ClientSession, context: Any, parameters: Any) -> None:
    if isinstance(context.trace_request_ctx, Attempt):
        context.trace_request_ctx.sent = True


class Client:
    """Calls other daemons with one set of credentials. Make it on the loop that uses it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(_note_sent)
        # Calls are rare, and each is made with the certificate of its moment: a connection kept
        # open would go on with the one before.
        self._calls = _session(context, keep=False)
        self._requests = _session(context, keep=True, tracing=tracing)

    async def call(
        self,
        address: str,
        method: str,
        path: str,
        body: object = None,
        *,
        host: str | None = MANAGER,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = CALL_S,
    ) -> bytes:
        """The answer's body. `host` is the role or node id that must answer; None: anybody.

        Raises the error that the other end sent, or Unavailable naming `address`.
        """
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._calls.request(
                    method,
                    f"https://{address}{path}",
                    data=data,
                    headers=headers,
                    server_hostname=host,
                ) as answer,
            ):
                content = await _bounded(answer.content)
                if answer.status >= 400:
                    raise error_of(answer.status, content)
                return content
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(address, error) from error

    async def ask(self, kind: type[T], address: str, path: str, body: object = None) -> T:
        """POST `body` and read the answer as a `kind`."""
        content = await self.call(address, "POST", path, body)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"{address} gave an answer that makes no sense: {error}") from error

    async def stream(
        self, address: str, path: str, *, host: str = MANAGER, limit: int = MESSAGE_LIMIT
    ) -> WebSocketStream:
        """A stream to `path` at `address`. Raises as `call` does."""
        try:
            async with asyncio.timeout(CALL_S):
                connection = await self._calls.ws_connect(
                    f"https://{address}{path}",
                    server_hostname=host,
                    max_msg_size=limit,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise error_of(error.status, b"", f"{address} refused the connection") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(address, error) from error
        return WebSocketStream(connection)

    async def frames(self, address: str, path: str, *, host: str) -> FrameSender:
        """A way to send messages to `path` at `address`; the caller sees to the deadline.

        Raises OSError, also when it is not `host` that answers.
        """
        name, _, port = address.rpartition(":")
        _, sender = await asyncio.get_running_loop().create_connection(
            lambda: FrameSender(path),
            name.strip("[]"),
            int(port),
            ssl=self._context,
            server_hostname=host,
        )
        try:
            notice_silence(sender.about("socket"))
            await sender.opened
        except BaseException:
            sender.close()
            raise
        return sender

    async def request(
        self,
        address: str,
        method: str,
        path: str,
        body: bytes,
        *,
        host: str,
        headers: Mapping[str, str],
        attempt: Attempt,
    ) -> aiohttp.ClientResponse:
        """The head of the answer, for what hands over whole requests; the caller closes it.

        Raises as `call` does, but does not look at the status.
        """
        try:
            return await self._requests.request(
                method,
                URL(f"https://{address}{path}", encoded=True),
                data=body or None,
                headers=headers,
                server_hostname=host,
                allow_redirects=False,
                trace_request_ctx=attempt,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise unreachable(address, error) from error

    async def close(self) -> None:
        await self._calls.close()
        await self._requests.close()


def _session(
    context: ssl.SSLContext, *, keep: bool, tracing: aiohttp.TraceConfig | None = None
) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        ssl=context, limit=0, force_close=not keep, socket_factory=_socket
    )
    return aiohttp.ClientSession(
        connector=connector,
        trace_configs=[tracing] if tracing else None,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    parts = bytearray()
    async for part in content.iter_any():
        parts += part
        if len(parts) > REPLY_LIMIT:
            raise ValueError(f"an answer of more than {REPLY_LIMIT} bytes")
    return bytes(parts)


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    connection = socket.socket(family, kind, protocol)
    connection.setblocking(False)
    notice_silence(connection)
    return connection


def unreachable(address: str, error: Exception) -> ShoalError:
    """What to tell a user about a failed connection to `address`."""
    if isinstance(error, TimeoutError):
        return Unavailable(f"{address} does not answer in time; is it reachable from this machine?")
    trouble = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        trouble = error.certificate_error
    if isinstance(trouble, ssl.SSLCertVerificationError):
        return Forbidden(f"{address} {_mistrust(trouble)}")
    if isinstance(trouble, ssl.SSLError):
        reason = (trouble.reason or str(trouble)).replace("_", " ").lower()
        return Unavailable(f"{address} broke off the TLS handshake: {reason}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Unavailable(f"cannot reach {address}: {error.os_error.strerror or error.os_error}")
    return Unavailable(f"the connection to {address} broke: {error or type(error).__name__}")


def _mistrust(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case 62:
            return "is not the node it should be, or no manager; name a manager of this cluster"
        case 10:
            return "has a certificate that has expired"
        case 9:
            return "has a certificate that is not valid yet: compare the machines' clocks"
        case _:
            return "belongs to another cluster: its certificate is not from this cluster's root"


def error_of(status: int, content: bytes, message: str = "") -> ShoalError:
    """The error that an answer with `status` and body `content` carries."""
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        message = str(msgspec.json.decode(content)["message"])
    kinds: dict[int, type[ShoalError]] = {
        400: errors.Invalid,
        401: Forbidden,
        403: Forbidden,
        404: NotFound,
        409: errors.Conflict,
        501: errors.NotImplementedHere,
        503: Unavailable,
    }
    kind = kinds.get(status, ShoalError)
    return kind(message or f"the other daemon answered with status {status}")
