"""Kernel state of the networks that users make on this node: bridges, and macvlan's children.

A bridge carries in its alias who made it for which network, so that a daemon that was killed finds
it again, and removes what no network on disk stands for. For the helper thread.
"""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from common.errors import Conflict, NotFound, ShoalError, Unavailable
from worker.network import balancer
from worker.network.audit import Difference, Fact, compare
from worker.network.bridge_rules import BridgeRule, ruleset
from worker.network.local_spec import BRIDGE, MACVLAN, LocalNetwork
from worker.network.netlink import nft, rtnl
from worker.network.netlink.channel import Channel, NetlinkError
from worker.network.netlink.codec import Message
from worker.network.sandbox import Leg

_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV}
_PROBE = "shoal-probe"


class Bridges:
    """All of one daemon. `own`: the node's bridge and mesh; `mtu`: the machine's, now."""

    def __init__(
        self,
        home: Channel,
        filter_: Channel,
        owner: str,
        own: Sequence[str],
        mtu: Callable[[], int],
    ) -> None:
        self._home = home
        self._filter = filter_
        self._owner = owner
        self._own = tuple(own)
        self._table = f"{own[0]}-nets"
        self._mtu = mtu
        self._networks: dict[str, LocalNetwork] = {}
        self._indexes: dict[str, int] = {}  # network -> its bridge, or its parent

    def __contains__(self, network_id: str) -> bool:
        return network_id in self._networks

    def network(self, network_id: str) -> LocalNetwork | None:
        return self._networks.get(network_id)

    @property
    def links(self) -> set[str]:
        return {net.link for net in self._networks.values() if net.driver == BRIDGE}

    # Networks

    def start(self, networks: Iterable[LocalNetwork]) -> list[str]:
        """Have these networks and no others of ours; in words, those that could not be made."""
        wanted = {network.id: network for network in networks}
        for link in map(rtnl.parse_link, self._home.dump(rtnl.get_links())):
            place, _, network_id = link.alias.rpartition("#")
            if place == self._owner and link.kind == "bridge" and network_id not in wanted:
                self._home.send([rtnl.del_link(link.name)], _GONE)
        self._networks = wanted
        problems = []
        for network in wanted.values():
            try:
                self._make(network)
            except (OSError, ShoalError) as error:
                problems.append(f"network {network.name}: {error}")
        self._load()
        return problems

    def create(self, network: LocalNetwork) -> None:
        """Raises Conflict (the name of the link is taken), NotFound (the parent), Unavailable,
        NetlinkError; nothing is left then."""
        try:
            self._make(network)
            self._networks[network.id] = network
            self._load()
        except BaseException:
            self._networks.pop(network.id, None)
            self._indexes.pop(network.id, None)
            self._discard(network)
            raise

    def _discard(self, network: LocalNetwork) -> None:
        """Remove what was made of a bridge, but no other interface of its name."""
        for name in {network.link, _first_name(network)} if network.driver == BRIDGE else ():
            link = self._find(name)
            if link is not None and link.alias == self._alias(network):
                self._home.send([rtnl.del_link(name)], _GONE)

    def _alias(self, network: LocalNetwork) -> str:
        return f"{self._owner}#{network.id}"

    def remove(self, network_id: str) -> None:
        """Safe to repeat."""
        network = self._networks.pop(network_id, None)
        self._indexes.pop(network_id, None)
        if network is not None and network.driver == BRIDGE:
            self._home.send([rtnl.del_link(network.link)], _GONE)
            self._load()

    def load(self) -> None:
        """Put the table in place again, whatever became of it."""
        self._load()

    def close(self) -> None:
        """Nobody needs them: remove bridges and table; the next start makes them anew."""
        for network in self._networks.values():
            if network.driver == BRIDGE:
                self._home.send([rtnl.del_link(network.link)], _GONE)
        nft.transaction(self._filter, [nft.add_table(self._table), nft.delete_table(self._table)])

    def differences(self) -> list[Difference]:
        """Whether the table has the rules that it should have."""
        wanted: set[Fact] = {("rules", balancer.rules(self._ruleset()))}
        found = balancer.facts(self._filter, self._table, maps=False)
        return compare("bridges", "", wanted, found or {("rules", 0)})

    def _ruleset(self) -> list[Message]:
        """Empty if no rules are needed."""
        rules = [
            BridgeRule(net.link, net.subnet.network, net.internal, net.talk, net.masquerade)
            for net in sorted(self._networks.values(), key=lambda net: net.link)
            if net.driver == BRIDGE
        ]
        return ruleset(self._table, rules, self._own) if rules else []

    def _load(self) -> None:
        if rules := self._ruleset():
            nft.transaction(self._filter, rules)
        else:
            table = self._table
            nft.transaction(self._filter, [nft.add_table(table), nft.delete_table(table)])

    def _make(self, network: LocalNetwork) -> None:
        if network.driver == BRIDGE:
            self._indexes[network.id] = self._make_bridge(network)
        else:
            self._indexes[network.id] = self._check_parent(network)

    def _make_bridge(self, network: LocalNetwork) -> int:
        alias = self._alias(network)
        link = self._find(network.link)
        if link is not None and not link.alias and link.name == _first_name(network):
            link = None  # we were killed in the middle of making it
        if link is not None and link.alias != alias:
            raise Conflict(
                f"interface {network.link} is there already and not this network's: choose another "
                "com.docker.network.bridge.name"
            )
        index = link.index if link is not None else self._add_bridge(network, alias)
        self._tune(network, index)
        return index

    def _add_bridge(self, network: LocalNetwork, alias: str) -> int:
        """Its first name shows whose it is if we are killed before it has its alias."""
        name = _first_name(network)
        mac = f"02:42:{os.urandom(4).hex(':')}"
        mtu = network.mtu or self._mtu()
        self._home.send([rtnl.add_bridge(name, mtu=mtu, mac=mac)], {errno.EEXIST})
        index = rtnl.parse_link(self._home.ask(rtnl.get_link(name))).index
        self._home.send([rtnl.set_alias(index, alias)])
        if network.link != name:
            rename = [rtnl.set_up(index, False), rtnl.set_name(index, network.link)]
            self._home.send([*rename, rtnl.set_up(index)])
        return index

    def _find(self, name: str) -> rtnl.Link | None:
        try:
            return rtnl.parse_link(self._home.ask(rtnl.get_link(name)))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return None

    def _tune(self, network: LocalNetwork, index: int) -> None:
        subnet = network.subnet
        address = IPv4Interface((IPv4Address(subnet.gateway), subnet.network.prefixlen))
        for family, name in (("ipv4", "route_localnet"), ("ipv6", "disable_ipv6")):
            with suppress(OSError):  # a kernel without IPv6
                Path(f"/proc/sys/net/{family}/conf/{network.link}/{name}").write_text("1")
        self._home.send([rtnl.add_address(index, address)])

    def _check_parent(self, network: LocalNetwork) -> int:
        """The parent's number. Raises NotFound, Unavailable if the kernel has no such driver."""
        link = self._find(network.link)
        if link is None:
            raise NotFound(f"parent interface {network.link} is not on this machine")
        try:
            self._home.send([self._child(network, link.index, _PROBE)])
        except NetlinkError as error:
            raise Unavailable(
                f"the kernel of this machine refuses {network.driver} on {network.link}: "
                f"{error.strerror}"
            ) from error
        self._home.send([rtnl.del_link(_PROBE)], _GONE)
        return link.index

    def _child(
        self,
        network: LocalNetwork,
        parent: int,
        name: str,
        *,
        index: int = 0,
        namespace: int = -1,
        mac: str = "",
    ) -> Message:
        kind = rtnl.add_macvlan if network.driver == MACVLAN else rtnl.add_ipvlan
        return kind(name, parent, network.mode, index=index, mac=mac, namespace=namespace)

    # Sandboxes

    def ensure(self, network_id: str) -> None:
        """The network's kernel state is there, also if somebody removed it. Raises as `create`."""
        network = self._networks[network_id]
        index = self._indexes.get(network_id)
        found = self._find(network.link)
        if index is None or found is None or found.index != index:
            self._make(network)
            self._load()

    def mtu(self, network_id: str) -> int:
        network = self._networks.get(network_id)
        return (network.mtu if network is not None else 0) or self._mtu()

    def has_ports(self, network_id: str) -> bool:
        """Whether a sandbox has a veth pair to it: a macvlan's child has no near end."""
        return self._networks[network_id].driver == BRIDGE

    def attach(self, network_id: str, port: str) -> None:
        """Take in the near end of a sandbox's veth pair."""
        index = self._indexes[network_id]
        self._home.send([rtnl.without_ipv6(port), rtnl.enslave(port, index)], {errno.EAFNOSUPPORT})
        if not self._networks[network_id].talk:
            near = rtnl.parse_link(self._home.ask(rtnl.get_link(port))).index
            self._home.send([rtnl.set_isolated(near, True)])

    def bear(self, leg: Leg, namespace: int) -> None:
        """Make a macvlan's or ipvlan's child in `namespace` (a descriptor). Raises Unavailable."""
        network = self._networks[leg.network_id]
        parent = self._indexes[leg.network_id]
        child = self._child(
            network, parent, leg.name, index=leg.index, namespace=namespace, mac=leg.mac
        )
        try:
            self._home.send([child])
        except NetlinkError as error:
            raise Unavailable(
                f"network {network.name}: the kernel refuses {network.driver} on {network.link}: "
                f"{error.strerror}"
            ) from error


def _first_name(network: LocalNetwork) -> str:
    """Of its bridge until it has its alias, and unless another is asked for."""
    return f"br-{network.id[:12]}"
