"""/exec: further processes in a running container."""

import msgspec
from aiohttp import web

from common.errors import Invalid
from common.model.base import Model
from node.api import body, detaching
from node.api.containers import size
from node.api.daemon import Daemon
from node.api.hijack import Duplex, attach_stream
from node.api.routes import Route, json_response
from worker.engine.exec import ExecConfig, ExecFailed
from worker.engine.streams import Nothing


class ExecStart(Model, frozen=True, kw_only=True):
    """The body of `POST /exec/{id}/start`."""

    detach: bool = False
    tty: bool = msgspec.field(default=False, name="Tty")
    console_size: tuple[int, int] | None = None


class ExecRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/containers/{id}/exec", self.create),
            Route("POST", "/exec/{id}/start", self.start),
            Route("POST", "/exec/{id}/resize", self.resize),
            Route("GET", "/exec/{id}/json", self.inspect),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        config = await body.read(request, ExecConfig)
        if not config.cmd:
            raise Invalid("Cmd is missing: No exec command specified")
        detaching.keys(config.detach_keys)
        exec_id = await self._daemon.engine.exec_create(request.match_info["id"], config)
        return json_response({"Id": exec_id}, status=201)

    async def start(self, request: web.Request) -> web.StreamResponse:
        options = await body.read(request, ExecStart)
        engine, exec_id = self._daemon.engine, request.match_info["id"]
        duplex: Duplex | None
        try:
            duplex = await engine.exec_start(exec_id, tty=options.tty, detach=options.detach)
        except ExecFailed as error:
            if options.detach:
                raise
            # As Docker: an attached client reads why, and then asks for the exit code.
            duplex = Nothing(((1, f"{error}\r\n".encode()),))
        if duplex is None:
            return web.Response(status=200)
        return await attach_stream(
            request,
            duplex,
            tty=options.tty,
            ended=lambda: engine.exec_wait(exec_id),
            detach_keys=detaching.keys(engine.exec_inspect(exec_id)["DetachKeys"]),
        )

    async def resize(self, request: web.Request) -> web.StreamResponse:
        height, width = size(request)
        await self._daemon.engine.exec_resize(request.match_info["id"], height, width)
        return web.Response(status=200)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._daemon.engine.exec_inspect(request.match_info["id"]))
