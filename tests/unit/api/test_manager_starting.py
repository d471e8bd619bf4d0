"""A manager that has not read its log yet cannot say that something is not there."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.errors import NotFound
from node.api import app as api
from node.api.leader import on_leader
from node.api.networks import NetworkRoutes


def client(state: str, between: bool) -> "TestClient[web.Request, web.Application]":
    swarm = SimpleNamespace(state=state, is_between=between)

    async def remove(ref: str) -> None:
        raise NotFound(ref)

    networks = SimpleNamespace(list=list, remove=remove)
    daemon = cast(Any, SimpleNamespace(manager=None, swarm=swarm, networks=networks))
    routes = NetworkRoutes(daemon)
    app = web.Application(middlewares=[api._errors])
    app.router.add_get("/networks/{id}", routes.inspect)
    app.router.add_delete("/networks/{id}", routes.remove)
    app.router.add_get("/nodes", on_leader(daemon, routes.inspect))
    return TestClient(TestServer(app))


@pytest.mark.parametrize(
    ("state", "between", "network", "words"),
    [
        ("active", True, 503, "this manager is starting"),
        ("locked", False, 503, "Swarm is encrypted"),
        ("active", False, 404, "network app not found"),
        ("inactive", False, 404, "network app not found"),
    ],
)
async def test_what_is_said_without_a_manager(
    state: str, between: bool, network: int, words: str
) -> None:
    async with client(state, between) as asked:
        for answer in (await asked.get("/networks/app"), await asked.delete("/networks/app")):
            assert answer.status == network
            assert words in (await answer.json())["message"]
        answer = await asked.get("/nodes")
        assert answer.status == 503
        said = (await answer.json())["message"]
        assert said.startswith(words if network == 503 else "This node is not a swarm manager")
