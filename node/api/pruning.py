"""POST …/prune: what nobody uses is removed, with how much room that made.

Nothing pruned is `null`, not an empty list: clients print the heading otherwise.
"""

import contextlib
import datetime as dt
import json
from typing import Any

from aiohttp import web

from common.errors import Conflict, Forbidden, Invalid, NotFound
from node.api import body
from node.api.body import Filters
from node.api.daemon import Daemon
from node.api.leader import on_leader
from node.api.networks import has_label
from node.api.routes import API_VERSION_ASKED, Route, json_response
from node.api.services import manager
from node.forward import FORWARDED
from worker.images.images import Image
from worker.volumes.store import ANONYMOUS

_AT_REST = ("created", "exited", "dead")


class PruneRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._prune_overlays = on_leader(daemon, self._overlays)

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/containers/prune", self.containers),
            Route("POST", "/images/prune", self.images),
            Route("POST", "/volumes/prune", self.volumes),
            Route("POST", "/networks/prune", self.networks),
            Route("POST", "/build/prune", self.builds),
        ]

    async def containers(self, request: web.Request) -> web.StreamResponse:
        engine, wanted = self._daemon.engine, _filters(request, "until", "label", "label!")
        until = _until(wanted, self._daemon.clock.now())
        gone, freed = [], 0
        for container in engine.list(all=True):
            old = until is None or container.record.created_at < until
            labels = container.config.labels or {}
            if container.state not in _AT_REST or not old or not _labelled(labels, wanted):
                continue
            with contextlib.suppress(NotFound, Conflict):  # removed or started meanwhile
                size = await engine.files.size(container.id)
                await engine.remove(container.id)
                gone.append(container.id)
                freed += size
        return json_response({"ContainersDeleted": gone or None, "SpaceReclaimed": freed})

    async def images(self, request: web.Request) -> web.StreamResponse:
        """Those without a name; with `dangling=false` all that no container is made of."""
        images = self._daemon.images
        wanted = _filters(request, "dangling", "until", "label", "label!")
        until = _until(wanted, self._daemon.clock.now())
        dangling = _flag(wanted, "dangling", default=True)
        before, gone = images.layer_sizes(), []
        for image in images.list():
            named = bool(image.repo_tags or image.repo_digests)
            old = until is None or image.created < until
            if (dangling and named) or not old or self._users(image.id):
                continue
            if _labelled(image.config.labels or {}, wanted):
                gone += await self._remove(image)
        freed = sum(before.values()) - sum(images.layer_sizes().values())
        return json_response({"ImagesDeleted": gone or None, "SpaceReclaimed": max(freed, 0)})

    def _users(self, image_id: str) -> list[str]:
        engine = self._daemon.engine
        return [c.id for c in engine.list(all=True) if c.image_id == image_id]

    async def _remove(self, image: Image) -> list[dict[str, str]]:
        try:
            return await self._daemon.images.remove(image.id, force=True, in_use=self._users)
        except (NotFound, Conflict):  # removed or used meanwhile
            return []

    async def volumes(self, request: web.Request) -> web.StreamResponse:
        """Anonymous ones; with `all`, and for clients older than 1.42, all that nobody uses."""
        volumes, wanted = self._daemon.engine.volumes, _filters(request, "all", "label", "label!")
        every = request[API_VERSION_ASKED] < (1, 42) or _flag(wanted, "all", default=False)
        gone, freed = [], 0
        for volume in volumes.list():
            name, labels = volume["Name"], volume["Labels"] or {}
            if volumes.users(name) or not (every or ANONYMOUS in labels):
                continue
            if _labelled(labels, wanted):
                with contextlib.suppress(NotFound, Conflict):  # removed or used meanwhile
                    size = await volumes.size(name)
                    await volumes.remove(name)
                    gone.append(name)
                    freed += max(size, 0)
        return json_response({"VolumesDeleted": gone or None, "SpaceReclaimed": freed})

    async def networks(self, request: web.Request) -> web.StreamResponse:
        """Those of this node that nobody is on; those of the cluster are its managers' to remove.

        A follower's answer is its leader's, which does not name what was removed on this node.
        """
        wanted = _filters(request, "until", "label", "label!")
        gone = await self._local_networks(wanted) if FORWARDED not in request.headers else []
        if self._daemon.manager is None:
            return json_response({"NetworksDeleted": gone or None})
        answer = await self._prune_overlays(request)
        if not gone or not isinstance(answer, web.Response) or answer.status != 200:
            return answer
        others = json.loads(answer.text or "{}").get("NetworksDeleted") or []
        return json_response({"NetworksDeleted": [*gone, *others]})

    async def _local_networks(self, wanted: Filters) -> list[str]:
        networks, until = self._daemon.networks, _until(wanted, self._daemon.clock.now())
        gone = []
        for network in networks.local.all():
            old = until is None or network.created < until
            if old and _labelled(network.labels, wanted):
                with contextlib.suppress(NotFound, Forbidden):  # in use
                    await networks.remove(network.id)
                    gone.append(network.name)
        return gone

    async def _overlays(self, request: web.Request) -> web.StreamResponse:
        networks, wanted = manager(self._daemon).api.networks, body.filters(request)
        until = _until(wanted, self._daemon.clock.now())
        gone = []
        for network in networks.list({}):
            old = until is None or network.created_at < until
            if network.spec.ingress or not old or not _labelled(network.spec.labels, wanted):
                continue
            with contextlib.suppress(NotFound, Conflict, Forbidden, Invalid):  # in use
                await networks.remove(network.id)
                gone.append(network.spec.name)
        return json_response({"NetworksDeleted": gone or None})

    async def builds(self, request: web.Request) -> web.StreamResponse:
        """There is no cache of builds, so that `docker system prune` has nothing to do here."""
        return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})


def _filters(request: web.Request, *known: str) -> Filters:
    wanted = body.filters(request)
    if unknown := set(wanted) - set(known):
        raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
    return wanted


def _flag(wanted: Filters, name: str, default: bool) -> bool:
    values = wanted.get(name)
    if not values:
        return default
    if set(values) - {"1", "0", "true", "false"}:
        raise Invalid(f"invalid filter '{name}={values[0]}': write true or false")
    return values[0] in ("1", "true")


def _until(wanted: Filters, now: dt.datetime) -> dt.datetime | None:
    values = wanted.get("until", [])
    if len(values) > 1:
        raise Invalid("more than one until filter specified")
    return body.moment(values[0], now) if values else None


def _labelled(labels: dict[str, str], wanted: dict[str, Any]) -> bool:
    """Whether it has all the labels asked for, and none of those of `label!`."""
    return all(has_label(labels, text) for text in wanted.get("label", ())) and not any(
        has_label(labels, text) for text in wanted.get("label!", ())
    )
