"""dryRun over HTTP, and --dry-run on the command line."""

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from click.testing import CliRunner

from cli import main as entry
from cli.client import Client
from common.ids import Ids
from common.model.base import to_builtins
from manager.api.nodes import Nodes
from manager.api.services import Services
from manager.plan.plan import Planner
from node.api.nodes import NodeRoutes
from node.api.services import ServiceRoutes
from tests.support import build
from tests.support.memory_proposer import LoopClock, memory_store

PLAN = {
    "Steps": [
        {"Action": "move", "Service": "web", "Slot": 2, "FromNode": "m1", "ToNode": "m3"},
        {
            "Action": "wait",
            "Service": "db",
            "Slot": 0,
            "FromNode": "",
            "ToNode": "",
            "Reason": "no suitable node",
        },
    ],
    "Counts": {"create": 0, "move": 1, "wait": 1},
}


async def test_dry_runs_over_http() -> None:
    store = memory_store()
    clock = LoopClock()
    api = SimpleNamespace(
        services=Services(store, Ids(random.Random(1)), clock),
        nodes=Nodes(store, clock, list),
        planner=Planner(store, clock),
    )
    daemon: Any = SimpleNamespace(manager=SimpleNamespace(api=api))
    await store.update(lambda tx: tx.put(build.node("n1")))

    async def answer(handler: Any, path: str, id: str, body: object) -> Any:
        request = make_mocked_request(
            "POST", path, headers={"Content-Type": "application/json"}, match_info={"id": id}
        )
        request._read_bytes = json.dumps(body).encode()
        response = await handler(request)
        assert isinstance(response, web.Response)
        assert response.status == 200
        assert isinstance(response.body, bytes)
        return json.loads(response.body)

    services, nodes = ServiceRoutes(daemon), NodeRoutes(daemon)
    spec = to_builtins(build.service("web").spec)
    made = await answer(services.create, "/services/create?dryRun=1", "", spec)
    assert made["Steps"] == [
        {"Action": "create", "Service": "web", "Slot": 1, "FromNode": "", "ToNode": "n1"}
    ]
    assert not api.services.list({})
    web_ = await api.services.create(build.service("web").spec)
    changed = build.service("web", image="web:2").spec
    path = f"/services/web/update?version={web_.version.index}&dryRun=true"
    assert "Steps" in await answer(services.update, path, "web", to_builtins(changed))
    assert api.services.get("web").spec == web_.spec
    node = api.nodes.get("n1")
    path = f"/nodes/n1/update?version={node.version.index}&dryRun=1"
    asked = {"Role": "worker", "Availability": "drain"}
    assert "Counts" in await answer(nodes.update, path, "n1", asked)
    assert api.nodes.get("n1") == node
    await store.close()


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (["service", "create", "--dry-run", "--name", "a", "web:1"], "/services/create"),
        (["service", "update", "--dry-run", "--image", "b", "web"], "/services/s1/update"),
        (["service", "rollback", "--dry-run", "web"], "/services/s1/update"),
        (["service", "scale", "--dry-run", "web=3"], "/services/s1/update"),
        (["node", "drain", "--dry-run", "m1"], "/nodes/s1/update"),
        (["node", "update", "--dry-run", "--availability", "drain", "m1"], "/nodes/s1/update"),
    ],
)
def test_commands(monkeypatch: pytest.MonkeyPatch, line: list[str], path: str) -> None:
    sent: list[tuple[str, Any]] = []

    def get(self: Client, path: str, **query: object) -> Any:
        spec = {"TaskTemplate": {"ContainerSpec": {}}, "Mode": {"Replicated": {"Replicas": 1}}}
        return {"ID": "s1", "Version": {"Index": 7}, "Spec": spec}

    def post(self: Client, path: str, body: object = None, **query: object) -> Any:
        sent.append((path, query.get("dryRun")))
        return PLAN

    monkeypatch.setattr(Client, "get", get)
    monkeypatch.setattr(Client, "post", post)
    result = CliRunner().invoke(entry.shoal, line)
    assert result.exit_code == 0, result.output
    assert sent == [(path, True)]
    lines = result.output.splitlines()
    assert lines[1].split() == ["move", "web.2", "m1", "m3"]
    assert lines[2].split() == ["wait", "db", "-", "-", "no", "suitable", "node"]
    assert lines[3] == "Plan, nothing is changed: 1 to move; 1 for which no node fits"
    line[line.index("--dry-run")] = "--dry-run-json"
    assert json.loads(CliRunner().invoke(entry.shoal, line).output) == PLAN
