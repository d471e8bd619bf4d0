"""Networks that users make on a node: what is asked for, addresses, legs, names."""

import datetime as dt
import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from common.errors import Conflict, Forbidden, Invalid, NotFound, NotImplementedHere, ShoalError
from common.model.network import IPAM, IPAMConfig, NetworkSpec
from common.protocol.network import NetworkChange, OverlayNetwork, Subnet
from worker.network import dnswire, local, local_pool, local_spec, names
from worker.network.bridge_rules import BridgeRule, ruleset
from worker.network.ipam import Ipam
from worker.network.journal import Journal
from worker.network.local_networks import Directory, LocalNetworks, links, scopes
from worker.network.local_spec import LocalNetwork
from worker.network.model import Attachment, HostPort, SandboxSpec
from worker.network.planning import Planner, Settings
from worker.network.sandbox import SandboxRecord
from worker.network.table import Table

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
OVERLAY = OverlayNetwork(
    id="over", name="app", vni=5, subnets=(Subnet(subnet="10.0.1.0/24", gateway="10.0.1.1"),)
)


def asked(name: str = "net", **more: Any) -> LocalNetwork:
    config = more.pop("config", None)
    ipam = IPAM(config=(IPAMConfig(**config),)) if config else None
    spec = NetworkSpec(name=name, ipam=ipam, **more)
    return local_spec.plan(
        spec, f"{name}{'0' * 64}"[:64], NOW, lambda: IPv4Network("172.17.0.0/16")
    )


def test_a_network_without_wishes() -> None:
    made = asked()
    assert (made.driver, made.link, made.masquerade, made.talk) == (
        "bridge",
        "br-net000000000",
        True,
        True,
    )
    assert (made.subnet.subnet, made.subnet.gateway, made.subnet.given) == (
        "172.17.0.0/16", "172.17.0.1", False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"name": "host"}, Forbidden, "predefined host"),
        ({"name": "a b"}, Invalid, "Name = 'a b'"),
        ({"driver": "weave"}, NotImplementedHere, "driver 'weave'"),
        ({"driver": "host"}, Forbidden, 'only one instance of "host"'),
        ({"enable_ipv6": True}, NotImplementedHere, "EnableIPv6"),
        ({"options": {"x": "1"}}, NotImplementedHere, "option 'x'"),
        ({"options": {local_spec.MTU: "20"}}, Invalid, "20"),
        ({"options": {local_spec.ICC: "maybe"}}, Invalid, "maybe"),
        ({"options": {local_spec.LINK_NAME: "a/b"}}, Invalid, "a/b"),
        ({"options": {local_spec.HOST_ADDRESS: "::1"}}, Invalid, "::1"),
        ({"driver": "macvlan"}, Invalid, "parent"),
        ({"config": {"gateway": "1.2.3.4"}}, Invalid, "add --subnet"),
        ({"config": {"subnet": "10.0.0.1/24"}}, Invalid, "10.0.0.1/24"),
        ({"config": {"subnet": "10.0.0.0/31"}}, Invalid, "too small"),
        ({"config": {"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}}, Invalid, "10.0.1.1"),
        ({"config": {"subnet": "10.0.0.0/24", "ip_range": "10.0.0.0/16"}}, Invalid, "10.0.0.0/16"),
    ],
)
def test_what_is_refused(more: dict[str, Any], error: type[ShoalError], words: str) -> None:
    with pytest.raises(error, match=words):
        asked(**more)


def test_pools_go_around_what_is_taken() -> None:
    assert str(local_pool.choose([])) == "172.17.0.0/16"
    taken = [IPv4Network("172.16.0.0/13"), IPv4Network("172.24.1.0/24")]
    assert str(local_pool.choose(taken)) == "172.25.0.0/16"
    assert str(local_pool.choose([IPv4Network("172.16.0.0/12")])) == "192.168.0.0/20"
    with pytest.raises(Forbidden, match="non-overlapping"):
        local_pool.choose([IPv4Network("0.0.0.0/0")])


def test_a_range_reserved_addresses_and_wishes() -> None:
    subnet, within = IPv4Network("10.9.0.0/24"), IPv4Network("10.9.0.128/30")
    ipam = Ipam(subnet, gateway_=IPv4Address("10.9.0.254"), within=within,
                reserved=[IPv4Address("10.9.0.129")])  # fmt: skip
    assert [str(ipam.take()) for _ in range(3)] == ["10.9.0.128", "10.9.0.130", "10.9.0.131"]
    with pytest.raises(ShoalError, match="all 3 addresses"):
        ipam.take()
    assert str(ipam.claim(IPv4Address("10.9.0.7"))) == "10.9.0.7"
    for address, error in (("10.9.0.7", Forbidden), ("10.9.0.254", Forbidden),
                           ("10.9.0.129", Forbidden), ("10.9.0.255", Invalid),
                           ("10.8.0.1", Invalid)):  # fmt: skip
        with pytest.raises(error, match=address):
            ipam.claim(IPv4Address(address))


def test_what_is_on_disk_is_found_again(tmp_path: Path) -> None:
    here = LocalNetworks(Journal(tmp_path))
    first = asked("one", labels={"a": "b"}, config={"subnet": "10.9.0.0/24"})
    here.add(first)
    twin = asked("six", options={local_spec.LINK_NAME: first.link})
    wide = asked("two", config={"subnet": "10.9.0.0/16"})
    refused = [
        (asked("one"), Conflict, "already exists"),
        (wide, Forbidden, "overlaps"),
        (twin, Conflict, "interface"),
    ]
    for other, error, words in refused:
        with pytest.raises(error, match=words):
            here.check(other)
    again = LocalNetworks(Journal(tmp_path))
    assert again.load([]) == [first]
    again.drop(first.id)
    assert LocalNetworks(Journal(tmp_path)).load([]) == []


@dataclass
class World:
    """A node with a few networks."""

    here: LocalNetworks
    table: Table
    planner: Planner
    links: list[str] = field(default_factory=list)

    def item(self, name: str, **more: Any) -> Attachment:
        if name == "bridge":
            return Attachment(
                network_id=local.network_id("me", "bridge"), network_name=name, **more
            )
        if name == "app":
            return Attachment(network_id="over", network_name=name, address="10.0.1.5/24",
                              mac="02:00:00:00:00:05", **more)  # fmt: skip
        found = next(one for one in self.here.all() if one.name == name)
        return Attachment(network_id=found.id, network_name=name, **more)

    def open(self, *items: Attachment, name: str = "box", ports: int = 0) -> SandboxRecord:
        published = tuple(HostPort(protocol="tcp", published=80, target=80) for _ in range(ports))
        spec = SandboxSpec(id=name * 16, name=name, hostname=f"{name}-host", attachments=items,
                           host_ports=published)  # fmt: skip
        return self.planner.open(spec, f"/{name}", published, Settings("", (), ""))


@pytest.fixture
def world(tmp_path: Path) -> World:
    here, table = LocalNetworks(Journal(tmp_path)), Table()
    table.apply(NetworkChange(puts=(OVERLAY,)))
    numbers = iter(range(1000))
    planner = Planner(table, here, "me", lambda: f"sh{next(numbers)}")
    planner.node = Ipam(IPv4Network("10.192.0.0/22"))
    for number, name in enumerate(("amber", "blue", "sealed")):
        here.add(asked(name, config={"subnet": f"172.20.{number}.0/24"}, internal=name == "sealed"))
    return World(here, table, planner)


def way_out(record: SandboxRecord) -> str:
    return next((leg.gateway for leg in record.legs if leg.gateway), "")


def test_the_way_out_is_the_network_of_the_highest_priority_then_of_the_first_name(
    world: World,
) -> None:
    blue, amber, sealed = (world.item(name) for name in ("blue", "amber", "sealed"))
    assert way_out(world.open(blue, amber)) == "172.20.0.1"
    assert way_out(world.open(blue, sealed, world.item("bridge"))) == "172.20.1.1"
    assert way_out(world.open(amber, world.item("blue", priority=1))) == "172.20.1.1"
    assert way_out(world.open(sealed)) == ""
    assert way_out(world.open()) == "10.192.0.1"


def test_the_nodes_bridge_is_there_unseen_for_overlays_without_another_way_out(
    world: World,
) -> None:
    alone = world.open(world.item("app"))
    assert [leg.network_id for leg in alone.legs] == ["over", ""]
    assert [one.network_name for one in alone.sandbox.interfaces] == ["app"]
    both = world.open(world.item("app"), world.item("blue"))
    assert [leg.name for leg in both.legs] == ["eth0", "eth1"]
    assert way_out(both) == "172.20.1.1"


def test_ports_need_a_way_in_and_nothing_is_kept_of_a_refusal(world: World) -> None:
    with pytest.raises(Invalid, match="internal networks only"):
        world.open(world.item("sealed", address="172.20.2.9"), ports=1)
    assert world.open(world.item("sealed", address="172.20.2.9")).legs[0].address == "172.20.2.9/24"
    gone = Attachment(network_id="f" * 64, network_name="gone")
    for _ in range(2):
        with pytest.raises(NotFound, match="not found"):
            world.open(world.item("blue", address="172.20.1.9"), gone)


def test_a_change_keeps_the_legs_of_networks_that_stay(world: World) -> None:
    first = world.open(world.item("blue"), world.item("bridge"))
    spec = SandboxSpec(id=first.spec.id, attachments=(world.item("bridge"), world.item("amber")))
    second = world.planner.connected(first, spec)
    kept = {leg.network_id: (leg.name, leg.near, leg.address) for leg in second.legs}
    old = next(leg for leg in first.legs if not leg.network_id)
    assert kept[""] == (old.name, old.near, old.address)
    assert {leg.name for leg in second.legs} == {"eth0", "eth1"}
    assert way_out(second) == "172.20.0.1"
    nothing = SandboxSpec(id=first.spec.id, internal_only=True)
    assert world.planner.connected(second, nothing).legs == ()


def answer(world: World, of: SandboxRecord, name: str, kind: int = dnswire.A) -> list[str] | None:
    bridge = local.network_id("me", "bridge")
    directory = Directory(world.table, world.here, links(of))
    found = names.resolve(directory, scopes(of, bridge), name, kind, random.Random(1))
    if found is None:
        return None
    return [str(IPv4Address(one)) if kind == dnswire.A else repr(one) for one in found.records]


def test_names_aliases_links_and_pointers(world: World) -> None:
    bridge = local.network_id("me", "bridge")
    db = world.open(world.item("blue", aliases=("data",)), world.item("bridge"), name="db")
    world.here.show(db, bridge)
    link = f"{db.spec.id}:store"
    web = world.open(world.item("blue"), world.item("bridge", links=(link,)), name="web")
    world.here.show(web, bridge)
    at = {one.network_name: one.address.split("/")[0] for one in db.sandbox.interfaces}
    for name in ("db", "data", "db-host", db.spec.id[:12], "db.blue"):
        assert answer(world, web, name) == [at["blue"]], name
    assert answer(world, web, "store") == [at["bridge"]]
    assert answer(world, db, "store") is None
    assert answer(world, web, "nobody") is None
    reverse = ".".join(reversed(at["blue"].split("."))) + ".in-addr.arpa"
    assert answer(world, web, reverse, dnswire.PTR) == [repr(dnswire.encode_name("db.blue"))]
    world.here.hide(db.spec.id)
    assert answer(world, web, "db") is None


def test_rules_of_bridges_are_as_many_as_their_wishes_need() -> None:
    subnet, own = IPv4Network("172.20.0.0/24"), ("shoal0", "shoal0-ing")
    plain = len(ruleset("t", [BridgeRule("br0", subnet)], own))
    internal = BridgeRule("br0", subnet, internal=True, masquerade=False)
    assert len(ruleset("t", [BridgeRule("br0", subnet, masquerade=False)], own)) == plain - 1
    assert len(ruleset("t", [internal], own)) != plain
