"""/system/df: what takes up this node's disk."""

from collections import Counter
from typing import Any

from aiohttp import web

from common.errors import Invalid
from node.api.containers import sizes
from node.api.daemon import Daemon
from node.api.images import summary
from node.api.routes import Route, json_response

_KINDS = ("container", "image", "volume", "build-cache")


class UsageRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [Route("GET", "/system/df", self.usage)]

    async def usage(self, request: web.Request) -> web.StreamResponse:
        kinds = request.query.getall("type", []) or list(_KINDS)
        if unknown := set(kinds) - set(_KINDS):
            raise Invalid(f"type = {sorted(unknown)[0]!r} is not known: use {', '.join(_KINDS)}")
        shown: dict[str, Any] = {"BuildCache": [], "BuilderSize": 0}
        if "image" in kinds:
            shown |= self._images()
        if "container" in kinds:
            shown["Containers"] = await self._containers()
        if "volume" in kinds:
            shown["Volumes"] = await self._volumes()
        return json_response(shown)

    def _images(self) -> dict[str, Any]:
        images = self._daemon.images
        layers, found = images.layer_sizes(), images.list()
        users = Counter(c.image_id for c in self._daemon.engine.list(all=True))
        shared = Counter(layer for image in found for layer in set(image.layers))
        rows = []
        for image in found:
            common = sum(layers.get(layer, 0) for layer in set(image.layers) if shared[layer] > 1)
            rows.append(summary(image) | {"SharedSize": common, "Containers": users[image.id]})
        return {"LayersSize": sum(layers.values()), "Images": rows}

    async def _containers(self) -> list[dict[str, Any]]:
        engine = self._daemon.engine
        return [
            engine.summary(container) | await sizes(self._daemon, container)
            for container in engine.list(all=True)
        ]

    async def _volumes(self) -> list[dict[str, Any]]:
        volumes = self._daemon.engine.volumes
        rows = []
        for volume in volumes.list():
            name = volume["Name"]
            used = {"RefCount": len(volumes.users(name)), "Size": await volumes.size(name)}
            rows.append(volume | {"UsageData": used})
        return rows
