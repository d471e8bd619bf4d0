"""Who gets past the cluster listener, told by certificates alone."""

import contextlib
import datetime as dt
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from aiohttp import web

from common import rpc, tls
from common.errors import Forbidden, ShoalError
from common.keys import new_request
from common.streams import Stream
from common.tls import MANAGER, WORKER, Credentials, Identity
from manager.ca import certificates
from node.listener import Listener

pytestmark = pytest.mark.real_time

CLUSTER = "c" * 25
NOW = dt.datetime.now(dt.UTC)
ROOT = certificates.new_root(CLUSTER, NOW)


def credentials(node_id: str, role: str, cluster: str = CLUSTER) -> Credentials:
    key, request = new_request()
    certificate = certificates.sign(*ROOT, request, Identity(node_id, role, cluster), NOW)
    return Credentials(root=ROOT[0], certificate=certificate, key=key)


class Managers:
    """Takes sessions; knows one node as removed."""

    is_leader = True

    def __init__(self) -> None:
        self.served: list[str] = []
        self.authority = SimpleNamespace(check=self._check)

    def _check(self, identity: Identity) -> None:
        if identity.node_id == "removed":
            raise Forbidden("the node was removed from the cluster")

    async def serve_agent(self, node_id: str, stream: Stream) -> None:
        self.served.append(node_id)
        await stream.send(b"welcome")


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, Managers]]:
    client, managers = rpc.Client(tls.client_context(ROOT[0])), Managers()
    listener = Listener(CLUSTER, ROOT[0], client, web.Application)
    listener.manager = managers  # type: ignore[assignment]
    bound = socket.create_server(("127.0.0.1", 0))
    await listener.start(bound, tls.server_context(credentials("server", MANAGER)))
    try:
        yield f"127.0.0.1:{bound.getsockname()[1]}", managers
    finally:
        await listener.close()
        await client.close()


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(None, id="no certificate"),
        pytest.param(credentials("n1", WORKER, "d" * 25), id="another cluster's"),
        pytest.param(credentials("removed", WORKER), id="a removed node's"),
    ],
)
async def test_no_session_without_a_certificate_of_the_cluster(own: Credentials | None) -> None:
    """DIS 147: heartbeats, assignments and statuses go through a session only."""
    async with listening() as (address, managers):
        caller = rpc.Client(tls.client_context(ROOT[0], own))
        try:
            with pytest.raises(ShoalError) as refused:
                await caller.stream(address, "/session")
        finally:
            await caller.close()
        assert refused.value.http_status == 403
        assert managers.served == []


async def test_a_session_is_of_the_node_in_the_certificate() -> None:
    async with listening() as (address, managers):
        caller = rpc.Client(tls.client_context(ROOT[0], credentials("n1", WORKER)))
        stream = await caller.stream(address, "/session")
        assert await stream.receive() == b"welcome"
        await stream.close()
        await caller.close()
        assert managers.served == ["n1"]
