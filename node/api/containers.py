"""/containers: what runs on this node."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from common.errors import Invalid, NotFound
from common.model.container import ContainerCreate
from node.api import body, detaching, websocket
from node.api.container_filters import selected
from node.api.daemon import Daemon
from node.api.hijack import attach_stream
from node.api.logs import container_logs
from node.api.routes import API_VERSION_ASKED, Route, json_response
from node.api.streaming import json_objects
from worker.engine.container import Container
from worker.engine.updating import ContainerUpdate
from worker.images.images import Image
from worker.images.manifest import Platform, platform

STATS_S = 1.0  # from one sample to the next


class ContainerRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        container = "/containers/{id}"
        return [
            Route("GET", "/containers/json", self.index),
            Route("POST", "/containers/create", self.create),
            Route("GET", f"{container}/json", self.inspect),
            Route("DELETE", container, self.remove),
            Route("POST", f"{container}/start", self.start),
            Route("POST", f"{container}/stop", self.stop),
            Route("POST", f"{container}/restart", self.restart),
            Route("POST", f"{container}/kill", self.kill),
            Route("POST", f"{container}/pause", self.pause),
            Route("POST", f"{container}/unpause", self.unpause),
            Route("POST", f"{container}/rename", self.rename),
            Route("POST", f"{container}/wait", self.wait),
            Route("POST", f"{container}/resize", self.resize),
            Route("POST", f"{container}/attach", self.attach),
            Route("GET", f"{container}/attach/ws", self.attach_websocket),
            Route("GET", f"{container}/logs", self.logs),
            Route("GET", f"{container}/top", self.top),
            Route("GET", f"{container}/stats", self.stats),
            Route("POST", f"{container}/update", self.update),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        engine = self._daemon.engine
        wanted = body.filters(request)
        limit = body.number(request, "limit") or 0
        show_all = (
            body.flag(request, "all") or limit > 0 or bool({"status", "exited"} & set(wanted))
        )
        found = selected(self._daemon, engine.list(all=show_all), wanted)[::-1]
        found = found[:limit] if limit > 0 else found
        rows = [engine.summary(container) for container in found]
        if body.flag(request, "size"):
            for row, container in zip(rows, found, strict=True):
                row |= await sizes(self._daemon, container)
        return json_response(rows)

    async def create(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, ContainerCreate)
        if not spec.image:
            raise Invalid("Image is missing: name the image that the container is made from")
        if wanted := request.query.get("platform"):
            check_platform(self._daemon.images.get(spec.image), wanted)
        container_id = await self._daemon.engine.create(spec, request.query.get("name", ""))
        return json_response({"Id": container_id, "Warnings": []}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        shown = engine.inspect(container.id)
        if body.flag(request, "size"):
            shown |= await sizes(self._daemon, container)
        return json_response(shown)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        if body.flag(request, "link"):
            raise Invalid("link = 1 is not supported: containers have no links here")
        await self._daemon.engine.remove(
            request.match_info["id"],
            force=body.flag(request, "force"),
            volumes=body.flag(request, "v"),
        )
        return web.Response(status=204)

    async def start(self, request: web.Request) -> web.StreamResponse:
        body.refuse(request, "detachKeys", "checkpoint", "checkpoint-dir")
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        if container.state in ("running", "paused"):
            return web.Response(status=304)
        await engine.start(container.id)
        return web.Response(status=204)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        if container.state not in ("running", "paused", "restarting"):
            return web.Response(status=304)
        await engine.stop(
            container.id,
            timeout_s=body.number(request, "t"),
            signal=request.query.get("signal") or None,
        )
        return web.Response(status=204)

    async def restart(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.engine.restart(
            request.match_info["id"],
            timeout_s=body.number(request, "t"),
            signal=request.query.get("signal") or None,
        )
        return web.Response(status=204)

    async def kill(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.engine.kill(
            request.match_info["id"], request.query.get("signal") or "SIGKILL"
        )
        return web.Response(status=204)

    async def pause(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.engine.pause(request.match_info["id"])
        return web.Response(status=204)

    async def unpause(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.engine.unpause(request.match_info["id"])
        return web.Response(status=204)

    async def rename(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("name", "")
        if not name:
            raise Invalid("name is missing: say the container's new name")
        await self._daemon.engine.rename(request.match_info["id"], name)
        return web.Response(status=204)

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """The head goes out at once: clients wait for it before they start the container."""
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        condition = request.query.get("condition") or "not-running"
        if condition not in ("not-running", "next-exit", "removed"):
            raise Invalid(f"condition = {condition!r} is not known")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        waiting = asyncio.get_running_loop().create_task(
            engine.wait(container.id, condition), name="container wait"
        )
        try:
            await asyncio.sleep(0)  # the wait has begun before the client hears of it
            await response.prepare(request)
            code = await waiting
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await response.write(msgspec.json.encode({"StatusCode": code}) + b"\n")
        await response.write_eof()
        return response

    async def resize(self, request: web.Request) -> web.StreamResponse:
        height, width = size(request)
        await self._daemon.engine.resize(request.match_info["id"], height, width)
        return web.Response(status=200)

    async def attach(self, request: web.Request) -> web.StreamResponse:
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        keys = detaching.keys(request.query.get("detachKeys", ""))
        duplex = await engine.attach(
            container.id,
            stdin=body.flag(request, "stdin"),
            stdout=body.flag(request, "stdout"),
            stderr=body.flag(request, "stderr"),
            logs=body.flag(request, "logs"),
            stream=body.flag(request, "stream"),
        )
        return await attach_stream(
            request,
            duplex,
            tty=container.config.tty,
            detach_keys=keys,
            detached=lambda: engine.tell(container, "detach"),
        )

    async def attach_websocket(self, request: web.Request) -> web.StreamResponse:
        """Clients older than 1.42 get all streams, whatever they name."""
        websocket.check(request)
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        keys = detaching.keys(request.query.get("detachKeys", ""))
        older = request[API_VERSION_ASKED] < (1, 42)
        duplex = await engine.attach(
            container.id,
            stdin=older or body.flag(request, "stdin"),
            stdout=older or body.flag(request, "stdout"),
            stderr=older or body.flag(request, "stderr"),
            logs=body.flag(request, "logs"),
            stream=body.flag(request, "stream"),
        )
        return await websocket.attach_websocket(
            request,
            duplex,
            tty=container.config.tty,
            detach_keys=keys,
            detached=lambda: engine.tell(container, "detach"),
        )

    async def logs(self, request: web.Request) -> web.StreamResponse:
        return await container_logs(request, self._daemon)

    async def top(self, request: web.Request) -> web.StreamResponse:
        found = await self._daemon.engine.top(
            request.match_info["id"], request.query.get("ps_args", "")
        )
        return json_response(found)

    async def update(self, request: web.Request) -> web.StreamResponse:
        changes = await body.read(request, ContainerUpdate)
        await self._daemon.engine.update(request.match_info["id"], changes)
        return json_response({"Warnings": None})

    async def stats(self, request: web.Request) -> web.StreamResponse:
        """A stream, or one sample: after a second's measuring, or at once (one-shot)."""
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        if body.flag(request, "stream", default=True):
            return await json_objects(request, self._stats(container.id))
        before = None
        if not body.flag(request, "one-shot"):
            before = await engine.stats(container.id)
            await asyncio.sleep(STATS_S)
        return json_response(await engine.stats(container.id, before))

    async def _stats(self, container_id: str) -> AsyncIterator[dict[str, object]]:
        before = None
        with contextlib.suppress(NotFound):  # it has been removed
            while True:
                before = await self._daemon.engine.stats(container_id, before)
                yield before
                await asyncio.sleep(STATS_S)


def check_platform(image: Image, wanted: str) -> None:
    """Raises NotFound, upon which clients pull the image that they want; Invalid."""
    own = Platform(os=image.os, architecture=image.architecture, variant=image.variant)
    if not own.suits(platform(wanted)):
        raise NotFound(f"image {image.id} is for {own}, not for the specified platform {wanted}")


async def sizes(daemon: Daemon, container: Container) -> dict[str, int]:
    """What a container's files take: its own, and with its image's."""
    own = await daemon.engine.files.size(container.id)
    return {"SizeRw": own, "SizeRootFs": own + daemon.images.get(container.image_id).size}


def size(request: web.Request) -> tuple[int, int]:
    """Height and width of a terminal, in characters."""
    height, width = body.number(request, "h"), body.number(request, "w")
    if height is None or width is None:
        raise Invalid("h and w are missing: say the terminal's height and width")
    return height, width
