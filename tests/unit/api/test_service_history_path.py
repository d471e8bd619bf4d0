"""/services/{id}/history, and the way back, as the command line asks for them."""

import json
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from click.testing import CliRunner

from cli import main as entry
from cli.client import Client
from cli.revisions import changed
from common.errors import Invalid
from common.ids import Ids
from manager.api.services import Services
from node.api.services import ServiceRoutes
from tests.support import build
from tests.support.memory_proposer import LoopClock, memory_store


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    store = memory_store()
    yield Services(store, Ids(random.Random(1)), LoopClock())
    await store.close()


def routes(services: Services) -> ServiceRoutes:
    api = SimpleNamespace(services=services)
    return ServiceRoutes(SimpleNamespace(manager=SimpleNamespace(api=api)))  # type: ignore[arg-type]


async def answer(handler: Any, query: str = "", body: object = None) -> Any:
    request = make_mocked_request(
        "POST",
        f"/services/web{query}",
        headers={"Content-Type": "application/json"},
        match_info={"id": "web"},
    )
    request._read_bytes = json.dumps(body).encode()
    response = await handler(request)
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


async def test_history_and_back(services: Services) -> None:
    one = await services.create(build.service("web", image="web:1").spec)
    two = await services.update("web", one.version.index, build.service("web", image="web:2").spec)
    served = routes(services)
    query = f"?version={two.version.index}&rollbackTo="
    with pytest.raises(Invalid, match="rollbackTo = 'x' is not a whole number"):
        await answer(served.update, query + "x", {"Name": "web"})
    assert await answer(served.update, query + "1", {"Name": "web"}) == {}
    found = await answer(served.history)
    assert [(item["Revision"], item["Cause"]) for item in found] == [
        (3, "rollback to 1"),
        (2, "update"),
        (1, "create"),
    ]
    assert found[1]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "web:2"
    shown = await answer(served.inspect)
    assert not {"Revision", "Revisions"} & set(shown)
    assert not {"Revision", "Revisions"} & set((await answer(served.index))[0])


def test_what_changed_is_named() -> None:
    old = {"Labels": {"a": "1"}, "TaskTemplate": {"ContainerSpec": {"Image": "a", "Env": ["A=1"]}}}
    new = {"Labels": {"a": "1"}, "TaskTemplate": {"ContainerSpec": {"Image": "b"}, "Force": 1}}
    assert list(changed(old, new)) == ["Env", "Image", "Force"]


def test_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, object]] = []
    specs = [
        {"TaskTemplate": {"ContainerSpec": {"Image": name, "Env": [name]}}} for name in ("b", "a")
    ]
    history = [
        {"Revision": 2, "CreatedAt": "2020-01-01T00:00:00Z", "Cause": "update", "Spec": specs[0]},
        {"Revision": 1, "CreatedAt": "2020-01-01T00:00:00Z", "Cause": "create", "Spec": specs[1]},
    ]

    def get(self: Client, path: str, **query: object) -> Any:
        if path == "/services/web/history":
            return history
        return {"ID": "s1", "Version": {"Index": 7}, "Spec": specs[0]}

    def post(self: Client, path: str, body: object = None, **query: object) -> None:
        sent.append(query)

    monkeypatch.setattr(Client, "get", get)
    monkeypatch.setattr(Client, "post", post)
    shown = CliRunner().invoke(entry.shoal, ["service", "history", "web"])
    assert shown.exit_code == 0, shown.output
    first, second, third = (line.split() for line in shown.output.splitlines())
    assert first == ["REVISION", "CREATED", "CAUSE", "IMAGE", "CHANGED"]
    assert second[-5:] == ["ago", "update", "b", "Env,", "Image"]
    assert third[-3:] == ["ago", "create", "a"]
    for line in (["--to", "1"], []):
        done = CliRunner().invoke(entry.shoal, ["service", "rollback", "-d", *line, "web"])
        assert done.exit_code == 0, done.output
    assert sent == [
        {"version": 7, "rollback": None, "rollbackTo": 1},
        {"version": 7, "rollback": "previous", "rollbackTo": None},
    ]
