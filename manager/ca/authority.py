"""The cluster's certificate authority: lets nodes in, renews their certificates, locks them out.

What it knows is in the store: the root and its key, the tokens, the nodes. So any manager can be
the authority; the leader is, because letting a node in is a write.
"""

import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from common.apart import run_apart
from common.clock import Clock
from common.errors import Forbidden, Unavailable
from common.ids import Ids
from common.model.cluster import Cluster
from common.model.node import Node, NodeSpec, NodeState, Role
from common.protocol.ca import Issued, IssueRequest, RenewRequest
from common.tls import Identity
from manager.ca import certificates, tokens
from manager.store.store import Store, Tx, View

log = logging.getLogger(__name__)

Run = Callable[..., Awaitable[Any]]

# How long after a certificate's end its node stays on the list of those removed.
REMOVED_GRACE = dt.timedelta(days=7)


class Authority:
    """Signs for one cluster."""

    def __init__(self, store: Store, clock: Clock, ids: Ids, run: Run = run_apart) -> None:
        """`run` is where signing happens."""
        self._run = run
        self._store = store
        self._clock = clock
        self._ids = ids

    @property
    def root(self) -> bytes:
        """The root certificate, PEM. Raises Unavailable while this manager is still joining."""
        return _cluster(self._store.view()).root_ca.certificate.encode()

    def check(self, identity: Identity) -> None:
        """Raises Forbidden if the node of a verified certificate was removed meanwhile."""
        found = self._store.view().find(Cluster)
        if found and identity.node_id in found[0].removed_nodes:
            raise removed(identity.node_id)

    def check_manager(self, identity: Identity) -> None:
        """Raises Forbidden if the node may not act as a manager (any more).

        Only the leader may ask: the state of others can be older than the caller's promotion.
        """
        self.check(identity)
        node = self._store.view().get(Node, identity.node_id)
        if node is None:
            raise removed(identity.node_id)
        if node.role is not Role.MANAGER:
            raise Forbidden(f"node {node.id} is no manager any more; its certificate is an old one")

    async def issue(self, asked: IssueRequest) -> Issued:
        """A certificate for a new node, which is thereby in the cluster.

        The token alone decides its role. Raises Forbidden for a wrong one, Invalid for a bad
        request; Store.update's errors.
        """
        cluster = _cluster(self._store.view())
        role = _role(cluster, asked.token)
        identity = Identity(self._ids.new(), role.value, cluster.id)
        issued = await self._sign(cluster, asked.request, identity)
        node = Node(
            id=identity.node_id,
            spec=NodeSpec(role=role, availability=asked.availability),
            role=role,
            certificate_issued_at=self._clock.now().isoformat(),
        )

        def admit(tx: Tx) -> None:
            _role(_cluster(tx), asked.token)  # it may have been rotated a moment ago
            tx.put(node)

        await self._store.update(admit)
        log.info("node admitted", extra={"admitted": node.id, "role": role.value})
        return issued

    async def renew(self, identity: Identity, asked: RenewRequest) -> Issued:
        """A new certificate for the node of `identity`, with the role that the store gives it.

        Raises Forbidden for a node that is none any more.
        """
        view = self._store.view()
        cluster = _cluster(view)
        node = view.get(Node, identity.node_id)
        if node is None or identity.node_id in cluster.removed_nodes:
            raise removed(identity.node_id)
        named = Identity(node.id, node.role.value, cluster.id)
        return await self._sign(cluster, asked.request, named)

    async def abandon(self, identity: Identity) -> None:
        """Forget a node whose join did not come to an end.

        One that ever had a session (it has described itself since) or is in Raft stays.
        """

        def forget(tx: Tx) -> None:
            node = tx.get(Node, identity.node_id)
            if node is None or node.description.hostname or node.manager_status is not None:
                return
            if node.status.state is NodeState.UNKNOWN:
                tx.delete(Node, node.id)

        await self._store.update(forget)

    async def _sign(self, cluster: Cluster, request: str, identity: Identity) -> Issued:
        life = dt.timedelta(microseconds=cluster.spec.ca_config.node_cert_expiry / 1000)
        certificate: bytes = await self._run(
            certificates.sign,
            cluster.root_ca.certificate.encode(),
            cluster.root_ca.key.encode(),
            request.encode(),
            identity,
            self._clock.now(),
            life,
        )
        return Issued(
            node_id=identity.node_id,
            cluster_id=identity.cluster_id,
            role=identity.role,
            certificate=certificate.decode(),
        )


def _cluster(view: View) -> Cluster:
    found = view.find(Cluster)
    if not found:
        raise Unavailable("this manager has not got the cluster's state yet; try again in a moment")
    return found[0]


def _role(cluster: Cluster, token: str) -> Role:
    # Both comparisons are always made, so that the time taken says nothing.
    manager = tokens.matches(token, cluster.root_ca.join_token_manager)
    worker = tokens.matches(token, cluster.root_ca.join_token_worker)
    if manager:
        return Role.MANAGER
    if worker:
        return Role.WORKER
    raise Forbidden(
        "the join token is not valid for this cluster; "
        "get a new one with: shoal swarm join-token worker"
    )


def removed(node_id: str) -> Forbidden:
    return Forbidden(
        f"node {node_id} was removed from the cluster; "
        "run on it: shoal swarm leave --force, then join again"
    )
