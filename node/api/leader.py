"""Where a cluster request is served: by the leading manager, and reads without one from here.

          leader here          leader elsewhere       no leader (any more)
write     served               handed over            503, at once when it has been gone long
read      a majority is asked  handed over            served from this manager's store and
          first, then served                          marked with `Shoal-Stale`
"""

import asyncio
import contextlib
import enum

from aiohttp import web

from common.errors import Locked, NotLeader, NotManager, Unavailable
from manager.manager import NO_LEADER, Manager
from node.api.daemon import Daemon
from node.api.routes import Handler
from node.forward import FORWARDED

# Both count from when the leader was lost, so that what comes later does not wait again.
READ_WAIT_S = 2.5  # elections take a second or two
WRITE_WAIT_S = 5.0
STALE = "Shoal-Stale"
_PAUSE_S = 0.02


def on_leader(daemon: Daemon, handler: Handler, *, stale: bool = False) -> Handler:
    """`handler` where this node leads, a hand-over to the leader where it does not.

    With `stale` it only reads what is in the store, and may answer without a leader.
    """

    async def serve(request: web.Request) -> web.StreamResponse:
        manager = daemon.manager
        if manager is None:
            raise _nothing_here(daemon)
        if stale:
            return await _read(daemon, manager, handler, request)
        if not manager.is_leader and not manager.leader_address:
            await manager.wait_leader(manager.patience_s(WRITE_WAIT_S))
        if manager.is_leader:
            return await handler(request)
        if FORWARDED in request.headers:
            raise _moved()
        return await daemon.forward(request)

    return serve


async def _read(
    daemon: Daemon, manager: Manager, handler: Handler, request: web.Request
) -> web.StreamResponse:
    leads = await _find_leader(manager)
    if leads is _Leads.HERE:
        return await handler(request)
    if FORWARDED in request.headers:
        raise _moved()
    if leads is _Leads.ELSEWHERE:
        with contextlib.suppress(Unavailable):
            return await daemon.forward(request, manager.patience_s(READ_WAIT_S))
    return mark_stale(await handler(request), manager)


class _Leads(enum.Enum):
    HERE = enum.auto()  # and a majority says so: what is here holds all that was acknowledged
    ELSEWHERE = enum.auto()
    NOBODY = enum.auto()


async def _find_leader(manager: Manager) -> _Leads:
    try:
        async with asyncio.timeout(manager.patience_s(READ_WAIT_S)):
            while True:
                if not manager.is_leader:
                    await manager.wait_leader(READ_WAIT_S)
                    if manager.leader_address:
                        return _Leads.ELSEWHERE
                with contextlib.suppress(NotLeader):
                    await manager.catch_up()
                    return _Leads.HERE
                await asyncio.sleep(_PAUSE_S)
    except (TimeoutError, Unavailable):
        return _Leads.NOBODY


async def catch_up(manager: Manager) -> bool:
    """Hold here what was acknowledged before; False if in time no leader is found to ask."""
    try:
        async with asyncio.timeout(manager.patience_s(READ_WAIT_S)):
            while True:
                await manager.wait_leader(READ_WAIT_S)
                with contextlib.suppress(Unavailable):
                    await manager.catch_up()
                    return True
                await asyncio.sleep(_PAUSE_S)
    except (TimeoutError, Unavailable):
        return False


def mark_stale(response: web.StreamResponse, manager: Manager) -> web.StreamResponse:
    """Say of an answer that it is as of a certain entry of the log, and of when."""
    applied, silence_s = manager.raft.status.applied, manager.raft.silence_s
    if not applied:
        raise Unavailable(NO_LEADER)  # nothing was read from the disk yet
    seconds = "" if silence_s is None else f", seconds={silence_s:.1f}"
    response.headers[STALE] = f"index={applied}{seconds}"
    return response


def _moved() -> NotLeader:
    return NotLeader("leadership moved while the request was under way; send it again")


def manager_or_none(daemon: Daemon) -> Manager | None:
    """The manager of this node, None on a node that is none. Raises Locked, and Unavailable while
    a manager starts: then nobody can say here what the cluster has."""
    if daemon.manager is None and (daemon.swarm.state == "locked" or daemon.swarm.is_between):
        raise _nothing_here(daemon)
    return daemon.manager


def require_manager(daemon: Daemon) -> Manager:
    """The manager of this node. Raises as `on_leader` does where there is none."""
    if daemon.manager is None:
        raise _nothing_here(daemon)
    return daemon.manager


def _nothing_here(daemon: Daemon) -> Unavailable:
    if daemon.swarm.state == "locked":
        return Locked()
    if daemon.swarm.is_between:
        return Unavailable("this manager is starting or stopping; try again in a moment")
    return NotManager(not_manager(daemon))


def not_manager(daemon: Daemon) -> str:
    """Docker's words for a node that is asked what only managers know."""
    if daemon.swarm.state == "inactive":
        return (
            'This node is not a swarm manager. Use "swarm init" or "swarm join" to connect '
            "this node to swarm and try again."
        )
    return (
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster "
        "state. Please run this command on a manager node or promote the current node to a manager."
    )
