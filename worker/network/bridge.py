"""The node's own bridge: every private sandbox has a leg on it, for the way out and for ingress."""

import errno
import os
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from common.errors import Unavailable
from worker.network import nshelper
from worker.network.ipam import gateway
from worker.network.netlink import rtnl
from worker.network.netlink.channel import Channel, NetlinkError

_ATTEMPTS = 64


class NodeBridge:
    """`shoal0`, or `shoal1` … where other daemons share the namespace. For the helper thread."""

    def __init__(self, name: str, number: int, index: int) -> None:
        self.name = name
        self.number = number
        self._index = index

    @classmethod
    def open(cls, home: Channel, owner: str) -> "NodeBridge":
        """The bridge that `owner` (its state folder) had, or a new one."""
        links = {link.name: link for link in map(rtnl.parse_link, home.dump(rtnl.get_links()))}
        mine = [link for link in links.values() if link.alias == owner and link.kind == "bridge"]
        free = next(number for number in range(_ATTEMPTS) if f"shoal{number}" not in links)
        if mine:
            name = mine[0].name
            return cls(name, int(name.removeprefix("shoal")), mine[0].index)
        name = f"shoal{free}"
        home.send([rtnl.add_bridge(name, mac=f"02:53:{os.urandom(4).hex(':')}")])
        index = rtnl.parse_link(home.ask(rtnl.get_link(name))).index
        home.send([rtnl.set_alias(index, owner)])
        bridge = cls(name, free, index)
        bridge._tune(alone=not any(link.kind == "bridge" for link in links.values()))
        return bridge

    @property
    def index(self) -> int:
        return self._index

    def _tune(self, alone: bool) -> None:
        nshelper.try_sysctl("net.ipv4.ip_forward", "1")
        if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "1":
            raise Unavailable("net.ipv4.ip_forward is 0 and cannot be set: containers need it")
        # So that 127.0.0.1:PORT of the machine reaches containers; see ingress.py for the guard.
        nshelper.try_sysctl(f"net.ipv4.conf.{self.name}.route_localnet", "1")
        nshelper.try_sysctl(f"net.ipv6.conf.{self.name}.disable_ipv6", "1")
        if alone:  # other bridges' owners may need it
            nshelper.try_sysctl("net.bridge.bridge-nf-call-iptables", "0")
        nshelper.try_sysctl("net.ipv4.neigh.default.gc_thresh3", "65536")

    def serve(self, home: Channel, subnets: tuple[IPv4Network, ...]) -> None:
        """Be the gateway of exactly these subnets. Raises NetlinkError."""
        wanted = {IPv4Interface((gateway(net), net.prefixlen)) for net in subnets}
        found = map(rtnl.parse_address, home.dump(rtnl.get_addresses()))
        actual = {item.interface for item in found if item.index == self._index}
        home.send([rtnl.del_address(self._index, item) for item in actual - wanted])
        home.send([rtnl.add_address(self._index, item) for item in wanted - actual])

    def attach(self, home: Channel, port: str) -> None:
        """Without an address of its own: the port would ask in vain whether others have it, and
        report its groups."""
        requests = [rtnl.without_ipv6(port), rtnl.enslave(port, self._index)]
        home.send(requests, {errno.EAFNOSUPPORT})

    def destroy(self, home: Channel) -> None:
        try:
            home.send([rtnl.del_link(self.name)])
        except NetlinkError as error:
            if error.errno != 19:
                raise


def underlay_mtu(home: Channel, address: str) -> int:
    """MTU of the link that has `address`. Raises Unavailable if none has it."""
    for item in map(rtnl.parse_address, home.dump(rtnl.get_addresses())):
        if str(item.interface.ip) == address:
            links = map(rtnl.parse_link, home.dump(rtnl.get_links()))
            return next(link.mtu for link in links if link.index == item.index)
    raise Unavailable(f"no interface of this machine has the node's address {address}")
