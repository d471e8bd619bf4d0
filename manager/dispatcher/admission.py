"""How a node gets a session: who may have one, and what is stored of it first."""

import asyncio
import logging
from collections.abc import Callable

from common.errors import ShoalError
from common.ids import Ids
from common.model.cluster import Cluster
from common.model.node import Node
from common.protocol.dispatcher import (
    PROTOCOL_VERSION,
    FromAgent,
    Hello,
    Manager,
    Redirect,
    Refused,
    Welcome,
)
from manager.dispatcher import nodes
from manager.dispatcher.sessions import RATE_PERIODS, RateLimit
from manager.store.store import Store

log = logging.getLogger(__name__)

INDEX_S = 10.0  # how long a new node may have to wait for the allocator


class Admission:
    """Decides about hellos."""

    def __init__(
        self,
        store: Store,
        ids: Ids,
        heard: Callable[[str], None],
        managers: Callable[[], tuple[Manager, ...]],
    ) -> None:
        """`heard(node_id)` is called when a node of the cluster has registered; `managers` says
        where all managers are, without a walk over all nodes for each that comes."""
        self._managers = managers
        self._store = store
        self._ids = ids
        self._heard = heard
        self._rate = RateLimit(period_s=RATE_PERIODS)
        self._period_s = 1.0

    def set_period(self, period_s: float) -> None:
        """Of heartbeats."""
        self._period_s = period_s
        self._rate.period_s = RATE_PERIODS * period_s

    def forget(self, node_id: str) -> None:
        self._rate.forget(node_id)

    async def admit(self, node_id: str, hello: FromAgent) -> Welcome | Refused | Redirect:
        """The answer to a node whose identity is proved. A Welcome means: it is stored as READY."""
        if not isinstance(hello, Hello):
            return Refused(reason="a session starts with hello")
        if hello.protocol != PROTOCOL_VERSION:
            return Refused(
                reason=f"the manager speaks protocol {PROTOCOL_VERSION}, the agent"
                f" {hello.protocol}; bring both to the same version"
            )
        if not self._rate.admit(node_id, asyncio.get_running_loop().time()):
            return Refused(reason="too many registrations; slow down")
        try:
            node = await self._register(node_id, hello)
        except TimeoutError:
            return Refused(reason="the node has no index yet; try again")
        except ShoalError as error:
            log.info("cannot register node %s: %s", node_id, error)
            return Redirect(leader=None)
        return self._unknown(node_id) if node is None else self._welcome(node)

    async def _register(self, node_id: str, hello: Hello) -> Node | None:
        """Store what the node says of itself; returns it once it has an index."""
        if self._store.view().get(Node, node_id) is None:
            return None
        self._heard(node_id)
        await self._store.update(lambda tx: nodes.set_ready(tx, node_id, hello))
        async with asyncio.timeout(INDEX_S):
            with self._store.watch() as watcher:
                while True:
                    node = self._store.view().get(Node, node_id)
                    if node is None or node.index:
                        return node
                    await watcher.wait()

    def _unknown(self, node_id: str) -> Refused:
        removed = any(node_id in one.removed_nodes for one in self._store.view().find(Cluster))
        return Refused(reason=f"node {node_id} is not in the cluster", removed=removed)

    def _welcome(self, node: Node) -> Welcome:
        view = self._store.view()
        cluster = next(iter(view.find(Cluster)), None)
        return Welcome(
            session_id=self._ids.new(),
            node_id=node.id,
            heartbeat_s=self._period_s,
            role=node.spec.role.value,
            managers=self._managers(),
            node_index=node.index,
            node_pool="" if cluster is None else cluster.node_pool,
            data_path_port=0 if cluster is None else cluster.data_path_port,
        )
