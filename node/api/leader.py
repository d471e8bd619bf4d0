"""The hand-over of cluster requests to the leading manager."""

from aiohttp import web

from common.errors import NotLeader, NotManager
from node.api.daemon import Daemon
from node.api.routes import Handler
from node.forward import FORWARDED

LEADER_WAIT_S = 5.0  # how long a request waits for an election that is under way


def on_leader(daemon: Daemon, handler: Handler) -> Handler:
    """`handler` where this node leads, a hand-over to the leader where it does not."""

    async def serve(request: web.Request) -> web.StreamResponse:
        manager = daemon.manager
        if manager is None:
            raise NotManager(_not_manager(daemon))
        if not manager.is_leader and not manager.leader_address:
            await manager.wait_leader(LEADER_WAIT_S)
        if manager.is_leader:
            return await handler(request)
        if FORWARDED in request.headers:
            raise NotLeader("leadership moved while the request was under way; send it again")
        return await daemon.forward(request)

    return serve


def _not_manager(daemon: Daemon) -> str:
    if daemon.swarm.state == "inactive":
        return (
            'This node is not a swarm manager. Use "swarm init" or "swarm join" to connect '
            "this node to swarm and try again."
        )
    return (
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster "
        "state. Please run this command on a manager node or promote the current node to a manager."
    )
