"""/networks: overlays of the cluster, and the node's own networks."""

import contextlib
from collections.abc import Callable
from typing import Any

from aiohttp import web

from common.errors import Invalid, NotFound, NotImplementedHere
from common.model.base import to_builtins
from common.model.container import EndpointConfig, NetworkConnect, NetworkDisconnect
from common.model.network import Network, NetworkSpec
from node.api import body
from node.api.daemon import Daemon
from node.api.leader import catch_up, manager_or_none, mark_stale, on_leader
from node.api.routes import Route, json_response
from node.api.services import manager
from node.forward import FORWARDED


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
            Route("POST", "/networks/{id}/connect", self.connect),
            Route("POST", "/networks/{id}/disconnect", self.disconnect),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        wanted, here = body.filters(request), self._daemon.manager
        fresh = here is None or await catch_up(here)
        rows = [*self._daemon.networks.list(), *self._overlays(wanted)]
        answer = json_response([row for row in rows if matches(row, wanted)])
        return answer if here is None or fresh else mark_stale(answer, here)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        ref, scope = request.match_info["id"], request.query.get("scope", "")
        if scope != "swarm" and FORWARDED not in request.headers:
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
        if spec.driver == "overlay" or spec.scope == "swarm":
            return await self._create_overlay(request)
        network_id = self._daemon.ids.hex(64)
        await self._daemon.networks.create(spec, network_id)
        return json_response({"Id": network_id, "Warning": ""}, status=201)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, NetworkSpec)
        network = await manager(self._daemon).api.networks.create(spec)
        return json_response({"Id": network.id, "Warning": ""}, status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        ref = request.match_info["id"]
        if FORWARDED not in request.headers:
            with contextlib.suppress(NotFound):
                await self._daemon.networks.remove(ref)
                return web.Response(status=204)
        if manager_or_none(self._daemon) is None:
            raise NotFound(f"network {ref} not found")
        return await self._remove_overlay(request)

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        await manager(self._daemon).api.networks.remove(request.match_info["id"])
        return web.Response(status=204)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        asked = await body.read(request, NetworkConnect)
        network = self._of_this_node(request.match_info["id"])
        point = asked.endpoint_config or EndpointConfig()
        await self._daemon.engine.connect(_container(asked.container), network, point)
        return web.Response(status=200)

    async def disconnect(self, request: web.Request) -> web.StreamResponse:
        asked = await body.read(request, NetworkDisconnect)
        ref = request.match_info["id"]
        with contextlib.suppress(NotFound):
            ref = self._of_this_node(ref)
        await self._daemon.engine.disconnect(_container(asked.container), ref)
        return web.Response(status=200)

    def _of_this_node(self, ref: str) -> str:
        """Its id. Raises NotFound, NotImplementedHere for one of the cluster."""
        try:
            return str(find(self._daemon.networks.list(), ref)["Id"])
        except NotFound:
            if any(ref in (row["Name"], row["Id"]) for row in self._overlays({})):
                raise NotImplementedHere(
                    f"network {ref} is the cluster's: only services can be on it"
                ) from None
            raise

    def _overlays(self, wanted: body.Filters) -> list[dict[str, Any]]:
        """The cluster's networks as this manager knows them; whether they are used, it says too."""
        here = self._daemon.manager
        if here is None:
            return []
        asked = {name: values for name, values in wanted.items() if name == "dangling"}
        return [overlay_json(item) for item in here.api.networks.list(asked)]


def _container(ref: str) -> str:
    if not ref:
        raise Invalid("Container is missing: name the container")
    return ref


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
        "dangling": lambda value: row["Scope"] != "local" or _is_dangling(row, value),
    }
    unknown = set(wanted) - set(checks)
    if unknown:
        raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
    return all(
        any(checks[name](value) for value in values) for name, values in wanted.items() if values
    )


def _is_dangling(row: dict[str, Any], value: str) -> bool:
    """Whether nobody is on a network of this node, if `value` is true; else whether somebody is."""
    if value not in ("1", "0", "true", "false"):
        raise Invalid(f"invalid filter 'dangling={value}': write true or false")
    return bool(row["Containers"]) == (value in ("0", "false"))


def has_label(labels: dict[str, str], wanted: str) -> bool:
    """Whether `labels` have `wanted`, which is a name or NAME=VALUE."""
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)
