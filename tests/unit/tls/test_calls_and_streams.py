"""Calls and streams between daemons, on loopback."""

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from common import rpc, tls
from common.errors import Conflict, Forbidden, Unavailable
from common.frames import MESSAGE_LIMIT, accept_frames
from common.keys import new_request
from common.streams import StreamClosed
from common.tls import Credentials, Identity
from manager.ca import certificates

pytestmark = pytest.mark.real_time

NOW = dt.datetime.now(dt.UTC)
ROOT = certificates.new_root("c" * 25, NOW)


def credentials(node_id: str, role: str, root: tuple[bytes, bytes] = ROOT) -> Credentials:
    key, request = new_request()
    identity = Identity(node_id, role, "c" * 25)
    certificate = certificates.sign(*root, request, identity, NOW)
    return Credentials(root=root[0], certificate=certificate, key=key)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def server(handler: Handler, role: str = "manager") -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    context = tls.server_context(credentials("server", role))
    await web.SockSite(runner, listening, ssl_context=context).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def client(own: Credentials | None = None) -> AsyncIterator[rpc.Client]:
    made = rpc.Client(tls.client_context(ROOT[0], own))
    try:
        yield made
    finally:
        await made.close()


async def who(request: web.Request) -> web.Response:
    assert request.transport is not None
    found = tls.peer_identity(request.transport.get_extra_info("ssl_object"))
    return web.Response(text=str(found and found.node_id))


async def test_the_server_sees_who_calls() -> None:
    async with server(who) as address:
        async with client(credentials("caller", "worker")) as known:
            assert await known.call(address, "GET", "/") == b"caller"
        async with client() as nobody:
            assert await nobody.call(address, "GET", "/") == b"None"


async def test_only_a_manager_or_the_node_named_is_talked_to() -> None:
    """A worker's certificate does not make a manager, and nothing is sent before that is seen."""
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return web.Response()

    async with server(note, role="worker") as address, client() as caller:
        with pytest.raises(Forbidden, match="no manager"):
            await caller.call(address, "POST", "/", {"token": "secret"})
        with pytest.raises(Forbidden, match="not the node it should be"):
            await caller.call(address, "POST", "/", host="another")
        assert seen == []
        await caller.call(address, "POST", "/", host="server")


async def test_another_clusters_server_is_refused() -> None:
    foreign, _ = certificates.new_root("d" * 25, NOW)
    async with server(who) as address:
        caller = rpc.Client(tls.client_context(foreign))
        with pytest.raises(Forbidden, match="belongs to another cluster"):
            await caller.call(address, "GET", "/")
        await caller.close()


async def test_errors_keep_their_kind() -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"message": "name taken"}, status=409)

    async with server(refuse) as address, client() as caller:
        with pytest.raises(Conflict, match="name taken"):
            await caller.call(address, "GET", "/")
        with pytest.raises(Conflict, match="refused the connection"):
            await caller.stream(address, "/")


async def test_nobody_there_and_nobody_answering() -> None:
    async def sleep(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with server(sleep) as address, client() as caller:
        with pytest.raises(Unavailable, match="does not answer in time"):
            await caller.call(address, "GET", "/", timeout_s=0.1)
    async with client() as caller:
        with pytest.raises(Unavailable, match="cannot reach"):
            await caller.call(address, "GET", "/")


async def echo(request: web.Request) -> web.StreamResponse:
    stream = await rpc.accept_stream(request, limit=1024)
    assert stream.identity is not None
    with contextlib.suppress(StreamClosed):
        while True:
            await stream.send(await stream.receive())
    return web.Response()


async def test_messages_come_whole_and_in_order() -> None:
    async with server(echo) as address, client(credentials("caller", "worker")) as caller:
        stream = await caller.stream(address, "/")
        for message in (b"one", b"", b"x" * 1000):
            await stream.send(message)
            assert await stream.receive() == message
        await stream.close()
        await stream.close()
        with pytest.raises(StreamClosed):
            await stream.receive()
        with pytest.raises(StreamClosed):
            await stream.send(b"late")


async def test_a_message_that_is_too_long_ends_the_stream() -> None:
    async with server(echo) as address, client(credentials("caller", "worker")) as caller:
        stream = await caller.stream(address, "/")
        await stream.send(b"x" * 2000)
        with pytest.raises(StreamClosed):
            await stream.receive()
        await stream.close()


async def test_a_plain_request_where_a_stream_belongs() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await echo(request)
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            return web.json_response({"message": str(error)}, status=400)

    async with server(handler) as address, client() as caller:
        with pytest.raises(Exception, match="speaks WebSocket only"):
            await caller.call(address, "GET", "/")


async def test_a_renewed_certificate_is_used_at_once() -> None:
    context = tls.client_context(ROOT[0], credentials("before", "worker"))
    caller = rpc.Client(context)
    async with server(who) as address:
        assert await caller.call(address, "GET", "/") == b"before"
        tls.load_chain(context, credentials("after", "manager"))
        assert await caller.call(address, "GET", "/") == b"after"
        await caller.close()


async def test_frames_come_whole_and_in_order_however_they_are_cut() -> None:
    taken: list[bytes] = []
    all_here = asyncio.Event()
    sent = [b"one", b"", b"x" * 3_000_000, *(b"%d" % number for number in range(1000)), b"last"]

    def take(message: bytes) -> None:
        taken.append(message)
        if message == b"last":
            all_here.set()

    async def handler(request: web.Request) -> web.StreamResponse:
        return await accept_frames(request, take)

    async with server(handler) as address, client(credentials("caller", "manager")) as caller:
        sender = await caller.frames(address, "/", host="manager")
        identity = tls.peer_identity(sender.about("ssl_object"))
        assert identity is not None
        assert identity.node_id == "server"
        for message in sent:
            sender.send(message)
        async with asyncio.timeout(10):
            await all_here.wait()
        assert taken == sent
        sender.close()
        async with asyncio.timeout(10):
            await sender.lost()
        sender.send(b"late")
        assert sender.waiting_bytes == 0


async def test_frames_to_the_wrong_node_or_a_refusal_or_nobody_are_an_error() -> None:
    async with server(who) as address, client() as caller:
        with pytest.raises(ConnectionRefusedError, match="200 OK"):
            await caller.frames(address, "/", host="manager")
        with pytest.raises(OSError, match="certificate"):
            await caller.frames(address, "/", host="another")
    async with client() as caller:
        with pytest.raises(OSError, match="onnect"):
            await caller.frames(address, "/", host="manager")


async def test_a_frame_that_is_too_long_ends_the_connection() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await accept_frames(request, lambda message: None)

    async with server(handler) as address, client(credentials("caller", "manager")) as caller:
        sender = await caller.frames(address, "/", host="manager")
        assert sender._transport is not None
        sender._transport.write((MESSAGE_LIMIT + 1).to_bytes(4))
        async with asyncio.timeout(10):
            await sender.lost()
