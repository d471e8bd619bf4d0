"""/containers/{id}/archive, changes, export, and /commit: the files of containers."""

import asyncio
import base64
import contextlib
import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from common.errors import Invalid, Unavailable
from common.model.base import to_builtins
from common.model.container import ContainerConfig
from common.model.image import ImageConfig
from common.references import Reference, with_tag
from node.api import body
from node.api.daemon import Daemon
from node.api.routes import Route, json_response
from node.api.streaming import Sink, timestamp
from worker.engine.container import Container
from worker.engine.packing import PathStat
from worker.images.changes import apply
from worker.images.committing import Note

CHUNK = 1024 * 1024  # bytes of an archive handed on at once
IDLE_S = 60.0  # how long a client may keep a copy waiting: a container at rest is held meanwhile
STAT_HEADER = "X-Docker-Container-Path-Stat"


class FileRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        archive = "/containers/{id}/archive"
        return [
            Route("HEAD", archive, self.stat),
            Route("GET", archive, self.read),
            Route("PUT", archive, self.write),
            Route("GET", "/containers/{id}/changes", self.changes),
            Route("GET", "/containers/{id}/export", self.export),
            Route("POST", "/commit", self.commit),
        ]

    async def stat(self, request: web.Request) -> web.StreamResponse:
        found = await self._daemon.engine.files.stat(request.match_info["id"], _path(request))
        return web.Response(headers={STAT_HEADER: stat_header(found)})

    async def read(self, request: web.Request) -> web.StreamResponse:
        files, ref, path = self._daemon.engine.files, request.match_info["id"], _path(request)
        found = await files.stat(ref, path)
        return await _send_tar(request, files.read(ref, path), {STAT_HEADER: stat_header(found)})

    async def write(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.engine.files.write(
            request.match_info["id"],
            _path(request),
            _received(request),
            keep_kinds=body.flag(request, "noOverwriteDirNonDir"),
            to_user=body.flag(request, "copyUIDGID"),
        )
        return web.Response(status=200)

    async def changes(self, request: web.Request) -> web.StreamResponse:
        found = await self._daemon.engine.files.changes(request.match_info["id"])
        return json_response([{"Path": one.path, "Kind": one.kind} for one in found] or None)

    async def export(self, request: web.Request) -> web.StreamResponse:
        container = self._daemon.engine.find(request.match_info["id"])
        response = await _send_tar(request, self._daemon.engine.files.export(container.id), {})
        self._daemon.engine.tell(container, "export")
        return response

    async def commit(self, request: web.Request) -> web.StreamResponse:
        """The container is paused meanwhile, unless that is declined."""
        query, engine = request.query, self._daemon.engine
        container = engine.find(query.get("container", ""))
        named = _name(query.get("repo", ""), query.get("tag", ""))
        own = image_settings(container, await _config(request))
        settings = apply(_lines(query.getall("changes", [])), own)
        note = Note(
            created=_now(self._daemon.clock.now()),
            created_by=" ".join((container.record.path, *container.record.args)),
            author=query.get("author", ""),
            comment=query.get("comment", ""),
        )
        async with contextlib.AsyncExitStack() as stack:
            if body.flag(request, "pause", default=True):
                await stack.enter_async_context(engine.frozen(container.id))
            layer = engine.files.layer(container.id)
            chunks = await stack.enter_async_context(contextlib.aclosing(layer))
            image_id = await self._daemon.images.commit(
                container.image_id, chunks, settings, note, named
            )
        told = {"imageID": image_id, "imageRef": named[0].familiar if named else ""}
        engine.tell(container, "commit", {"comment": note.comment} | told)
        return json_response({"Id": image_id}, status=201)


def _path(request: web.Request) -> str:
    path = request.query.get("path", "")
    if not path:
        raise Invalid("path is missing: name a file or folder of the container")
    return path


def stat_header(found: PathStat) -> str:
    """What the docker CLI reads before it copies."""
    shown = {
        "name": found.name,
        "size": found.size,
        "mode": found.mode,
        "mtime": timestamp(found.mtime_ns),
        "linkTarget": found.link_target,
    }
    return base64.b64encode(msgspec.json.encode(shown)).decode()


async def _send_tar(
    request: web.Request, chunks: AsyncGenerator[bytes, None], headers: dict[str, str]
) -> web.StreamResponse:
    """What fails before the first byte is an ordinary error."""
    async with contextlib.aclosing(chunks) as source:
        first = await anext(source, b"")
        async with Sink(request, "application/x-tar", headers, IDLE_S) as sink:
            await sink.write(first)
            async for chunk in source:
                await sink.write(chunk)
        return sink.response


async def _received(request: web.Request) -> AsyncIterator[bytes]:
    """The request's body; raises Unavailable for a client that falls silent."""
    chunks = request.content.iter_chunked(CHUNK)
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                chunk = await anext(chunks, b"")
        except TimeoutError:
            raise Unavailable(f"the client sent nothing for {IDLE_S:g} s") from None
        if not chunk:
            return
        yield chunk


def _name(repository: str, tag: str) -> list[Reference]:
    return [with_tag(repository, tag)] if repository else []


def _lines(changes: list[str]) -> list[str]:
    """The docker CLI sends one parameter for each; docker-py joins them with line ends."""
    return [line for change in changes for line in change.splitlines() if line.strip()]


async def _config(request: web.Request) -> ContainerConfig | None:
    raw = await request.read()
    if not raw or raw.strip() == b"null":
        return None
    return await body.read(request, ContainerConfig)


def image_settings(container: Container, own: ContainerConfig | None) -> dict[str, Any]:
    """The run-time defaults that an image of `container` has; `own` fields go before."""
    names = [field.encode_name for field in msgspec.structs.fields(ImageConfig)]
    sent = to_builtins(own) if own is not None else {}
    known = to_builtins(container.config)
    chosen = {name: sent.get(name) or known.get(name) for name in names}
    return {name: value for name, value in chosen.items() if value}


def _now(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
