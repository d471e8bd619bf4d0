"""A container's network namespace: links, addresses, routes, and the balancer for its VIPs.

The daemon makes it before the container's processes start and hands over a path that keeps it
alive, so it does not die with the daemon.
"""

import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from common.errors import Invalid
from worker.network import audit, balancer, nshelper
from worker.network.audit import Fact
from worker.network.balancer import BY_ADDRESS, Edit, Groups
from worker.network.model import Sandbox, SandboxSpec
from worker.network.netlink import conntrack, nft, rtnl
from worker.network.netlink.channel import NETFILTER, ROUTE, Channel
from worker.network.netlink.codec import Message
from worker.network.nshelper import NamespaceHelper

RESOLVER = "127.0.0.11"  # where a container's resolver is, as with Docker

_TABLE = "shoal"
_FIRST_INDEX = 10  # links eth0, eth1 … have numbers 10, 11 …
_DNS_PORT = 53
_ANYWHERE = IPv4Network("0.0.0.0/0")
_SYSCTLS = {
    "net.ipv6.conf.default.disable_ipv6": "1",
    "net.ipv4.ping_group_range": "0 2147483647",
    "net.ipv4.ip_unprivileged_port_start": "0",
    # A connection through a VIP lives as long as its ends, however idle (five days otherwise): what
    # the kernel takes is bounded by its clock, and flows to what is gone are forgotten by us.
    "net.netfilter.nf_conntrack_tcp_timeout_established": "2147483",
}


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One veth pair: its end in the sandbox, and its near end in a bridge's namespace. Without a
    near end: a macvlan's child."""

    name: str  # eth0, eth1 …
    near: str
    mac: str
    address: str  # CIDR
    network_id: str = ""  # "" for the node's bridge
    gateway: str = ""  # default route
    local: bool = False  # a network that a user made on this node
    sysctls: dict[str, str] = {}  # of its link

    @property
    def place(self) -> int:
        return int(self.name.removeprefix("eth"))

    @property
    def index(self) -> int:
        """Of the link in the sandbox."""
        return _FIRST_INDEX + self.place


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to adopt a sandbox."""

    spec: SandboxSpec
    sandbox: Sandbox
    legs: tuple[Leg, ...] = ()
    changing: bool = False  # its links may not be what `legs` say: we were killed on the way

    @property
    def on_overlays(self) -> bool:
        """Whether there are VIPs it is to balance."""
        return any(leg.network_id and not leg.local for leg in self.legs)

    def legs_on(self, network_id: str) -> list[Leg]:
        """Its ends on one overlay."""
        return [leg for leg in self.legs if leg.network_id == network_id]


class Plug(NamedTuple):
    """A leg, the namespace (a descriptor) that its near end goes to, and their MTU; -1: it has no
    near end, and its link is there already."""

    leg: Leg
    namespace: int
    mtu: int


def link_requests(plugs: Sequence[Plug]) -> list[Message]:
    """What makes the sandbox's links, addresses and routes."""
    found = [rtnl.set_up(1)]
    for leg, namespace, mtu in plugs:
        if namespace >= 0:
            found.append(
                rtnl.add_veth(
                    leg.name, leg.index, leg.near, mac=leg.mac, mtu=mtu, namespace=namespace
                )
            )
        found.append(rtnl.add_address(leg.index, IPv4Interface(leg.address)))
        if leg.gateway:
            found.append(rtnl.route(_ANYWHERE, leg.index, IPv4Address(leg.gateway)))
    return found


def ruleset(udp_port: int, tcp_port: int, *, balanced: bool) -> list[Message]:
    """What the sandbox's table holds but for groups: names go to the resolver, and, if it is to be
    `balanced`, VIPs to a backend."""
    requests = [
        nft.add_base_chain(_TABLE, "out", "nat", nft.OUTPUT, nft.OUTNAT),
        _redirect(socket.IPPROTO_UDP, udp_port),
        _redirect(socket.IPPROTO_TCP, tcp_port),
    ]
    if balanced:
        requests += [
            *balancer.maps(_TABLE, BY_ADDRESS),
            nft.add_rule(_TABLE, "out", *balancer.choose(BY_ADDRESS)),
            nft.add_base_chain(_TABLE, "flt", "filter", nft.OUTPUT, nft.FILTER),
            nft.add_rule(_TABLE, "flt", *balancer.reject(BY_ADDRESS)),
        ]
    return requests


def _redirect(protocol: int, port: int) -> Message:
    """ip daddr 127.0.0.11 PROTOCOL dport 53 dnat to 127.0.0.11:PORT"""
    address = IPv4Address(RESOLVER).packed
    return nft.add_rule(
        _TABLE,
        "out",
        nft.ip_destination(0) + nft.compare(0, address),
        nft.protocol(0) + nft.compare(0, bytes([protocol])),
        nft.port(0) + nft.compare(0, struct.pack("!H", _DNS_PORT)),
        nft.load(0, address) + nft.load(1, struct.pack("!H", port)),
        nft.dnat(0, 1),
    )


class Bare(NamedTuple):
    """A new namespace with nothing but loopback, of nobody yet."""

    descriptor: int
    route: Channel
    filter: Channel

    @classmethod
    def make(cls, helper: NamespaceHelper, sysctls: dict[str, str]) -> "Bare":
        """Raises Invalid for `sysctls` that the kernel refuses."""
        descriptor, channels = helper.create(lambda: _prepare(sysctls))
        return cls(descriptor, *channels)

    def close(self) -> None:
        self.route.close()
        self.filter.close()
        os.close(self.descriptor)


class Namespace:
    """The kernel side of one sandbox. For the helper thread; `udp` and `tcp` are the loop's.

    `balanced`: it is on overlays, so it needs a balancer, which is changed again and again, and
    keeps the channel for that. Others are opened when they are needed: each takes 3 KB of the
    kernel.
    """

    def __init__(
        self, helper: NamespaceHelper, path: Path, descriptor: int, *, balanced: bool
    ) -> None:
        self._helper = helper
        self._path = path
        self._descriptor = descriptor
        self._balanced = balanced
        self._kept = {NETFILTER} if balanced else set()
        self._open: dict[int, Channel] = {}
        self._chains: set[int] = set()
        self._new = False  # it has no table yet
        self.udp: socket.socket | None = None
        self.tcp: socket.socket | None = None

    @classmethod
    def keep(cls, helper: NamespaceHelper, bare: Bare, path: Path, *, balanced: bool) -> Self:
        """Make `bare` a sandbox's own, kept alive under `path`."""
        namespace = cls(helper, path, bare.descriptor, balanced=balanced)
        namespace._open = {ROUTE: bare.route, NETFILTER: bare.filter}
        namespace._new = True
        try:
            nshelper.persist(bare.descriptor, path)
        except BaseException:
            namespace.close()
            raise
        return namespace

    @classmethod
    def adopt(cls, helper: NamespaceHelper, path: Path, *, balanced: bool) -> Self | None:
        """The one that an earlier daemon kept under `path`; None if it is gone."""
        descriptor = nshelper.reopen(path)
        return None if descriptor is None else cls(helper, path, descriptor, balanced=balanced)

    @contextmanager
    def _channel(self, family: int) -> Iterator[Channel]:
        if family not in self._open:
            with self._helper.inside(self._descriptor):
                self._open[family] = Channel.open(family)
        try:
            yield self._open[family]
        finally:
            if family not in self._kept:
                self._open.pop(family).close()

    def settle(self) -> None:
        """Close the channels it was made with, but what it is to keep."""
        for family in self._open.keys() - self._kept:
            self._open.pop(family).close()

    def connect(self, plugs: Sequence[Plug]) -> None:
        """Make the links; the near ends are in place afterwards, but down and on their own."""
        with self._channel(ROUTE) as route:
            route.send(link_requests(plugs))

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def reroute(self, legs: Sequence[Leg]) -> None:
        """The default route is the one that `legs` say, or none."""
        wanted = next((leg for leg in legs if leg.gateway), None)
        with self._channel(ROUTE) as route:
            if wanted is not None:
                way = IPv4Address(wanted.gateway)
                route.send([rtnl.route(_ANYWHERE, wanted.index, way)])
                return
            gone = [rtnl.route(_ANYWHERE, leg.index, delete=True) for leg in legs]
            route.send(gone, _NO_SUCH)

    def disconnect(self, names: Sequence[str]) -> None:
        """Remove links with both their ends; those that are gone are no error."""
        with self._channel(ROUTE) as route:
            route.send([rtnl.del_link(name) for name in names], _NO_SUCH)

    def tune(self, legs: Sequence[Leg]) -> None:
        """Set the sysctls of their links. Raises Invalid for what the kernel refuses."""
        if not any(leg.sysctls for leg in legs):
            return
        with self._helper.inside(self._descriptor):
            for leg in legs:
                _set_sysctls(leg.sysctls)

    def links(self) -> set[str]:
        """The names of its links, but for loopback."""
        with self._channel(ROUTE) as route:
            found = [rtnl.parse_link(message) for message in route.dump(rtnl.get_links())]
        return {link.name for link in found if link.name.startswith("eth")}

    def balanced(self, on: bool) -> None:
        """Whether it has a balancer from the next `load` on."""
        self._balanced = on
        self._kept = {NETFILTER} if on else set()
        self.settle()

    def open_resolver(self) -> None:
        """Make the sockets of this sandbox's resolver."""
        with self._helper.inside(self._descriptor):
            self.udp, self.tcp = nshelper.udp_and_tcp(RESOLVER)

    def load(self, groups: Groups) -> None:
        """Put the whole table in place in one transaction, whatever was there."""
        assert self.udp is not None
        assert self.tcp is not None
        edits = groups.everything()
        wanted = balancer.counts(edits)
        # Where something was removed, the channel's end waits for an RCU grace period, 10 ms.
        table = [nft.add_table(_TABLE)] if self._new else nft.fresh_table(_TABLE)
        requests = [
            *table,
            *ruleset(self.udp.getsockname()[1], self.tcp.getsockname()[1], balanced=self._balanced),
            *balancer.chains(_TABLE, BY_ADDRESS, wanted),
            *balancer.messages(_TABLE, edits),
        ]
        with self._channel(NETFILTER) as channel:
            nft.transaction(channel, requests)
        self._chains, self._new = wanted, False

    def balance(self, edits: Sequence[Edit], ready: Sequence[Message]) -> None:
        """Carry out `edits`; `ready` are their messages, the same for many sandboxes.

        Raises NetlinkError: then the kernel's maps are not what we believed, and are to be loaded.
        """
        missing = balancer.counts(edits) - self._chains
        extra = balancer.chains(_TABLE, BY_ADDRESS, missing)
        with self._channel(NETFILTER) as channel:
            nft.transaction(channel, [*extra, *ready])
        self._chains |= missing

    def facts(self) -> set[Fact]:
        """What its table makes of VIPs, and how many rules there are; nothing if it is gone."""
        with self._channel(NETFILTER) as channel:
            return balancer.facts(channel, _TABLE, maps=self._balanced)

    def wanted(self, groups: Mapping[bytes, Collection[bytes]]) -> set[Fact]:
        """What `facts` is to be if the VIPs are `groups`."""
        rules = balancer.rules(ruleset(0, 0, balanced=self._balanced)) + len(self._chains)
        return audit.groups(groups) | {("rules", rules)}

    def neighbours(self) -> list[tuple[int, str, str]]:
        """What it has found out by ARP: (place of the leg, address, MAC)."""
        with self._channel(ROUTE) as route:
            found = route.dump(rtnl.get_neighbours(socket.AF_INET))
        entries = map(rtnl.parse_neighbour, found)
        return [
            (entry.index - _FIRST_INDEX, entry.address, entry.mac)
            for entry in entries
            if entry.mac and entry.state & _VALID and not entry.state & _PERMANENT
        ]

    def forget_flows(self, requests: Sequence[Message]) -> None:
        """Have conntrack drop the flows that `requests` name, unless it tracks none at all."""
        if not requests:
            return
        with self._channel(NETFILTER) as channel:
            if conntrack.count(channel):
                channel.send(requests)

    def forget_neighbours(self, found: Sequence[tuple[int, IPv4Address, str]]) -> None:
        """Have the next packet ask anew where an address is: (place of the leg, address, MAC)."""
        requests = [
            rtnl.neighbour(_FIRST_INDEX + place, str(address), mac, delete=True)
            for place, address, mac in found
        ]
        if requests:
            with self._channel(ROUTE) as route:
                route.send(requests, _NO_SUCH)

    def close(self) -> None:
        """Let go of it; it lives on under its path."""
        for sock in (self.udp, self.tcp):
            if sock is not None:
                sock.close()
        for channel in self._open.values():
            channel.close()
        os.close(self._descriptor)

    def destroy(self) -> None:
        """Remove it. The kernel takes its links, both ends, once no process is left inside."""
        nshelper.forget(self._path)
        self.close()


_NO_SUCH = {2, 3, 19}
_PERMANENT = 0x80
_VALID = 0x02 | 0x04 | 0x08 | 0x10  # reachable, stale, delayed, probed


def _prepare(sysctls: dict[str, str]) -> tuple[Channel, Channel]:
    for name, value in _SYSCTLS.items():
        nshelper.try_sysctl(name, value)
    route = Channel.open(ROUTE)
    route.send([rtnl.set_up(1)])
    try:
        _set_sysctls(sysctls)
    except Invalid:
        route.close()
        raise
    return route, Channel.open(NETFILTER)


def _set_sysctls(sysctls: Mapping[str, str]) -> None:
    """In the calling thread's namespace. Raises Invalid."""
    for name, value in sysctls.items():
        try:
            nshelper.write_sysctl(name, value)
        except OSError as error:
            raise Invalid(f"sysctl {name}={value} is refused: {error.strerror}") from error


def network_sysctls(wanted: dict[str, str]) -> dict[str, str]:
    """Those of the network namespace. Raises Invalid for a name that leads elsewhere."""
    for name in wanted:
        if name.startswith("net.") and ("/" in name or ".." in name or not name.isprintable()):
            raise Invalid(f"sysctl {name!r} is not a valid name")
    return {name: value for name, value in wanted.items() if name.startswith("net.")}


def resolv_conf(spec: SandboxSpec, search: Sequence[str]) -> str:
    """/etc/resolv.conf of a private sandbox. `search`: the machine's domains."""
    domains = spec.dns_search or tuple(search)
    lines = [f"nameserver {RESOLVER}"]
    if domains and domains != (".",):
        lines.append("search " + " ".join(domains))
    options = spec.dns_options or ("ndots:0",)
    lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def hosts(hostname: str, addresses: Sequence[str]) -> str:
    """/etc/hosts of a sandbox."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    if hostname:
        names = hostname if "." not in hostname else f"{hostname} {hostname.split('.')[0]}"
        lines += [f"{address}\t{names}" for address in addresses]
    return "\n".join(lines) + "\n"
