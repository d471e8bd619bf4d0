"""Connections that stop being HTTP, against a real server on a Unix socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from node.api.hijack import attach_stream
from node.api.routes import API_VERSION_ASKED
from node.api.streaming import frame

pytestmark = pytest.mark.real_time


class Shouter:
    """A process that shouts back what it is told, and says goodbye at the end of its input."""

    def __init__(self) -> None:
        self._output: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.deaf = False
        self._output.put_nowait((1, b"hello\n"))

    async def read(self) -> tuple[int, bytes] | None:
        return await self._output.get()

    async def write(self, data: bytes) -> None:
        self._output.put_nowait((1, data.upper()))

    async def close_stdin(self) -> None:
        if self.deaf:
            return
        self._output.put_nowait((2, b"goodbye\n"))
        self._output.put_nowait(None)

    async def close(self) -> None:
        self.closed.set()


@pytest.fixture
def process() -> Shouter:
    return Shouter()


@pytest.fixture
async def socket(tmp_path: Path, process: Shouter) -> AsyncIterator[Path]:
    async def start(request: web.Request) -> web.StreamResponse:
        request[API_VERSION_ASKED] = (1, 43)
        return await attach_stream(request, process, tty="tty" in request.query)

    app = web.Application()
    app.router.add_post("/start", start)
    runner = web.AppRunner(app)
    await runner.setup()
    path = tmp_path / "api.sock"
    await web.UnixSite(runner, str(path)).start()
    yield path
    await runner.cleanup()


async def call(
    path: Path, query: str = "", headers: str = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(
        f"POST /start{query} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 2\r\n\r\n{{}}".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    return head, reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_input_and_output_flow_until_the_output_ends(socket: Path, process: Shouter) -> None:
    """The end of the client's bytes is only a half-close: the goodbye still comes."""
    head, reader, writer = await call(socket)
    assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
    assert b"multiplexed-stream" in head
    assert await reader.readexactly(14) == frame(1, b"hello\n")
    writer.write(b"well\n")
    assert await reader.readexactly(13) == frame(1, b"WELL\n")
    writer.write_eof()
    assert await reader.read() == frame(2, b"goodbye\n")
    assert process.closed.is_set()
    await close(writer)


async def test_a_client_that_does_not_ask_to_upgrade_gets_200(socket: Path) -> None:
    head, reader, writer = await call(socket, headers="")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    writer.write_eof()
    assert await reader.read() == frame(1, b"hello\n") + frame(2, b"goodbye\n")
    await close(writer)


async def test_a_terminal_is_not_framed(socket: Path) -> None:
    head, reader, writer = await call(socket, "?tty=1")
    assert b"raw-stream" in head
    writer.write_eof()
    assert await reader.read() == b"hello\ngoodbye\n"
    await close(writer)


async def test_a_client_that_goes_away_lets_go_of_the_process(
    socket: Path, process: Shouter
) -> None:
    process.deaf = True
    _, _, writer = await call(socket)
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    async with asyncio.timeout(5):
        await process.closed.wait()
