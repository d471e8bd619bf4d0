"""Attaching by WebSocket, with aiohttp's client, against a real server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from common.errors import ShoalError
from node.api import websocket
from tests.unit.api.test_hijacked_connections import Shouter

pytestmark = pytest.mark.real_time


class Site:
    """A server on a Unix socket and on a port, and how often a client left by keys."""

    def __init__(self, folder: Path, process: Shouter) -> None:
        self.path, self.left = folder / "api.sock", 0
        self._process = process
        app = web.Application()
        app.router.add_get("/ws", self._attach)
        self.runner = web.AppRunner(app)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        def leave() -> None:
            self.left += 1

        try:
            websocket.check(request)
        except ShoalError as error:
            return web.Response(text=str(error), status=error.http_status)
        tty = "tty" in request.query
        return await websocket.attach_websocket(request, self._process, tty=tty, detached=leave)

    async def start(self) -> str:
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.path)).start()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        host, port = self.runner.addresses[1][:2]
        return f"{host}:{port}"


@pytest.fixture
def process() -> Shouter:
    return Shouter()


@pytest.fixture
async def site(tmp_path: Path, process: Shouter) -> AsyncIterator[Site]:
    site = Site(tmp_path, process)
    yield site
    await site.runner.cleanup()


async def test_input_and_output(site: Site, process: Shouter) -> None:
    """Messages of both kinds are input; the end of output closes the connection."""
    await site.start()
    connector = aiohttp.UnixConnector(str(site.path))
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect("http://x/ws", origin="http://elsewhere") as client,
    ):
        assert await client.receive_bytes() == b"hello\n"
        await client.send_bytes(b"one\x10\x11")
        assert await client.receive_bytes() == b"ONE\x10\x11"
        await client.send_str("zwölf")
        assert await client.receive_bytes() == "zwölf".encode().upper()
        await process.close_stdin()
        assert await client.receive_bytes() == b"goodbye\n"
        assert (await client.receive()).type is WSMsgType.CLOSE
        assert client.close_code == 1000
    assert process.closed.is_set()
    assert site.left == 0


async def test_leaving(site: Site, process: Shouter) -> None:
    """By the keys, or by closing; the process is let go of and goes on."""
    place = await site.start()
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://{place}/ws?tty=1") as client:
            assert await client.receive_bytes() == b"hello\n"
            await client.send_bytes(b"a\x10")
            assert await client.receive_bytes() == b"A"
            await client.send_bytes(b"\x11")
            assert (await client.receive()).type is WSMsgType.CLOSE
        assert process.closed.is_set()
        assert site.left == 1
        process.closed.clear()
        async with session.ws_connect(f"http://{place}/ws?tty=1") as client:
            await client.close()
        await process.closed.wait()
        assert site.left == 1


async def test_who_may_connect(site: Site) -> None:
    """No page of another site, which a browser would let connect; nothing but WebSockets."""
    place = await site.start()
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        async with session.get(f"http://{place}/ws") as answer:
            assert answer.status == 400
        for origin in ("http://evil.example", "null"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"http://{place}/ws", origin=origin)
            assert refused.value.status == 403
        async with session.ws_connect(f"http://{place}/ws", origin=f"http://{place}"):
            pass
