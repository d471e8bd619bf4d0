"""Nodes (NOD 220-224), networks (ALL 141) and the cluster itself."""

from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotImplementedHere,
    ShoalError,
    Unavailable,
)
from common.model.cluster import (
    CAConfig,
    Cluster,
    ClusterSpec,
    DispatcherConfig,
    EncryptionConfig,
    RaftConfig,
)
from common.model.network import IPAM, IPAMConfig, Network, NetworkSpec
from common.model.node import Availability, Node, NodeState, Role
from common.model.task import TaskState
from manager.api.cluster import new_cluster
from manager.api.managers import ManagerInfo, managers_of
from manager.raft.message import Member
from manager.raft.status import FollowerStatus, RaftStatus
from tests.support import build
from tests.unit.manager_api.conftest import World


def manager(node_id: str, reachability: str = "reachable", leader: bool = False) -> ManagerInfo:
    return ManagerInfo(node_id, f"raft-{node_id}", f"{node_id}:2377", leader, reachability)


async def version(world: World, id: str) -> int:
    node = world.store.view().get(Node, id)
    assert node is not None
    return node.version.index


async def test_availability_and_labels(world: World) -> None:
    await world.put(build.node("box", id="n1"))
    spec = replace(
        world.api.nodes.get("box").spec, availability=Availability.DRAIN, labels={"a": "b"}
    )
    seen = await version(world, "n1")
    after = await world.api.nodes.update("box", seen, spec)
    assert after.spec == spec
    with pytest.raises(Conflict, match="update out of sequence"):
        await world.api.nodes.update("box", seen, spec)


async def test_managers_are_shown_as_raft_sees_them(world: World) -> None:
    await world.put(build.node("a", role=Role.MANAGER), build.node("b"))
    world.managers = [manager("a", leader=True)]
    shown = world.api.nodes.get("a").manager_status
    assert shown is not None
    assert (shown.leader, shown.reachability, shown.addr) == (True, "reachable", "a:2377")
    assert world.api.nodes.get("b").manager_status is None


async def demote(world: World, id: str) -> Node:
    spec = replace(world.api.nodes.get(id).spec, role=Role.WORKER)
    return await world.api.nodes.update(id, await version(world, id), spec)


async def test_demotion(world: World) -> None:
    """NOD 220, 223: not the last manager, and not so that the quorum is lost."""
    await world.put(*(build.node(id, role=Role.MANAGER) for id in "abc"))
    world.managers = [manager("a", leader=True), manager("b"), manager("c", "unreachable")]
    with pytest.raises(Conflict, match="loss of quorum, since only 1 of the 2"):
        await demote(world, "b")
    assert (await demote(world, "c")).spec.role is Role.WORKER
    joining = replace(manager("c", "unknown"), votes=False)
    world.managers = [manager("a", leader=True), manager("b", "unreachable"), joining]
    with pytest.raises(Conflict, match="only 0 of the 1"):
        await demote(world, "a")
    world.managers = [manager("a", leader=True), manager("b")]
    await demote(world, "b")
    with pytest.raises(Conflict, match="last manager"):
        await demote(world, "a")


async def test_removal(world: World) -> None:
    """NOD 223, 224, 222."""
    web = build.service()
    await world.put(
        build.node("m", role=Role.MANAGER),
        build.node("up"),
        build.node("gone", state=NodeState.DOWN),
        web,
        build.task(web, id="t1", node="up", state=TaskState.RUNNING),
        build.task(web, id="t2", node="up", state=TaskState.FAILED),
    )
    with pytest.raises(Conflict, match="is a cluster manager"):
        await world.api.nodes.remove("m", force=True)
    with pytest.raises(Conflict, match="is not down"):
        await world.api.nodes.remove("up")
    await world.api.nodes.remove("gone")
    await world.api.nodes.remove("up", force=True)
    with pytest.raises(NotFound, match="node up not found"):
        world.api.nodes.get("up")
    states = [world.api.tasks.get(id).status.state for id in ("t1", "t2")]
    assert states == [TaskState.ORPHANED, TaskState.FAILED]
    assert set(world.api.cluster.get().removed_nodes) == {"gone", "up"}


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"name": ["box"]}, ["n1"]),
        ({"id": ["n"]}, ["n1", "n2"]),
        ({"role": ["manager"]}, ["n2"]),
        ({"membership": ["pending"]}, []),
        ({"membership": ["accepted"]}, ["n1", "n2"]),
        ({"node.label": ["disk=ssd"]}, ["n1"]),
        ({"label": ["gpu"]}, ["n2"]),
    ],
)
async def test_node_filters(world: World, filters: dict[str, list[str]], ids: list[str]) -> None:
    """API 248."""
    await world.put(
        build.node("box-1", id="n1", labels={"disk": "ssd"}),
        build.node("other", id="n2", role=Role.MANAGER, engine_labels={"gpu": "1"}),
    )
    assert [node.id for node in world.api.nodes.list(filters)] == ids


async def test_refs_may_be_ambiguous(world: World) -> None:
    await world.put(build.node("box", id="n1"), build.node("box", id="n2"))
    with pytest.raises(Invalid, match="node box is ambiguous"):
        world.api.nodes.get("box")
    with pytest.raises(Invalid, match="node n is ambiguous"):
        world.api.nodes.get("n")
    with pytest.raises(NotFound):
        world.api.nodes.get("")


def test_managers_of_raft() -> None:
    members = tuple(Member(f"r{i}", f"n{i}", f"a{i}:1") for i in range(3))
    followers = (
        FollowerStatus("r1", 5, "replicate", True),
        FollowerStatus("r2", 5, "probe", False),
    )
    status = RaftStatus("leader", 2, "r0", members, 5, 5, followers)
    found = [(info.node_id, info.leader, info.reachability) for info in managers_of(status)]
    assert found == [
        ("n0", True, "reachable"),
        ("n1", False, "reachable"),
        ("n2", False, "unreachable"),
    ]


# Networks


def net(name: str = "front", **more: Any) -> NetworkSpec:
    return NetworkSpec(name=name, driver="overlay", **more)


def subnets(*ranges: str, **more: Any) -> IPAM:
    return IPAM(config=tuple(IPAMConfig(subnet=range, **more) for range in ranges))


BAD = [
    (net(""), Invalid, "network name is missing"),
    (net("a/b"), Invalid, "'a/b' is not valid"),
    (net("host"), Forbidden, "reserved"),
    (replace(net(), driver="macvlan"), NotImplementedHere, "'macvlan'"),
    (net(ingress=True), NotImplementedHere, "ingress networks"),
    (net(enable_ipv6=True), NotImplementedHere, "IPv6 networks"),
    (net(config_only=True), NotImplementedHere, "config-only"),
    (net(options={"encrypted": ""}), NotImplementedHere, "'encrypted'"),
    (net(ipam=subnets("10.0.0.0/33")), Invalid, "10.0.0.0/33"),
    (net(ipam=subnets("10.7.0.0/24", gateway="10.8.0.1")), Invalid, "gateway 10.8.0.1"),
    (net(ipam=subnets("10.7.0.0/24", ip_range="10.6.0.0/16")), Invalid, "IP range 10.6.0.0/16"),
    (net(ipam=subnets("", gateway="10.8.0.1")), Invalid, "needs a subnet"),
    (net(ipam=subnets("10.7.0.0/24", "10.7.0.0/16")), Invalid, "of the same network"),
    (net(ipam=subnets("10.5.0.0/16")), Conflict, "overlaps with 10.5.1.0/24 of network back"),
    (net(ipam=subnets("10.192.0.0/16")), Conflict, "the nodes' own addresses"),
    (net(ipam=subnets("10.20.3.0/24")), Conflict, "10.20.0.0/16, a network of node m1"),
    (net(ipam=subnets("10.30.0.0/15")), Conflict, "10.30.4.0/24, a route of node m1"),
    (net(ipam=IPAM(driver="dhcp")), NotImplementedHere, "IPAM"),
    (net("back"), Conflict, "network 'back' already exists"),
]


@pytest.mark.parametrize(("bad", "error", "says"), BAD, ids=[case[2] for case in BAD])
async def test_networks_refused(
    world: World, bad: NetworkSpec, error: type[ShoalError], says: str
) -> None:
    node = build.node("m1")
    around = {"networks": ("10.20.0.0/16",), "routes": ("10.30.4.0/24", "10.7.0.0/16")}
    described = replace(node.description, hostname="m1", **around)
    await world.put(replace(build.network("back"), ipam=subnets("10.5.1.0/24")))
    await world.put(replace(node, description=described))
    with pytest.raises(error) as caught:
        await world.api.networks.create(bad)
    assert says in str(caught.value)
    assert len(world.store.view().find(Network)) == 1


async def test_a_subnet_inside_a_range_to_which_there_is_a_route_is_the_users_choice(
    world: World,
) -> None:
    node = build.node("m1")
    described = replace(node.description, routes=("10.0.0.0/8", "0.0.0.0/0"))
    await world.put(replace(node, description=described))
    made = await world.api.networks.create(net(ipam=subnets("10.7.0.0/24")))
    assert made.id


async def test_a_network_in_use_stays(world: World) -> None:
    """ALL 141; after its service was removed it may go, although tasks still stop."""
    made = await world.api.networks.create(net(ipam=subnets("10.7.0.0/24"), labels={"a": "b"}))
    web = await world.api.services.create(build.service(networks=["front"]).spec)
    with pytest.raises(Conflict, match="network front is in use by service web"):
        await world.api.networks.remove("front")
    assert [n.id for n in world.api.networks.list({"dangling": ["false"]})] == [made.id]
    await world.api.services.remove(web.id)
    await world.api.networks.remove(made.id)
    assert world.api.networks.list({}) == []
    assert (await world.api.networks.create(net())).id != made.id


async def test_published_ports_need_no_ingress_network(world: World) -> None:
    """ALL 142: here there is none, so none can be made, doubled or missed; older specs that name
    it are taken."""
    with pytest.raises(Forbidden, match="ingress is reserved"):
        await world.api.networks.create(net("ingress"))
    with pytest.raises(NotImplementedHere, match="published ports need no network"):
        await world.api.networks.create(net("mine", ingress=True))
    with pytest.raises(NotFound):
        await world.api.networks.remove("ingress")
    spec = build.service("web", networks=["ingress"], ports=[build.port(80, 8080)]).spec
    web = await world.api.services.create(spec)
    assert web.spec.task_template.networks == ()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"name": ["ron"]}, True),
        ({"driver": ["bridge"]}, False),
        ({"scope": ["swarm"]}, True),
        ({"scope": ["local"]}, False),
        ({"type": ["custom"], "label": ["a"]}, True),
        ({"type": ["builtin"]}, False),
        ({"dangling": ["true"]}, True),
    ],
)
async def test_network_filters(world: World, filters: dict[str, list[str]], found: bool) -> None:
    await world.api.networks.create(net(labels={"a": "b"}))
    assert bool(world.api.networks.list(filters)) is found


# The cluster


async def test_tokens_are_rotated_alone(world: World) -> None:
    before = world.api.cluster.get()
    after = await world.api.cluster.update(
        before.spec, before.version.index, rotate_worker_token=True
    )
    assert after.root_ca.join_token_manager == "M"
    assert after.root_ca.join_token_worker.startswith("token-of-CERT-")
    with pytest.raises(Conflict, match="update out of sequence"):
        await world.api.cluster.update(before.spec, before.version.index)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "other"}, Invalid),
        ({"raft": RaftConfig(election_tick=3)}, NotImplementedHere),
        ({"ca_config": CAConfig(force_rotate=1)}, NotImplementedHere),
        ({"ca_config": CAConfig(node_cert_expiry=1)}, Invalid),
        ({"dispatcher": DispatcherConfig(heartbeat_period=1)}, Invalid),
    ],
)
async def test_settings_refused(
    world: World, changes: dict[str, Any], error: type[ShoalError]
) -> None:
    cluster = world.api.cluster.get()
    with pytest.raises(error):
        await world.api.cluster.update(replace(cluster.spec, **changes), cluster.version.index)
    assert world.api.cluster.get() == cluster


async def test_autolock_has_a_key_that_goes_with_it(world: World) -> None:
    """SEC 216: made when locking, kept by other changes, made anew on request, gone after."""

    async def update(locked: bool, **more: bool) -> str:
        cluster = world.api.cluster.get()
        spec = replace(cluster.spec, encryption_config=EncryptionConfig(auto_lock_managers=locked))
        return (await world.api.cluster.update(spec, cluster.version.index, **more)).unlock_key

    with pytest.raises(Invalid, match="autolock is not turned on"):
        await update(False, rotate_unlock_key=True)
    first = await update(True)
    assert first.startswith("SWMKEY-1-")
    assert await update(True, rotate_worker_token=True) == first
    second = await update(True, rotate_unlock_key=True)
    assert second not in ("", first)
    assert await update(False) == ""
    assert await update(True) not in ("", first, second)


async def test_counts_and_absence(world: World) -> None:
    await world.put(build.node("a", role=Role.MANAGER), build.node("b"))
    assert world.api.cluster.counts() == {"Nodes": 2, "Managers": 1}
    await world.store.update(lambda tx: tx.delete(Cluster, "cluster-1"))
    assert world.api.cluster.find() is None
    with pytest.raises(Unavailable):
        world.api.cluster.get()


def test_new_cluster() -> None:
    root = build.cluster().root_ca
    made = new_cluster("c", root, ClusterSpec(name="x"))
    assert (made.spec.name, made.default_addr_pool, made.subnet_size) == (
        "default",
        ("10.0.0.0/8",),
        24,
    )
    assert new_cluster("c", root, pools=("10.20.0.0/16",), subnet_size=26).subnet_size == 26
    for pools, size, port in (
        (("10.20.0.0/25",), 24, 0),
        (("nowhere",), 0, 0),
        (("10.20.0.0/16",), 30, 0),
        ((), 0, 80),
    ):
        with pytest.raises(Invalid):
            new_cluster("c", root, pools=pools, subnet_size=size, data_path_port=port)
