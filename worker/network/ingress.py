"""The machine's own nf_tables table: the way out, ports of the node, and published ports.

A published port answers on every node. The entry node sends a new flow to any active backend, by
DNAT alone, so the task sees the client's address. To a task elsewhere it goes through an L3 VXLAN
(`mesh.py`), whose MAC tells the task's node who the entry was; that node marks the flow and routes
the answers back through the entry node, which undoes the DNAT. Containers need only a
default route.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from worker.network import audit, balancer
from worker.network.audit import Fact
from worker.network.balancer import BY_PORT, Edit, Groups
from worker.network.netlink import conntrack, nft
from worker.network.netlink.channel import Channel, NetlinkError
from worker.network.netlink.codec import Message

_REPLY = b"\x01"
_UDP = b"\x11"
_MARK_BASE = 0x10000
_PORT_KEY = ((nft.PROTOCOL, 1), (nft.SERVICE, 2))
_TARGET = ((nft.IPV4_ADDR, 4), (nft.SERVICE, 2))


class Names(NamedTuple):
    """Of the table, the node's bridge and the mesh device; they hang together."""

    table: str
    bridge: str
    mesh: str


class HostTarget(NamedTuple):
    """A port of the node that leads to one sandbox. `host` "": on all addresses."""

    host: str
    protocol: str
    published: int
    address: str
    target: int


def mark(index: int) -> int:
    """The mark of flows that entered the cluster at node `index`."""
    return _MARK_BASE + index


def mesh_mac(index: int) -> str:
    """The mesh device's MAC on node `index`. Raises OverflowError beyond 2**32 nodes."""
    return "02:ee:" + index.to_bytes(4, "big").hex(":")


def mesh_index(mac: str) -> int:
    """The node that has this MAC."""
    return int.from_bytes(bytes.fromhex(mac.replace(":", ""))[2:], "big")


def ruleset(names: Names, subnets: Sequence[IPv4Network], vxlan: int = 0) -> list[Message]:
    """The table with no port and no peer in it, to be followed by elements.

    `vxlan`: the UDP port of the overlays; 0 outside a cluster.
    """
    table = names.table
    return [
        *nft.fresh_table(table),
        *balancer.maps(table, BY_PORT),
        nft.add_map(table, "nodes", [(nft.ETHER_ADDR, 6)], [(nft.MARK, 4)]),
        nft.add_map(table, "vteps", [(nft.IPV4_ADDR, 4)], [(nft.MARK, 4)]),
        nft.add_map(table, "hp", _PORT_KEY, _TARGET),
        nft.add_map(table, "hpa", [(nft.IPV4_ADDR, 4), *_PORT_KEY], _TARGET),
        *_guard(names),
        *(_untracked(table, vxlan) if vxlan else ()),
        *_steer(names),
        nft.add_base_chain(table, "pre", "nat", nft.PREROUTING, nft.DSTNAT),
        *_enter(table, "pre"),
        nft.add_base_chain(table, "out", "nat", nft.OUTPUT, nft.OUTNAT),
        *_enter(table, "out"),
        nft.add_base_chain(table, "inp", "filter", nft.INPUT, nft.FILTER),
        nft.add_rule(table, "inp", *nft.local(), *balancer.reject(BY_PORT)),
        *_leave(names, subnets),
    ]


def _guard(names: Names) -> list[Message]:
    """Loopback addresses are routed on our links (route_localnet), but not for who is outside."""
    loopback = [
        nft.ip_destination(0),
        nft.mask(0, b"\xff\0\0\0"),
        nft.compare(0, b"\x7f\0\0\0"),
    ]
    drop = nft.verdict(nft.DROP)
    return [
        nft.add_base_chain(names.table, "guard", "filter", nft.PREROUTING, nft.RAW),
        *(
            nft.add_rule(names.table, "guard", *loopback, *nft.incoming(link), drop)
            for link in (names.bridge, names.mesh)
        ),
    ]


def _untracked(table: str, vxlan: int) -> list[Message]:
    """No flow is kept for the overlays' own packets, neither coming nor going: each flow inside has
    an outer source port of its own, which would double the cost of a connection on both nodes."""
    packet = [
        nft.protocol(0),
        nft.compare(0, _UDP),
        nft.port(0),
        nft.compare(0, struct.pack("!H", vxlan)),
        nft.notrack(),
    ]
    return [
        nft.add_rule(table, "guard", *packet),
        nft.add_base_chain(table, "going", "filter", nft.OUTPUT, nft.RAW),
        nft.add_rule(table, "going", *packet),
    ]


def _steer(names: Names) -> list[Message]:
    """What most packets are not is asked first: every packet of the machine comes by."""
    table = names.table
    return [
        nft.add_base_chain(table, "steer", "filter", nft.PREROUTING, nft.MANGLE),
        nft.add_rule(
            table,
            "steer",
            *nft.ct_bit(nft.CT_STATE, nft.STATE_NEW),
            *nft.incoming(names.mesh),
            nft.ether_source(0),
            nft.lookup("nodes", 0, 0),
            nft.set_ct_mark(0),
        ),
        nft.add_rule(
            table,
            "steer",
            nft.ct(nft.CT_MARK, 0),
            nft.compare(0, bytes(4), unequal=True),
            nft.ct(nft.CT_DIRECTION, 0),
            nft.compare(0, _REPLY),
            *nft.incoming(names.bridge),
            nft.ct(nft.CT_MARK, 0),
            nft.set_mark(0),
        ),
    ]


def _enter(table: str, chain: str) -> list[Message]:
    """Ports of one sandbox first, then published ones."""
    by_address = [nft.ip_destination(0), nft.protocol(1), nft.port(2)]
    return [
        nft.add_rule(table, chain, *by_address, nft.lookup("hpa", 0, 0), nft.dnat(0, 1)),
        nft.add_rule(
            table, chain, *nft.local(), BY_PORT.load, nft.lookup("hp", 0, 0), nft.dnat(0, 1)
        ),
        nft.add_rule(table, chain, *nft.local(), *balancer.choose(BY_PORT)),
    ]


def _leave(names: Names, subnets: Sequence[IPv4Network]) -> list[Message]:
    """Flows that would not find back get our address: from loopback, from a bridge's port to
    another, from the machine itself, from another node itself (the task may be on that node, which
    would take its own address for a forged one); and what leaves the node from a container."""
    table, bridge = names.table, names.bridge
    translated = nft.ct_bit(nft.CT_STATUS, nft.STATUS_DNAT)
    loopback = [nft.ip_source(0), nft.mask(0, b"\xff\0\0\0"), nft.compare(0, b"\x7f\0\0\0")]
    masquerade = nft.masquerade()
    to_bridge = nft.outgoing(bridge)
    found = [
        nft.add_base_chain(table, "post", "nat", nft.POSTROUTING, nft.SRCNAT),
        nft.add_rule(table, "post", *translated, *loopback, masquerade),
        nft.add_rule(table, "post", *translated, *nft.incoming(bridge), *to_bridge, masquerade),
        nft.add_rule(table, "post", *translated, *nft.local(source=True), *to_bridge, masquerade),
    ]
    found.append(
        nft.add_rule(
            table,
            "post",
            *translated,
            *nft.outgoing(names.mesh),
            nft.ip_source(0),
            nft.lookup("vteps", 0, 0),
            masquerade,
        )
    )
    for subnet in subnets:
        inside = [
            nft.ip_source(0),
            nft.mask(0, subnet.netmask.packed),
            nft.compare(0, subnet.network_address.packed),
        ]
        elsewhere = [
            *nft.outgoing(bridge, unequal=True),
            *nft.outgoing(names.mesh, unequal=True),
        ]
        found.append(nft.add_rule(table, "post", *inside, *elsewhere, masquerade))
    return found


def _mac_key(index: int) -> bytes:
    return bytes.fromhex(mesh_mac(index).replace(":", ""))


def _host_key(port: HostTarget) -> tuple[str, bytes]:
    key = balancer.port_key(port.protocol, port.published)
    return ("hpa", IPv4Address(port.host).packed + key) if port.host else ("hp", key)


class MachineTable:
    """The table as the kernel has it. For the helper thread."""

    def __init__(self, channel: Channel, names: Names) -> None:
        self._channel = channel
        self._names = names
        self._groups = Groups()
        self._chains: set[int] = set()
        self._subnets: tuple[IPv4Network, ...] = ()
        self._nodes: dict[int, str] = {}
        self._hosts: set[HostTarget] = set()
        self._vxlan = 0
        self._left = (0, 0)  # the kernel's generation, and our transactions, at the last look

    def load(
        self,
        subnets: Sequence[IPv4Network] | None = None,
        hosts: Iterable[HostTarget] | None = None,
        vxlan: int | None = None,
    ) -> None:
        """Put the whole table in place, whatever was there; new `subnets`, `hosts` and UDP port of
        the overlays (0: none) if given."""
        if subnets is not None:
            self._subnets = tuple(subnets)
        if hosts is not None:
            self._hosts = set(hosts)
        if vxlan is not None:
            self._vxlan = vxlan
        table = self._names.table
        edits = self._groups.everything()
        wanted = balancer.counts(edits)
        requests = [
            *ruleset(self._names, self._subnets, self._vxlan),
            *balancer.chains(table, BY_PORT, wanted),
            *balancer.messages(table, edits),
            *self._add_hosts(self._hosts),
            *self._add_nodes(self._nodes, set(self._nodes.values())),
        ]
        nft.transaction(self._channel, requests)
        self._chains = wanted

    def publish(
        self,
        gone: Iterable[tuple[str, int]],
        ports: dict[tuple[str, int], set[tuple[str, int]]],
    ) -> None:
        """Forget the ports in `gone`; give those in `ports` their backends.

        Raises NetlinkError: somebody changed our table, and it is to be loaded.
        """
        edits: list[Edit] = []
        for protocol, port in gone:
            edits += self._groups.put(balancer.port_key(protocol, port), None)
        for (protocol, port), backends in ports.items():
            key = balancer.port_key(protocol, port)
            edits += self._groups.put(key, {balancer.port_backend(*item) for item in backends})
        if edits:
            self._carry_out(edits)
        if self._chains and not self._groups.members:
            self.load()  # as it was before the first port: without chains to choose by

    def _carry_out(self, edits: Sequence[Edit]) -> None:
        table = self._names.table
        missing = balancer.counts(edits) - self._chains
        extra = balancer.chains(table, BY_PORT, missing)
        nft.transaction(self._channel, [*extra, *balancer.messages(table, edits)])
        self._chains |= missing

    def open_hosts(self, ports: Iterable[HostTarget]) -> None:
        fresh = set(ports) - self._hosts
        self._hosts |= fresh
        try:
            nft.transaction(self._channel, self._add_hosts(fresh))
        except NetlinkError:  # somebody removed our table
            self.load()

    def close_hosts(self, address: str) -> None:
        """No port leads to `address` any more."""
        gone = {port for port in self._hosts if port.address == address}
        self._hosts -= gone
        requests = []
        for port in gone:
            name, key = _host_key(port)
            requests += nft.delete_elements(self._names.table, name, [key])
        try:
            nft.transaction(self._channel, requests)
        except NetlinkError:
            self.load()

    def _add_hosts(self, ports: Iterable[HostTarget]) -> list[Message]:
        requests = []
        for port in ports:
            name, key = _host_key(port)
            target = balancer.port_backend(port.address, port.target)
            requests += nft.add_elements(self._names.table, name, [nft.Element(key, target)])
        return requests

    def know_nodes(self, nodes: Mapping[int, str]) -> None:
        """Flows that enter at, or come from, exactly these nodes (index -> address) are known.

        Two may have the same address for a while: one that was lost, and its successor.
        """
        old, self._nodes = self._nodes, dict(nodes)
        table = self._names.table
        lost = set(old.values()) - set(nodes.values())
        new = set(nodes.values()) - set(old.values())
        requests = [
            *nft.delete_elements(table, "nodes", map(_mac_key, old.keys() - nodes.keys())),
            *nft.delete_elements(table, "vteps", [IPv4Address(text).packed for text in lost]),
            *self._add_nodes(nodes.keys() - old.keys(), new),
        ]
        nft.transaction(self._channel, requests)

    def _add_nodes(self, indexes: Iterable[int], addresses: Iterable[str]) -> list[Message]:
        by_mac = [nft.Element(_mac_key(index), struct.pack("=I", mark(index))) for index in indexes]
        by_address = [nft.Element(IPv4Address(text).packed, bytes(4)) for text in addresses]
        table = self._names.table
        return [
            *nft.add_elements(table, "nodes", by_mac),
            *nft.add_elements(table, "vteps", by_address),
        ]

    def facts(self) -> set[Fact]:
        """What the kernel has of it; nothing if the table is gone."""
        found = balancer.facts(self._channel, self._names.table)
        if found:
            for name in ("nodes", "vteps", "hp", "hpa"):
                dump = self._channel.dump(nft.get_elements(self._names.table, name))
                found |= {(name, *item) for item in nft.parse_elements(dump).items()}
        return found

    def wanted(
        self,
        ports: Mapping[tuple[str, int], Collection[tuple[str, int]]],
        nodes: Mapping[int, str],
        hosts: Iterable[HostTarget],
    ) -> set[Fact]:
        """What `facts` is to be with these published ports, peers and ports of sandboxes."""
        groups = {
            balancer.port_key(*port): [balancer.port_backend(*item) for item in backends]
            for port, backends in ports.items()
        }
        rules = balancer.rules(ruleset(self._names, self._subnets, self._vxlan)) + len(self._chains)
        found = audit.groups(groups) | {("rules", rules)}
        for host in hosts:
            name, key = _host_key(host)
            found.add((name, key, balancer.port_backend(host.address, host.target)))
        for index, address in nodes.items():
            found.add(("nodes", _mac_key(index), struct.pack("=I", mark(index))))
            found.add(("vteps", IPv4Address(address).packed, bytes(4)))
        return found

    @property
    def published(self) -> set[tuple[str, int]]:
        """The ports that it has now."""
        return {balancer.port_of(key) for key in self._groups.members}

    @property
    def is_as_left(self) -> bool:
        """Whether nobody but us has changed any table of the machine since the last look."""
        now = nft.generation(self._channel)
        left, self._left = self._left, (now, self._channel.transactions)
        return now - left[0] == self._channel.transactions - left[1]

    def forget_flows(self, address: str, everything: bool) -> None:
        """Have conntrack drop flows to a backend: those of UDP, or all."""
        request = conntrack.forget(IPv4Address(address), 0 if everything else conntrack.UDP)
        self._channel.send([request])

    def clear(self) -> None:
        """Forget published ports and peers (the cluster is left)."""
        self._groups = Groups()
        self._nodes = {}
        self.load(vxlan=0)

    def destroy(self) -> None:
        table = self._names.table
        nft.transaction(self._channel, [nft.add_table(table), nft.delete_table(table)])
