"""/containers: what runs on this node."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from common.errors import Invalid
from common.model.container import ContainerCreate
from node.api import body
from node.api.daemon import Daemon
from node.api.hijack import attach_stream
from node.api.logs import container_logs
from node.api.networks import has_label
from node.api.routes import Route, json_response
from node.api.streaming import json_objects


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
            Route("GET", f"{container}/logs", self.logs),
            Route("GET", f"{container}/top", self.top),
            Route("GET", f"{container}/stats", self.stats),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        body.refuse(request, "size")
        engine = self._daemon.engine
        wanted = body.filters(request)
        limit = body.number(request, "limit")
        show_all = body.flag(request, "all") or limit is not None or "status" in wanted
        rows = [engine.summary(container) for container in engine.list(all=show_all)]
        rows = [row for row in rows if matches(row, wanted)]
        rows.sort(key=lambda row: row["Created"], reverse=True)
        return json_response(rows[:limit] if limit and limit > 0 else rows)

    async def create(self, request: web.Request) -> web.StreamResponse:
        body.refuse(request, "platform")
        spec = await body.read(request, ContainerCreate)
        if not spec.image:
            raise Invalid("Image is missing: name the image that the container is made from")
        container_id = await self._daemon.engine.create(spec, request.query.get("name", ""))
        return json_response({"Id": container_id, "Warnings": []}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        body.refuse(request, "size")
        return json_response(self._daemon.engine.inspect(request.match_info["id"]))

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
        body.refuse(request, "signal")
        timeout_s = body.number(request, "t")
        await self._daemon.engine.restart(request.match_info["id"], timeout_s)
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
        body.refuse(request, "detachKeys")
        engine = self._daemon.engine
        container = engine.find(request.match_info["id"])
        duplex = await engine.attach(
            container.id,
            stdin=body.flag(request, "stdin"),
            stdout=body.flag(request, "stdout"),
            stderr=body.flag(request, "stderr"),
            logs=body.flag(request, "logs"),
            stream=body.flag(request, "stream"),
        )
        return await attach_stream(request, duplex, tty=container.config.tty)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        return await container_logs(request, self._daemon)

    async def top(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("ps_args", "-ef") not in ("-ef", ""):
            raise Invalid("ps_args other than -ef are not supported")
        return json_response(await self._daemon.engine.top(request.match_info["id"]))

    async def stats(self, request: web.Request) -> web.StreamResponse:
        container = self._daemon.engine.find(request.match_info["id"])
        if not body.flag(request, "stream", default=True):
            return json_response(await self._daemon.engine.stats(container.id))
        return await json_objects(request, self._stats(container.id))

    async def _stats(self, container_id: str) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                yield await self._daemon.engine.stats(container_id)
                await asyncio.sleep(1)  # docker stats shows one sample a second


def size(request: web.Request) -> tuple[int, int]:
    """Height and width of a terminal, in characters."""
    height, width = body.number(request, "h"), body.number(request, "w")
    if height is None or width is None:
        raise Invalid("h and w are missing: say the terminal's height and width")
    return height, width


def matches(row: dict[str, Any], wanted: body.Filters) -> bool:
    """Whether a row of the container list passes Docker's filters."""
    checks: dict[str, Callable[[str], bool]] = {
        "id": lambda value: row["Id"].startswith(value),
        "name": lambda value: any(value.lstrip("/") in name.lstrip("/") for name in row["Names"]),
        "status": lambda value: row["State"] == value,
        "label": lambda value: has_label(row["Labels"], value),
        "ancestor": lambda value: (
            value in (row["Image"], row["ImageID"]) or row["Image"].removesuffix(":latest") == value
        ),
        "network": lambda value: value in row["NetworkSettings"]["Networks"],
        "health": lambda value: row.get("Health", "none") == value,
        "is-task": lambda value: (
            (value in ("1", "true")) == ("com.docker.swarm.task.id" in row["Labels"])
        ),
    }
    if unknown := set(wanted) - set(checks):
        raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
    return all(
        any(checks[name](value) for value in values) for name, values in wanted.items() if values
    )
