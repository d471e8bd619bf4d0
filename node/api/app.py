"""The HTTP API: Docker Engine paths, JSON, errors and version negotiation.

A module per resource says what it serves (`routes`); here stands what is common to all: versions,
errors, and the hand-over of cluster requests to the leader.
"""

import logging

import msgspec
from aiohttp import web

from common.errors import Invalid, NotLeader, ShoalError
from node.api.body import BODY_LIMIT
from node.api.containers import ContainerRoutes
from node.api.daemon import Daemon
from node.api.distribution import DistributionRoutes
from node.api.exec import ExecRoutes
from node.api.files import FileRoutes
from node.api.images import ImageRoutes
from node.api.leader import on_leader
from node.api.metrics import MetricsRoutes
from node.api.networks import NetworkRoutes
from node.api.nodes import NodeRoutes
from node.api.pruning import PruneRoutes
from node.api.refused import RefusedRoutes
from node.api.routes import API_VERSION_ASKED, Handler, Route
from node.api.secrets import config_routes, secret_routes
from node.api.service_exec import ServiceExecRoutes
from node.api.services import ServiceRoutes
from node.api.swarm import SwarmRoutes
from node.api.system import API_VERSION, MIN_API_VERSION, SystemRoutes
from node.api.tasks import TaskRoutes
from node.api.usage import UsageRoutes
from node.api.volumes import VolumeRoutes
from node.forward import NOT_LEADER

log = logging.getLogger(__name__)


def make_app(daemon: Daemon) -> web.Application:
    """The application that serves `daemon`; may be listened on in several places at once."""
    app = web.Application(
        middlewares=[_errors, _versions], client_max_size=BODY_LIMIT, handler_args={}
    )
    for resource in (
        SystemRoutes(daemon),
        ContainerRoutes(daemon),
        ExecRoutes(daemon),
        FileRoutes(daemon),
        ImageRoutes(daemon),
        NetworkRoutes(daemon),
        VolumeRoutes(daemon),
        SwarmRoutes(daemon),
        NodeRoutes(daemon),
        ServiceRoutes(daemon),
        ServiceExecRoutes(daemon),
        secret_routes(daemon),
        config_routes(daemon),
        TaskRoutes(daemon),
        DistributionRoutes(daemon),
        PruneRoutes(daemon),
        UsageRoutes(daemon),
        MetricsRoutes(daemon),
        RefusedRoutes(),
    ):
        for route in resource.routes():
            handler = route.handler
            if route.on_leader:
                handler = on_leader(daemon, handler, stale=route.stale)
            _add(app, route, handler)
    return app


def _add(app: web.Application, route: Route, handler: Handler) -> None:
    for path in (route.path, r"/v{api_version:\d+\.\d+}" + route.path):
        app.router.add_route(route.method, path, handler)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as Docker's `{"message": …}` with the status of its kind."""
    try:
        return await handler(request)
    except ShoalError as error:
        response = error_response(str(error), error.http_status)
        if isinstance(error, NotLeader):
            response.headers[NOT_LEADER] = "1"
        return response
    except web.HTTPException as error:
        if error.status == 404:
            return error_response("page not found", 404)
        if error.status == 405:
            return error_response(f"{request.method} is not allowed here", 405)
        if error.status == 413:
            return error_response("the request's body is too large", 413)
        raise
    except ConnectionResetError:
        return error_response("the client has gone", 499)  # nobody hears it
    except Exception:
        log.exception("request failed", extra={"method": request.method, "path": request.path})
        return error_response("internal error; the daemon's log says more", 500)


def error_response(message: str, status: int) -> web.Response:
    return web.Response(
        body=msgspec.json.encode({"message": message}),
        status=status,
        content_type="application/json",
    )


@web.middleware
async def _versions(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse versions that we do not speak; tell ours with every answer."""
    text = request.match_info.get("api_version", "")
    if text:
        asked = tuple(int(part) for part in text.split("."))
        if asked > _parse(API_VERSION):
            raise Invalid(
                f"client version {text} is too new. Maximum supported API version is {API_VERSION}"
            )
        if asked < _parse(MIN_API_VERSION):
            raise Invalid(
                f"client version {text} is too old. Minimum supported API version is "
                f"{MIN_API_VERSION}, please upgrade your client to a newer version"
            )
    request[API_VERSION_ASKED] = _parse(text or API_VERSION)
    response = await handler(request)
    if not response.prepared:
        response.headers.setdefault("Api-Version", API_VERSION)
        response.headers.setdefault("Server", "Shoal")
    return response


def _parse(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
