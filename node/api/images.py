"""/images: what containers are made from."""

import asyncio
import base64
import binascii
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from aiohttp import web

from common.errors import Invalid, ShoalError
from common.model.base import to_builtins
from common.model.image import RegistryAuth
from node.api import body
from node.api.daemon import Daemon
from node.api.networks import has_label
from node.api.routes import Route, json_response
from node.api.streaming import start
from worker.images.images import Image

PROGRESS_QUEUE = 256  # messages a slow client may lag behind; more make the pull wait for nothing
CHUNK = 1024 * 1024  # bytes of an archive handed on at once

Progress = Callable[[dict[str, Any]], None]


class ImageRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/images/json", self.index),
            Route("POST", "/images/create", self.create),
            Route("POST", "/images/load", self.load),
            Route("GET", "/images/get", self.save),
            Route("GET", "/images/{name:.+}/get", self.save),
            Route("GET", "/images/{name:.+}/json", self.inspect),
            Route("GET", "/images/{name:.+}/history", self.history),
            Route("POST", "/images/{name:.+}/tag", self.tag),
            Route("DELETE", "/images/{name:.+}", self.remove),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        body.refuse(request, "shared-size", "manifests")
        wanted = body.filters(request)
        images = [image for image in self._daemon.images.list() if _matches(image, wanted)]
        return json_response([summary(image) for image in images])

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        return json_response(_inspect(self._daemon.images.get(request.match_info["name"])))

    async def history(self, request: web.Request) -> web.StreamResponse:
        image = self._daemon.images.get(request.match_info["name"])
        rows = [
            {
                "Id": image.id if position == 0 else "<missing>",
                "Created": _seconds(line.get("created")),
                "CreatedBy": line.get("created_by") or "",
                "Tags": list(image.repo_tags) if position == 0 else None,
                "Size": line["size"],
                "Comment": line.get("comment") or "",
            }
            for position, line in enumerate(self._daemon.images.history(image.id))
        ]
        return json_response(rows)

    async def create(self, request: web.Request) -> web.StreamResponse:
        """`docker pull` (fromImage) and `docker import` (fromSrc)."""
        query = request.query
        images = self._daemon.images
        if source := query.get("fromSrc"):
            if source != "-":
                raise Invalid("fromSrc must be -: send the archive as the request's body")
            body.refuse(request, "platform")
            repository, tag = query.get("repo", ""), query.get("tag", "")

            async def import_archive(progress: Progress) -> None:
                image_id = await images.import_image(
                    _chunks(request),
                    repository,
                    tag,
                    query.get("message", ""),
                    tuple(query.getall("changes", [])),
                )
                progress({"status": image_id})

            return await _with_progress(request, import_archive)
        name = query.get("fromImage", "")
        if not name:
            raise Invalid("name the image in fromImage, or send an archive with fromSrc=-")
        reference = _with_tag(name, query.get("tag", ""))
        auth = registry_auth(request)

        async def pull(progress: Progress) -> None:
            await images.pull(
                reference, auth=auth, platform=query.get("platform", ""), progress=progress
            )

        return await _with_progress(request, pull)

    async def load(self, request: web.Request) -> web.StreamResponse:
        async def load_archive(progress: Progress) -> None:
            for name in await self._daemon.images.load(_chunks(request), progress):
                what = "Loaded image ID" if name.startswith("sha256:") else "Loaded image"
                progress({"stream": f"{what}: {name}\n"})

        return await _with_progress(request, load_archive)

    async def save(self, request: web.Request) -> web.StreamResponse:
        names = [request.match_info["name"]] if "name" in request.match_info else []
        names += request.query.getall("names", [])
        if not names:
            raise Invalid("name at least one image in the names parameter")
        for name in names:
            self._daemon.images.get(name)
        response = await start(request, "application/x-tar")
        async for chunk in self._daemon.images.save(names):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def tag(self, request: web.Request) -> web.StreamResponse:
        repository = request.query.get("repo", "")
        if not repository:
            raise Invalid("name the new tag's repository in the repo parameter")
        await self._daemon.images.tag(
            request.match_info["name"], repository, request.query.get("tag", "")
        )
        return web.Response(status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        engine = self._daemon.engine
        removed = await self._daemon.images.remove(
            request.match_info["name"],
            force=body.flag(request, "force"),
            in_use=lambda image_id: [
                container.id
                for container in engine.list(all=True)
                if container.image_id == image_id
            ],
        )
        return json_response(removed)


def registry_auth(request: web.Request) -> RegistryAuth | None:
    """The credentials in `X-Registry-Auth`, if any. Raises Invalid."""
    text = request.headers.get("X-Registry-Auth", "")
    if not text:
        return None
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw or b"{}", type=RegistryAuth)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise Invalid("X-Registry-Auth is not base64 of a JSON object") from error


def _with_tag(name: str, tag: str) -> str:
    if not tag:
        return name
    return f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_chunked(CHUNK):
        yield chunk


async def _with_progress(
    request: web.Request, work: Callable[[Progress], Awaitable[None]]
) -> web.StreamResponse:
    """Run `work` and send what it reports as JSON objects.

    An error before the first report is an ordinary answer with its status; one after it can only
    be the last object of the stream, as Docker has it. Reports beyond the bound are dropped:
    progress is for eyes.
    """
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(PROGRESS_QUEUE)

    def report(item: dict[str, Any]) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait(item)

    async def run() -> None:
        try:
            await work(report)
        finally:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    task = asyncio.get_running_loop().create_task(run(), name="image work")
    try:
        first = await queue.get()
        if first is None:
            await task  # raises what went wrong
        response = await start(request, "application/json")
        while first is not None:
            await response.write(msgspec.json.encode(first) + b"\r\n")
            first = await queue.get()
        try:
            await task
        except ShoalError as error:
            failure = {"errorDetail": {"message": str(error)}, "error": str(error)}
            await response.write(msgspec.json.encode(failure) + b"\r\n")
        await response.write_eof()
        return response
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def summary(image: Image) -> dict[str, Any]:
    """Its row in the list of images."""
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Created": int(image.created.timestamp()),
        "Size": image.size,
        "VirtualSize": image.size,
        "SharedSize": -1,
        "Containers": -1,
        "Labels": image.config.labels or {},
    }


def _seconds(text: object) -> int:
    """A time of an image's history as seconds since 1970; 0 for none."""
    try:
        return int(msgspec.convert(text, dt.datetime, strict=False).timestamp())
    except (msgspec.ValidationError, ValueError, OverflowError):
        return 0


def _inspect(image: Image) -> dict[str, Any]:
    told = json.loads(image.raw)
    history = told.get("history") or [{}]
    return {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": history[-1].get("comment") or "",
        "Created": to_builtins(image.created),
        "DockerVersion": "",
        "Author": told.get("author") or "",
        "Config": to_builtins(image.config),
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": {"Name": "overlay2", "Data": {}},
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Metadata": {},
    }


def _matches(image: Image, wanted: body.Filters) -> bool:
    checks: dict[str, Callable[[str], bool]] = {
        "reference": lambda value: any(_refers(tag, value) for tag in image.repo_tags),
        "dangling": lambda value: (value in ("1", "true")) == (not image.repo_tags),
        "label": lambda value: has_label(image.config.labels or {}, value),
    }
    if unknown := set(wanted) - set(checks):
        raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
    return all(any(checks[name](value) for value in values) for name, values in wanted.items())


def _refers(tag: str, pattern: str) -> bool:
    """Whether `pattern`, a repository or REPOSITORY:TAG with `*`, names `tag`."""
    repository = tag.rpartition(":")[0]
    return fnmatchcase(tag, pattern) or fnmatchcase(repository, pattern)
