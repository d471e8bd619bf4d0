"""/secrets and /configs: files that the cluster keeps for services."""

from typing import Any

from aiohttp import web

from common.model.base import to_builtins
from common.model.secret import Config, ConfigSpec, Secret, SecretSpec
from node.api import body
from node.api.daemon import Daemon
from node.api.routes import Route, json_response
from node.api.services import manager


class SecretRoutes:
    """Data is never shown."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/secrets", self.index, on_leader=True, stale=True),
            Route("POST", "/secrets/create", self.create, on_leader=True),
            Route("GET", "/secrets/{id}", self.inspect, on_leader=True, stale=True),
            Route("DELETE", "/secrets/{id}", self.remove, on_leader=True),
            Route("POST", "/secrets/{id}/update", self.update, on_leader=True),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        found = manager(self._daemon).api.secrets.list(body.filters(request))
        return json_response([_without_data(secret) for secret in found])

    async def create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, SecretSpec)
        made = await manager(self._daemon).api.secrets.create(spec)
        return json_response({"ID": made.id}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        found = manager(self._daemon).api.secrets.get(request.match_info["id"])
        return json_response(_without_data(found))

    async def remove(self, request: web.Request) -> web.StreamResponse:
        await manager(self._daemon).api.secrets.remove(request.match_info["id"])
        return web.Response(status=204)

    async def update(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, SecretSpec)
        await manager(self._daemon).api.secrets.update(
            request.match_info["id"], body.version(request), spec
        )
        return web.Response(status=200)


class ConfigRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/configs", self.index, on_leader=True, stale=True),
            Route("POST", "/configs/create", self.create, on_leader=True),
            Route("GET", "/configs/{id}", self.inspect, on_leader=True, stale=True),
            Route("DELETE", "/configs/{id}", self.remove, on_leader=True),
            Route("POST", "/configs/{id}/update", self.update, on_leader=True),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        found: list[Config] = manager(self._daemon).api.configs.list(body.filters(request))
        return json_response([to_builtins(config) for config in found])

    async def create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, ConfigSpec)
        made = await manager(self._daemon).api.configs.create(spec)
        return json_response({"ID": made.id}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        found: Config = manager(self._daemon).api.configs.get(request.match_info["id"])
        return json_response(to_builtins(found))

    async def remove(self, request: web.Request) -> web.StreamResponse:
        await manager(self._daemon).api.configs.remove(request.match_info["id"])
        return web.Response(status=204)

    async def update(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, ConfigSpec)
        await manager(self._daemon).api.configs.update(
            request.match_info["id"], body.version(request), spec
        )
        return web.Response(status=200)


def _without_data(secret: Secret) -> dict[str, Any]:
    data: dict[str, Any] = to_builtins(secret)
    data["Spec"].pop("Data", None)
    return data
