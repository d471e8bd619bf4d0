"""/nodes: the machines of the cluster."""

from aiohttp import web

from common.model.base import to_builtins
from common.model.node import NodeSpec
from node.api import body
from node.api.daemon import Daemon
from node.api.routes import Route, json_response
from node.api.services import manager


class NodeRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/nodes", self.index, on_leader=True, stale=True),
            Route("GET", "/nodes/{id}", self.inspect, on_leader=True, stale=True),
            Route("DELETE", "/nodes/{id}", self.remove, on_leader=True),
            Route("POST", "/nodes/{id}/update", self.update, on_leader=True),
            Route("POST", "/nodes/{id}/rebalance", self.rebalance, on_leader=True),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        nodes = manager(self._daemon).api.nodes.list(body.filters(request))
        return json_response([to_builtins(node) for node in nodes])

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        node = manager(self._daemon).api.nodes.get(request.match_info["id"])
        return json_response(to_builtins(node))

    async def remove(self, request: web.Request) -> web.StreamResponse:
        await manager(self._daemon).api.nodes.remove(
            request.match_info["id"], force=body.flag(request, "force")
        )
        return web.Response(status=200)

    async def rebalance(self, request: web.Request) -> web.StreamResponse:
        """Have tasks moved to this node, if it has fewer; answers with which. Not Docker's."""
        moved = await manager(self._daemon).api.rebalancing.node(
            request.match_info["id"], dry=body.flag(request, "dryRun")
        )
        return json_response(moved)

    async def update(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, NodeSpec)
        api = manager(self._daemon).api
        asked = request.match_info["id"], body.version(request), spec
        if body.flag(request, "dryRun"):
            return json_response(await api.planner.plan(api.nodes.change(*asked)))
        await api.nodes.update(*asked)
        return web.Response(status=200)
