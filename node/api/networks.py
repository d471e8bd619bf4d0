"""/networks: overlays of the cluster, and the node's own networks."""

import contextlib
from collections.abc import Callable
from typing import Any

from aiohttp import web

from common.errors import Forbidden, Invalid, NotFound, NotImplementedHere
from common.model.base import to_builtins
from common.model.network import Network, NetworkSpec
from node.api import body
from node.api.daemon import Daemon
from node.api.leader import catch_up, manager_or_none, mark_stale, on_leader
from node.api.routes import Route, json_response
from node.api.services import manager


class NetworkRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._inspect_overlay = on_leader(daemon, self._inspect, stale=True)
        self._create_overlay = on_leader(daemon, self._create)
        self._remove_overlay = on_leader(daemon, self._remove)

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/networks", self.index),
            Route("POST", "/networks/create", self.create),
            Route("GET", "/networks/{id}", self.inspect),
            Route("DELETE", "/networks/{id}", self.remove),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        wanted, here = body.filters(request), self._daemon.manager
        fresh = here is None or await catch_up(here)
        rows = [*self._daemon.networks.list(), *self._overlays()]
        answer = json_response([row for row in rows if matches(row, wanted)])
        return answer if here is None or fresh else mark_stale(answer, here)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        ref, scope = request.match_info["id"], request.query.get("scope", "")
        if scope != "swarm":
            with contextlib.suppress(NotFound):
                return json_response(find(self._daemon.networks.list(), ref))
        if scope == "local" or manager_or_none(self._daemon) is None:
            raise NotFound(f"network {ref} not found")
        return await self._inspect_overlay(request)

    async def _inspect(self, request: web.Request) -> web.StreamResponse:
        network = manager(self._daemon).api.networks.get(request.match_info["id"])
        return json_response(overlay_json(network))

    async def create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, NetworkSpec)
        if spec.driver != "overlay" and spec.scope != "swarm":
            raise NotImplementedHere(
                f"network driver {spec.driver or 'bridge'!r} cannot make networks yet; "
                "use --driver overlay on a manager"
            )
        return await self._create_overlay(request)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, NetworkSpec)
        network = await manager(self._daemon).api.networks.create(spec)
        return json_response({"Id": network.id, "Warning": ""}, status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        ref = request.match_info["id"]
        with contextlib.suppress(NotFound):
            local = find(self._daemon.networks.list(), ref)
            raise Forbidden(f"{local['Name']} is a pre-defined network and cannot be removed")
        if manager_or_none(self._daemon) is None:
            raise NotFound(f"network {ref} not found")
        return await self._remove_overlay(request)

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        await manager(self._daemon).api.networks.remove(request.match_info["id"])
        return web.Response(status=204)

    def _overlays(self) -> list[dict[str, Any]]:
        """The cluster's networks as this manager knows them."""
        here = self._daemon.manager
        return [] if here is None else [overlay_json(item) for item in here.api.networks.list({})]


def overlay_json(network: Network) -> dict[str, Any]:
    """An overlay as Docker shows it."""
    spec = network.spec
    options = {"com.docker.network.driver.overlay.vxlanid_list": str(network.vni)}
    return {
        "Name": spec.name,
        "Id": network.id,
        "Created": to_builtins(network.created_at),
        "Scope": "swarm",
        "Driver": "overlay",
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": to_builtins(network.ipam) | {"Config": to_builtins(network.ipam.config) or []},
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": (spec.options or {}) | (options if network.vni else {}),
        "Labels": spec.labels,
    }


def find(rows: list[dict[str, Any]], ref: str) -> dict[str, Any]:
    """The row whose id or name is `ref`, or whose id alone begins with it. Raises NotFound."""
    for row in rows:
        if ref in (row["Id"], row["Name"]):
            return row
    starting = [row for row in rows if ref and row["Id"].startswith(ref)]
    if len(starting) == 1:
        return starting[0]
    raise NotFound(f"network {ref} not found")


def matches(row: dict[str, Any], wanted: body.Filters) -> bool:
    """Whether a network passes Docker's filters."""
    labels: dict[str, str] = row.get("Labels") or {}
    predefined = row["Scope"] == "local" and row["Name"] in ("bridge", "host", "none")
    checks: dict[str, Callable[[str], bool]] = {
        "name": lambda value: value in row["Name"],
        "id": lambda value: row["Id"].startswith(value),
        "driver": lambda value: row["Driver"] == value,
        "scope": lambda value: row["Scope"] == value,
        "type": lambda value: (value == "builtin") == predefined,
        "label": lambda value: has_label(labels, value),
        "dangling": lambda value: value in ("0", "false"),
    }
    unknown = set(wanted) - set(checks)
    if unknown:
        raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
    return all(
        any(checks[name](value) for value in values) for name, values in wanted.items() if values
    )


def has_label(labels: dict[str, str], wanted: str) -> bool:
    """Whether `labels` have `wanted`, which is a name or NAME=VALUE."""
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)
