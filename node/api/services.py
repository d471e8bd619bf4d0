"""/services: what the user asks for."""

import base64
import binascii
import json
from typing import Any

from aiohttp import web
from msgspec.structs import replace

from common.errors import Invalid, NotImplementedHere, Unavailable
from common.model.base import to_builtins
from common.model.service import Service, ServiceSpec
from manager.manager import Manager
from node.api import body
from node.api.daemon import Daemon
from node.api.logs import cluster_logs
from node.api.routes import Route, json_response


class ServiceRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/services", self.index, on_leader=True, stale=True),
            Route("POST", "/services/create", self.create, on_leader=True),
            Route("GET", "/services/{id}", self.inspect, on_leader=True, stale=True),
            Route("DELETE", "/services/{id}", self.remove, on_leader=True),
            Route("POST", "/services/{id}/update", self.update, on_leader=True),
            Route("GET", "/services/{id}/history", self.history, on_leader=True, stale=True),
            Route("POST", "/services/{id}/rebalance", self.rebalance, on_leader=True),
            Route("GET", "/services/{id}/logs", self.logs, on_leader=True),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        api = manager(self._daemon).api.services
        services = api.list(body.filters(request))
        rows = [_shown(service) for service in services]
        if body.flag(request, "status"):
            statuses = api.statuses()
            for row in rows:
                row["ServiceStatus"] = to_builtins(statuses[row["ID"]])
        return json_response(rows)

    async def create(self, request: web.Request) -> web.StreamResponse:
        _refuse_credentials(request)
        spec = await body.read(request, ServiceSpec)
        api = manager(self._daemon).api
        if body.flag(request, "dryRun"):
            return json_response(await api.planner.plan(api.services.creation(spec)[1]))
        created = await api.services.create(spec)
        return json_response({"ID": created.id}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        api = manager(self._daemon).api.services
        service = api.get(request.match_info["id"])
        if body.flag(request, "insertDefaults"):
            service = api.with_defaults(service)
        return json_response(_shown(service))

    async def history(self, request: web.Request) -> web.StreamResponse:
        """The service's revisions, newest first; the first is the present one. Not Docker's."""
        found = manager(self._daemon).api.services.history(request.match_info["id"])
        return json_response(
            [
                {
                    "Revision": revision.number,
                    "CreatedAt": revision.at,
                    "Cause": revision.cause,
                    "Spec": to_builtins(spec),
                }
                for revision, spec in found
            ]
        )

    async def remove(self, request: web.Request) -> web.StreamResponse:
        await manager(self._daemon).api.services.remove(request.match_info["id"])
        return web.Response(status=200)

    async def update(self, request: web.Request) -> web.StreamResponse:
        _refuse_credentials(request)
        rollback = request.query.get("rollback", "")
        if rollback not in ("", "previous"):
            raise Invalid(f"rollback = {rollback!r} is not known; the only value is previous")
        spec = await body.read(request, ServiceSpec)
        api = manager(self._daemon).api
        asked = request.match_info["id"], body.version(request), spec, rollback
        back_to = body.number(request, "rollbackTo")
        if body.flag(request, "dryRun"):
            return json_response(await api.planner.plan(api.services.change(*asked, back_to)))
        await api.services.update(*asked, back_to)
        return json_response({})

    async def rebalance(self, request: web.Request) -> web.StreamResponse:
        """Have tasks moved to nodes that have fewer; answers with which. Not Docker's."""
        moved = await manager(self._daemon).api.rebalancing.service(
            request.match_info["id"],
            force=body.flag(request, "force"),
            dry=body.flag(request, "dryRun"),
        )
        return json_response(moved)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        service: Service = manager(self._daemon).api.services.get(request.match_info["id"])
        container = service.spec.task_template.container_spec
        tty = container is not None and container.tty
        return await cluster_logs(request, self._daemon, tty=tty, service_id=service.id)


def _shown(service: Service) -> dict[str, Any]:
    """As Docker has it: the revisions have a path of their own."""
    plain: dict[str, Any] = to_builtins(replace(service, revision=None, revisions=()))
    return plain


def manager(daemon: Daemon) -> Manager:
    """The manager of a request that is served on the leader."""
    if daemon.manager is None:
        raise Unavailable("this node stopped being a manager while the request was under way")
    return daemon.manager


def _refuse_credentials(request: web.Request) -> None:
    """Services cannot carry registry credentials to the nodes yet."""
    text = request.headers.get("X-Registry-Auth", "")
    if not text:
        return
    try:
        auth = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) or b"{}")
    except (binascii.Error, ValueError) as error:
        raise Invalid("X-Registry-Auth is not base64 of a JSON object") from error
    if auth and any(auth.get(name) for name in ("username", "identitytoken", "registrytoken")):
        raise NotImplementedHere(
            "services cannot carry registry credentials yet: leave out --with-registry-auth and "
            "pull the image on each node"
        )
