"""/secrets and /configs: files that the cluster keeps for services. One class serves both."""

from collections.abc import Callable
from typing import Any, Generic

from aiohttp import web

from common.model.base import to_builtins
from common.model.secret import Config, ConfigSpec, Secret, SecretSpec
from manager.api.api import Api
from manager.api.secrets import Files, K, S
from node.api import body
from node.api.daemon import Daemon
from node.api.routes import Route, json_response
from node.api.services import manager


class FileRoutes(Generic[K, S]):
    """The routes of one kind, whose operations `files` picks from those of the cluster."""

    def __init__(
        self,
        daemon: Daemon,
        path: str,
        spec: type[S],
        files: Callable[[Api], Files[K, S]],
        shown: Callable[[K], dict[str, Any]],
    ) -> None:
        self._daemon = daemon
        self._path = path
        self._spec: type[S] = spec
        self._pick: Callable[[Api], Files[K, S]] = files
        self._shown: Callable[[K], dict[str, Any]] = shown

    def routes(self) -> list[Route]:
        one = f"{self._path}/{{id}}"
        return [
            Route("GET", self._path, self.index, on_leader=True, stale=True),
            Route("POST", f"{self._path}/create", self.create, on_leader=True),
            Route("GET", one, self.inspect, on_leader=True, stale=True),
            Route("DELETE", one, self.remove, on_leader=True),
            Route("POST", f"{one}/update", self.update, on_leader=True),
        ]

    @property
    def _files(self) -> Files[K, S]:
        return self._pick(manager(self._daemon).api)

    async def index(self, request: web.Request) -> web.StreamResponse:
        found = self._files.list(body.filters(request))
        return json_response([self._shown(item) for item in found])

    async def create(self, request: web.Request) -> web.StreamResponse:
        made = await self._files.create(await body.read(request, self._spec))
        return json_response({"ID": made.id}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._shown(self._files.get(request.match_info["id"])))

    async def remove(self, request: web.Request) -> web.StreamResponse:
        await self._files.remove(request.match_info["id"])
        return web.Response(status=204)

    async def update(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, self._spec)
        await self._files.update(request.match_info["id"], body.version(request), spec)
        return web.Response(status=200)


def secret_routes(daemon: Daemon) -> FileRoutes[Secret, SecretSpec]:
    return FileRoutes(daemon, "/secrets", SecretSpec, lambda api: api.secrets, _without_data)


def config_routes(daemon: Daemon) -> FileRoutes[Config, ConfigSpec]:
    return FileRoutes(daemon, "/configs", ConfigSpec, lambda api: api.configs, to_builtins)


def _without_data(secret: Secret) -> dict[str, Any]:
    """A secret's data is never shown."""
    data: dict[str, Any] = to_builtins(secret)
    data["Spec"].pop("Data", None)
    return data
