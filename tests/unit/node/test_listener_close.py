"""A closed listener serves nobody any more, not even on connections that were open before."""

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from common import rpc, tls
from common.keys import new_request
from common.tasks import end
from common.tls import MANAGER, Credentials, Identity
from manager.ca import certificates
from node.listener import Listener

pytestmark = pytest.mark.real_time

CLUSTER = "c" * 25
NOW = dt.datetime.now(dt.UTC)
ROOT = certificates.new_root(CLUSTER, NOW)


def credentials() -> Credentials:
    key, request = new_request()
    certificate = certificates.sign(*ROOT, request, Identity("server", MANAGER, CLUSTER), NOW)
    return Credentials(root=ROOT[0], certificate=certificate, key=key)


@contextlib.asynccontextmanager
async def open_connection() -> AsyncIterator[tuple[Listener, asyncio.StreamReader]]:
    """A listener, and a connection kept open on which one request was answered."""
    client = rpc.Client(tls.client_context(ROOT[0]))
    listener = Listener(CLUSTER, ROOT[0], client, web.Application)
    bound = socket.create_server(("127.0.0.1", 0))
    await listener.start(bound, tls.server_context(credentials()))
    reader, writer = await asyncio.open_connection(
        *bound.getsockname(), ssl=tls.client_context(ROOT[0]), server_hostname=MANAGER
    )
    try:
        writer.write(b"GET /ca/root HTTP/1.1\r\nHost: manager\r\n\r\n")
        assert (await reader.readline()).endswith(b"200 OK\r\n")
        await reader.readuntil(b"-----END CERTIFICATE-----\n")
        yield listener, reader
    finally:
        writer.close()
        await listener.close()
        await client.close()


async def test_idle_connections_are_closed() -> None:
    async with open_connection() as (listener, reader), asyncio.timeout(5):
        await listener.close()
        assert await reader.read() == b""


@pytest.mark.parametrize("steps", range(8))
async def test_idle_connections_are_closed_also_if_closing_is_cancelled(steps: int) -> None:
    """As when a membership is ended while its manager part is just ending by itself."""
    async with open_connection() as (listener, reader), asyncio.timeout(5):
        closing = asyncio.get_running_loop().create_task(listener.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        await end(closing)
        await listener.close()
        assert await reader.read() == b""
