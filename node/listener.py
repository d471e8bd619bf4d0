"""The cluster listener: what other daemons may ask of this manager, and who may ask it.

Callers without a certificate reach only what joining takes. What only the leader can do, a
follower hands on, with the caller's identity beside it; the leader believes that of managers only.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec
from aiohttp import web

from common import rpc
from common.errors import Forbidden, Invalid, NotLeader, ShoalError, Unavailable
from common.frames import accept_frames
from common.protocol.ca import Issued, IssueRequest, RaftJoin, RaftJoined, RenewRequest
from common.tls import MANAGER, ROLES, WORKER, Identity, peer_identity, require
from manager.manager import Manager

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_LIMIT = 64 * 1024  # bytes; requests for certificates are small, and anybody may send them
CLOSE_S = 1.0
LEADER_WAIT_S = 5.0
SESSION_LIMIT = 16 * 1024 * 1024  # bytes of one message of an agent
_IDENTITY = "X-Shoal-Identity"  # node id and role of the caller, from a follower
_HANDED_ON = "X-Shoal-Handed-On"


class Listener:
    """Serves one manager on one socket, from `start` to `close`."""

    def __init__(
        self,
        cluster_id: str,
        root: bytes,
        client: rpc.Client,
        api: Callable[[], web.Application],
    ) -> None:
        self._cluster_id = cluster_id
        self._root = root
        self._client = client
        self._api = api
        self._runner: web.AppRunner | None = None
        self._closing: asyncio.Task[None] | None = None
        self._streams: dict[asyncio.Transport, asyncio.Event] = {}
        self.manager: Manager | None = None  # None: listening already, but not in Raft yet

    async def start(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_LIMIT)
        app.add_routes(
            [
                web.get("/ping", self._ping),
                web.get("/ca/root", self._ca_root),
                web.post("/ca/issue", self._issue),
                web.post("/ca/renew", self._renew),
                web.post("/ca/abandon", self._abandon),
                web.post("/raft/join", self._raft_join),
                web.post("/raft/leave", self._raft_leave),
                web.post("/node/leave", self._node_leave),
                web.post("/raft/read-index", self._read_index),
                web.get("/raft/stream", self._raft_stream),
                web.get("/session", self._session),
            ]
        )
        app.add_subapp("/forward", self._api())
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=CLOSE_S, handle_signals=False
        )
        await self._runner.setup()
        site = web.SockSite(self._runner, listening, ssl_context=context, backlog=1024)
        await site.start()

    async def close(self) -> None:
        """Close the socket and every connection, even if cancelled meanwhile. Safe to repeat.

        A connection that was left open would go on asking a manager that is no more.
        """
        if self._runner is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._runner))
        try:
            await asyncio.shield(self._closing)
        finally:
            await asyncio.wait([self._closing])

    async def _close(self, runner: web.AppRunner) -> None:
        for site in list(runner.sites):
            await site.stop()
        await self._end_streams()
        await runner.cleanup()

    async def _end_streams(self) -> None:
        """Without a goodbye, which would be waited for, from peers that may be gone."""
        streams = dict(self._streams)
        for transport in streams:
            transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                for ended in streams.values():
                    await ended.wait()

    # Who may ask

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path.startswith("/forward/"):
                caller = self._caller(request, MANAGER)
                if self._ready().is_leader:
                    self._ready().authority.check_manager(caller)
            return await handler(request)
        except ShoalError as error:
            return _refusal(error)
        except (web.HTTPException, ConnectionError, asyncio.CancelledError):
            raise
        except Exception:  # one bad request must not be another's trouble
            log.exception("request of another daemon failed", extra={"path": request.path})
            return _refusal(ShoalError("internal error; that manager's log says more"))

    def _caller(self, request: web.Request, *roles: str) -> Identity:
        identity = require(_peer(request), self._cluster_id, *roles)
        if self.manager is not None:
            self.manager.authority.check(identity)
        return identity

    def _original(self, request: web.Request, *roles: str) -> Identity:
        """The caller, or whoever a follower says its caller was."""
        told = request.headers.get(_IDENTITY)
        if told is None:
            return self._caller(request, *roles)
        self._caller(request, MANAGER)
        node_id, _, role = told.partition(" ")
        identity = require(Identity(node_id, role, self._cluster_id), self._cluster_id, *roles)
        self._ready().authority.check(identity)
        return identity

    def _ready(self) -> Manager:
        if self.manager is None:
            raise Unavailable("this manager is still joining the cluster; try again in a moment")
        return self.manager

    # What only the leader does

    async def _at_leader(
        self,
        request: web.Request,
        kind: type[T],
        caller: Identity | None,
        do: Callable[[Manager, T], Awaitable[R]],
    ) -> web.StreamResponse:
        manager = self._ready()
        body = await _body(request, kind)
        if not manager.is_leader:
            await manager.wait_leader(LEADER_WAIT_S)
        if manager.is_leader:
            return _json(await do(manager, body))
        if _HANDED_ON in request.headers:
            raise NotLeader("leadership moved while the request was under way; send it again")
        return await self._hand_on(request, manager.leader_address, caller)

    async def _hand_on(
        self, request: web.Request, leader: str, caller: Identity | None
    ) -> web.StreamResponse:
        headers = {_HANDED_ON: "1"}
        if caller is not None:
            headers[_IDENTITY] = f"{caller.node_id} {caller.role}"
        content = await self._client.call(
            leader, "POST", request.path, msgspec.Raw(await request.read()), headers=headers
        )
        return web.Response(body=content, content_type="application/json")

    async def _issue(self, request: web.Request) -> web.StreamResponse:
        async def do(manager: Manager, asked: IssueRequest) -> Issued:
            return await manager.authority.issue(asked)

        return await self._at_leader(request, IssueRequest, None, do)

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        caller = self._original(request, *ROLES)

        async def do(manager: Manager, asked: RenewRequest) -> Issued:
            return await manager.authority.renew(caller, asked)

        return await self._at_leader(request, RenewRequest, caller, do)

    async def _abandon(self, request: web.Request) -> web.StreamResponse:
        caller = self._original(request, *ROLES)

        async def do(manager: Manager, _: object) -> None:
            await manager.authority.abandon(caller)

        return await self._at_leader(request, object, caller, do)

    async def _raft_join(self, request: web.Request) -> web.StreamResponse:
        caller = self._original(request, MANAGER)

        async def do(manager: Manager, asked: RaftJoin) -> RaftJoined:
            return await manager.admit(caller, asked)

        return await self._at_leader(request, RaftJoin, caller, do)

    async def _raft_leave(self, request: web.Request) -> web.StreamResponse:
        caller = self._original(request, MANAGER, WORKER)

        async def do(manager: Manager, _: object) -> None:
            await manager.let_go(caller)

        return await self._at_leader(request, object, caller, do)

    async def _read_index(self, request: web.Request) -> web.StreamResponse:
        self._caller(request, MANAGER)
        return _json(await self._ready().read_index())

    async def _node_leave(self, request: web.Request) -> web.StreamResponse:
        caller = self._original(request, *ROLES)

        async def do(manager: Manager, _: object) -> None:
            await manager.node_left(caller)

        return await self._at_leader(request, object, caller, do)

    # What every manager does

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        """That somebody answers here, with the certificate that the caller asked for."""
        self._caller(request, MANAGER)
        return web.Response(text="OK")

    async def _ca_root(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._root, content_type="application/x-pem-file")

    async def _raft_stream(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request, MANAGER)
        manager = self._ready()
        with self._noted(request):
            take = functools.partial(manager.receive_raft, caller.node_id)
            return await accept_frames(request, take)

    async def _session(self, request: web.Request) -> web.StreamResponse:
        caller = self._caller(request, *ROLES)
        manager = self._ready()
        return await self._serve(
            request, lambda stream: manager.serve_agent(caller.node_id, stream), SESSION_LIMIT
        )

    async def _serve(
        self,
        request: web.Request,
        serve: Callable[[rpc.WebSocketStream], Awaitable[None]],
        limit: int = rpc.MESSAGE_LIMIT,
    ) -> web.StreamResponse:
        stream = await rpc.accept_stream(request, limit)
        with self._noted(request):
            try:
                with contextlib.suppress(ConnectionError):
                    await serve(stream)
            finally:
                await stream.close()
        return web.Response()

    @contextlib.contextmanager
    def _noted(self, request: web.Request) -> Iterator[None]:
        """Meanwhile `close` ends the connection of `request`."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the caller has gone")
        ended = self._streams[transport] = asyncio.Event()
        try:
            yield
        finally:
            del self._streams[transport]
            ended.set()


def _peer(request: web.Request) -> Identity | None:
    transport = request.transport
    return peer_identity(transport.get_extra_info("ssl_object")) if transport else None


async def _body(request: web.Request, kind: type[T]) -> T:
    raw = await request.read()
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the request's body is not what it should be: {error}") from error


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _refusal(error: ShoalError) -> web.Response:
    status = error.http_status
    if isinstance(error, Forbidden):
        log.info("another daemon was refused", extra={"reason": str(error)})
    response = _json({"message": str(error)})
    response.set_status(status)
    return response
