"""/swarm: forming, joining and leaving a cluster."""

from typing import Any

from aiohttp import web

from common.errors import Invalid, Unavailable
from common.model.base import Model, to_builtins
from common.model.cluster import Cluster, ClusterSpec
from node.api import body
from node.api.daemon import Daemon
from node.api.routes import Route, json_response
from node.api.services import manager
from node.swarm import InitRequest, JoinRequest


class UnlockRequest(Model, frozen=True, kw_only=True):
    """The body of `POST /swarm/unlock`."""

    unlock_key: str = ""


class SwarmRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/swarm", self.inspect, on_leader=True, stale=True),
            Route("POST", "/swarm/init", self.init),
            Route("POST", "/swarm/join", self.join),
            Route("POST", "/swarm/leave", self.leave),
            Route("POST", "/swarm/unlock", self.unlock),
            Route("GET", "/swarm/unlockkey", self.unlock_key, on_leader=True),
            Route("POST", "/swarm/update", self.update, on_leader=True),
        ]

    async def init(self, request: web.Request) -> web.StreamResponse:
        asked = await body.read(request, InitRequest)
        if body.flag(request, "dryRun"):
            if not asked.force_new_cluster:
                raise Invalid("dryRun is for ForceNewCluster only")
            return json_response(self._daemon.swarm.prospect())
        if asked.force_new_cluster:
            return json_response(await self._daemon.swarm.force_new_cluster(asked))
        self._refuse_member()
        return json_response(await self._daemon.swarm.init(asked))

    async def join(self, request: web.Request) -> web.StreamResponse:
        self._refuse_member()
        await self._daemon.swarm.join(await body.read(request, JoinRequest))
        return web.Response(status=200)

    def _refuse_member(self) -> None:
        if self._daemon.swarm.state != "inactive":
            self._daemon.swarm.check_unlocked()
            raise Unavailable(
                'This node is already part of a swarm. Use "swarm leave" to leave this swarm '
                "and join another one."
            )

    async def leave(self, request: web.Request) -> web.StreamResponse:
        if self._daemon.swarm.state == "inactive":
            raise Unavailable("This node is not part of a swarm")
        await self._daemon.swarm.leave(force=body.flag(request, "force"))
        return web.Response(status=200)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        return json_response(cluster_json(manager(self._daemon).api.cluster.get(), tokens=True))

    async def update(self, request: web.Request) -> web.StreamResponse:
        spec = await body.read(request, ClusterSpec)
        cluster = await manager(self._daemon).api.cluster.update(
            spec,
            body.version(request),
            rotate_worker_token=body.flag(request, "rotateWorkerToken"),
            rotate_manager_token=body.flag(request, "rotateManagerToken"),
            rotate_unlock_key=body.flag(request, "rotateManagerUnlockKey"),
        )
        if (member := self._daemon.swarm.member) is not None:
            await member.lock.wait(cluster.version.index)
        return web.Response(status=200)

    async def unlock(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.swarm.unlock((await body.read(request, UnlockRequest)).unlock_key)
        return web.Response(status=200)

    async def unlock_key(self, request: web.Request) -> web.StreamResponse:
        """Empty while managers are not locked; the CLI says so."""
        return json_response({"UnlockKey": manager(self._daemon).api.cluster.get().unlock_key})


def cluster_json(cluster: Cluster, *, tokens: bool) -> dict[str, Any]:
    """The cluster as Docker shows it. Neither the CA's key nor the unlock key is in it."""
    data: dict[str, Any] = to_builtins(cluster)
    for private in ("RootCA", "UnlockKey", "RemovedNodes", "NodePool"):
        data.pop(private, None)
    data |= {
        "TLSInfo": {"TrustRoot": cluster.root_ca.certificate},
        "RootRotationInProgress": False,
        "DataPathPort": cluster.data_path_port,
        "DefaultAddrPool": list(cluster.default_addr_pool),
        "SubnetSize": cluster.subnet_size,
    }
    if tokens:
        data["JoinTokens"] = {
            "Worker": cluster.root_ca.join_token_worker,
            "Manager": cluster.root_ca.join_token_manager,
        }
    return data
