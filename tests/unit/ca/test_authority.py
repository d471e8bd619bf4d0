"""Who is let in, as what, and who is not."""

import datetime as dt
import random

import pytest
from msgspec.structs import replace

from common.apart import run_inline
from common.errors import Forbidden, Invalid, Unavailable
from common.ids import Ids
from common.keys import new_request
from common.model.cluster import CAConfig, Cluster, ClusterSpec, RootCA
from common.model.node import (
    Availability,
    ManagerStatus,
    Node,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    Role,
)
from common.protocol.ca import IssueRequest, RenewRequest
from common.tls import Credentials, Identity, inspect
from manager.ca import certificates, tokens
from manager.ca.authority import Authority
from manager.store.store import Store, Tx

NOW = dt.datetime.now(dt.UTC)
RNG = random.Random(1)
ROOT = certificates.new_root("c" * 25, NOW)
KEY, REQUEST = new_request()


class StandingClock:
    def now(self) -> dt.datetime:
        return NOW


class Log:
    """A log of one member: what is proposed is committed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index = store.version

    async def propose(self, data: bytes) -> int:
        self._index += 1
        self._store.apply(self._index, data)
        return self._index

    async def confirm(self) -> None:
        """It leads for ever."""


CLUSTER = Cluster(
    id="c" * 25,
    spec=ClusterSpec(name="default"),
    root_ca=RootCA(
        certificate=ROOT[0].decode(),
        key=ROOT[1].decode(),
        join_token_worker=tokens.new_token(ROOT[0], RNG),
        join_token_manager=tokens.new_token(ROOT[0], RNG),
    ),
)


async def authority(*objects: Node, cluster: Cluster = CLUSTER) -> tuple[Authority, Store]:
    store = Store(StandingClock())
    store.lead(Log(store))

    def write(tx: Tx) -> None:
        for object in (cluster, *objects):
            tx.put(object)

    await store.update(write)
    return Authority(store, StandingClock(), Ids(RNG), run_inline), store


def asked(token: str, request: bytes = REQUEST) -> IssueRequest:
    return IssueRequest(token=token, request=request.decode(), availability=Availability.DRAIN)


@pytest.mark.parametrize(
    ("token", "role"),
    [
        (CLUSTER.root_ca.join_token_worker, Role.WORKER),
        (CLUSTER.root_ca.join_token_manager, Role.MANAGER),
    ],
    ids=["worker", "manager"],
)
async def test_the_token_decides_the_role(token: str, role: Role) -> None:
    """SEC 205, NOD 227."""
    ca, store = await authority()
    issued = await ca.issue(asked(token))
    credentials = Credentials(root=ca.root, certificate=issued.certificate.encode(), key=KEY)
    assert inspect(credentials).identity == Identity(issued.node_id, role.value, CLUSTER.id)
    (node,) = store.view().find(Node)
    assert (node.id, node.role, node.spec.role) == (issued.node_id, role, role)
    assert node.spec.availability is Availability.DRAIN


async def test_a_refused_node_leaves_nothing() -> None:
    """SEC 203, 204, 207."""
    ca, store = await authority()
    old = CLUSTER.root_ca.join_token_worker
    rotated = replace(CLUSTER.root_ca, join_token_worker=tokens.new_token(ROOT[0], RNG))
    with pytest.raises(Invalid):
        await ca.issue(asked(old, b"nonsense"))
    await store.update(lambda tx: tx.put(replace(CLUSTER, root_ca=rotated)))
    for wrong in (old, "", tokens.new_token(ROOT[0], RNG)):
        with pytest.raises(Forbidden, match="shoal swarm join-token worker"):
            await ca.issue(asked(wrong))
    assert store.view().find(Node) == []


async def test_renewal_gives_the_role_of_the_store() -> None:
    """SEC 203, 211: no token; what the old certificate says does not count."""
    node = Node(id="n" * 25, spec=NodeSpec(role=Role.MANAGER), role=Role.WORKER)
    ca, _ = await authority(node)
    caller = Identity(node.id, "manager", CLUSTER.id)
    issued = await ca.renew(caller, RenewRequest(request=REQUEST.decode()))
    assert (issued.node_id, issued.role) == (node.id, "worker")


async def test_certificates_live_as_long_as_the_cluster_says() -> None:
    hours = replace(CLUSTER, spec=ClusterSpec(ca_config=CAConfig(node_cert_expiry=7200 * 10**9)))
    ca, _ = await authority(cluster=hours)
    issued = await ca.issue(asked(CLUSTER.root_ca.join_token_worker))
    held = Credentials(root=ca.root, certificate=issued.certificate.encode(), key=KEY)
    assert abs(inspect(held).not_after - NOW - dt.timedelta(hours=2)) < dt.timedelta(seconds=2)


async def test_removed_and_demoted_nodes_are_refused() -> None:
    node = Node(id="n" * 25, role=Role.WORKER)
    gone = Identity("g" * 25, "manager", CLUSTER.id)
    until = (NOW + dt.timedelta(days=97)).isoformat()
    ca, _ = await authority(node, cluster=replace(CLUSTER, removed_nodes={gone.node_id: until}))
    with pytest.raises(Forbidden, match="was removed"):
        ca.check(gone)
    with pytest.raises(Forbidden, match="was removed"):
        await ca.renew(gone, RenewRequest(request=REQUEST.decode()))
    demoted = Identity(node.id, "manager", CLUSTER.id)
    ca.check(demoted)
    with pytest.raises(Forbidden, match="no manager any more"):
        ca.check_manager(demoted)


async def test_only_a_node_that_never_came_is_forgotten() -> None:
    """The allocator has given it an index all the same."""
    unknown = NodeStatus(state=NodeState.UNKNOWN)
    came = Node(id="a" * 25, index=1, status=unknown, description=NodeDescription(hostname="m1"))
    manager = Node(
        id="b" * 25, index=2, status=unknown, manager_status=ManagerStatus(addr="192.0.2.1:2377")
    )
    never = Node(id="c" * 25, index=3, status=unknown)
    ca, store = await authority(came, manager, never)
    for node in (came, manager, never):
        await ca.abandon(Identity(node.id, "worker", CLUSTER.id))
    assert {node.id for node in store.view().find(Node)} == {came.id, manager.id}


async def test_a_manager_without_state_says_so() -> None:
    ca = Authority(Store(StandingClock()), StandingClock(), Ids(RNG), run_inline)
    ca.check(Identity("x", "worker", CLUSTER.id))
    with pytest.raises(Unavailable, match="has not got the cluster's state yet"):
        _ = ca.root
