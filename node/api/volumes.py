"""/volumes: named storage of this node."""

from aiohttp import web

from common.model.base import Model
from node.api import body
from node.api.daemon import Daemon
from node.api.routes import Route, json_response


class VolumeCreate(Model, frozen=True, kw_only=True):
    """The body of `POST /volumes/create`."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] = {}
    labels: dict[str, str] = {}


class VolumeRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/volumes", self.index),
            Route("POST", "/volumes/create", self.create),
            Route("GET", "/volumes/{name}", self.inspect),
            Route("DELETE", "/volumes/{name}", self.remove),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        volumes = self._daemon.engine.volumes.list(body.filters(request))
        return json_response({"Volumes": volumes, "Warnings": None})

    async def create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, VolumeCreate)
        volume = await self._daemon.engine.volumes.create(
            spec.name, driver=spec.driver, opts=spec.driver_opts, labels=spec.labels
        )
        return json_response(volume, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._daemon.engine.volumes.inspect(request.match_info["name"]))

    async def remove(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.engine.volumes.remove(
            request.match_info["name"], force=body.flag(request, "force")
        )
        return web.Response(status=204)
