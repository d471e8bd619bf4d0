"""The way between the nodes' own subnets: one L3 VXLAN device, fed from the table's peers.

See ingress.py for what it carries. Every node's device has a MAC made of the node's index.
"""

import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from worker.network import nshelper
from worker.network.audit import Fact
from worker.network.ingress import mark, mesh_index, mesh_mac
from worker.network.ipam import gateway, node_subnet
from worker.network.netlink import rtnl
from worker.network.netlink.channel import Channel, NetlinkError
from worker.network.netlink.codec import Message

VNI = 1  # below those that managers give to overlays

_RULE_PRIORITY = 100
_TABLE_BASE = 20000
_EVERYWHERE = IPv4Network("0.0.0.0/0")
_GONE = {2, 3, 19}
_EXISTS = {17}
_SELF = 0x02
_PERMANENT = 0x80


class Mesh:
    """The device and what leads over it. For the helper thread."""

    def __init__(self, home: Channel, name: str, bridge: str, pool: str, own: int) -> None:
        self.name = name
        self._home = home
        self._bridge = bridge
        self._pool = pool
        self._own = own
        self._index = 0
        self._peers: dict[int, str] = {}

    def open(self, address: str, port: int, mtu: int, adopt: bool) -> None:
        """Make the device; with `adopt`, go on with the one that is there if it fits."""
        found = self._find()
        if not adopt or found is None or found.mac != mesh_mac(self._own) or found.mtu != mtu:
            self._create(address, port, mtu)
        else:
            self._index = found.index
            self._peers = self._read()

    def _find(self) -> rtnl.Link | None:
        try:
            return rtnl.parse_link(self._home.ask(rtnl.get_link(self.name)))
        except NetlinkError:
            return None

    def _create(self, address: str, port: int, mtu: int) -> None:
        self._home.send([rtnl.del_link(self.name)], _GONE)
        mac = mesh_mac(self._own)
        device = rtnl.add_vxlan(
            self.name, VNI, IPv4Address(address), port, mtu=mtu, mac=mac, proxy=False
        )
        self._home.send([device])
        link = self._find()
        assert link is not None
        self._index = link.index
        own = gateway(node_subnet(self._pool, self._own))
        # Flows may come from anywhere: the client's address is kept.
        nshelper.try_sysctl(f"net.ipv4.conf.{self.name}.rp_filter", "2")
        nshelper.try_sysctl(f"net.ipv4.conf.{self.name}.route_localnet", "1")
        nshelper.try_sysctl(f"net.ipv6.conf.{self.name}.disable_ipv6", "1")
        self._home.send([rtnl.add_address(self._index, IPv4Interface((own, 32)))])

    def program(self, peers: Mapping[int, str]) -> None:
        """Reach exactly these other nodes: index -> VTEP address."""
        wanted = {index: address for index, address in peers.items() if index != self._own}
        gone = {
            index: address for index, address in self._peers.items() if wanted.get(index) != address
        }
        fresh = {
            index: address for index, address in wanted.items() if self._peers.get(index) != address
        }
        for index, address in gone.items():
            self._home.send(self._requests(index, address, delete=True), _GONE)
        for index, address in fresh.items():
            self._home.send(self._requests(index, address, delete=False), _EXISTS)
        self._peers = wanted

    def refresh(self) -> None:
        """Forget whom we reach: all of it will be made again."""
        self._peers = self._read()
        self.program({})
        requests = []
        for fact in self.facts():
            match fact:
                case "neighbour", str(address), str(mac):
                    requests.append(rtnl.neighbour(self._index, address, mac, delete=True))
                case "route", str(text):
                    subnet = IPv4Network(text)
                    requests.append(rtnl.route(subnet, self._index, gateway(subnet), delete=True))
        self._home.send(requests, _GONE)
        _remove_rules(self._home, self._bridge)

    def wanted(self, peers: Mapping[int, str]) -> set[Fact]:
        """What leads to these other nodes (index -> VTEP address)."""
        found: set[Fact] = set()
        for index, address in peers.items():
            if index != self._own:
                subnet = node_subnet(self._pool, index)
                found |= {
                    ("vtep", index, address),
                    ("neighbour", str(gateway(subnet)), mesh_mac(index)),
                    ("route", str(subnet)),
                    ("rule", mark(index), _TABLE_BASE + index),
                }
        return found

    def facts(self) -> set[Fact]:
        """What the kernel has of it."""
        found: set[Fact] = {("vtep", index, address) for index, address in self._read().items()}
        for message in self._home.dump(rtnl.get_neighbours(socket.AF_INET)):
            entry = rtnl.parse_neighbour(message)
            if entry.index == self._index and entry.state & _PERMANENT:
                found.add(("neighbour", entry.address, entry.mac))
        for route in map(rtnl.parse_route, self._home.dump(rtnl.get_routes())):
            # The ways back, in tables of their own, come and go with their rules.
            if route.index == self._index and route.static and route.destination.prefixlen:
                found.add(("route", str(route.destination)))
        rules = own_rules(self._home, self._bridge)
        return found | {("rule", rule.mark, rule.table) for rule in rules}

    def _requests(self, index: int, address: str, delete: bool) -> list[Message]:
        """The ways to node `index`: its subnet, and answers to flows that entered there."""
        subnet = node_subnet(self._pool, index)
        far, mac = gateway(subnet), mesh_mac(index)
        own = gateway(node_subnet(self._pool, self._own))
        table = _TABLE_BASE + index
        return [
            rtnl.vtep(self._index, mac, address, bridged=False, delete=delete),
            rtnl.neighbour(self._index, str(far), mac, delete=delete),
            rtnl.route(subnet, self._index, far, source=own, delete=delete),
            rtnl.route(_EVERYWHERE, self._index, far, table=table, delete=delete),
            rtnl.mark_rule(_RULE_PRIORITY, self._bridge, mark(index), table, delete=delete),
        ]

    def _read(self) -> dict[int, str]:
        found = {}
        for message in self._home.dump(rtnl.get_neighbours(rtnl.AF_BRIDGE)):
            entry = rtnl.parse_neighbour(message)
            if entry.index == self._index and entry.flags & _SELF and entry.address:
                found[mesh_index(entry.mac)] = entry.address
        return found

    def destroy(self) -> None:
        remove_all(self._home, self.name, self._bridge)


def remove_all(home: Channel, name: str, bridge: str) -> None:
    """Remove the device and the rules that lead to it, whoever made them."""
    _remove_rules(home, bridge)
    home.send([rtnl.del_link(name)], _GONE)


def own_rules(home: Channel, bridge: str) -> list[rtnl.Rule]:
    rules = map(rtnl.parse_rule, home.dump(rtnl.get_rules()))
    return [rule for rule in rules if rule.incoming == bridge and rule.priority == _RULE_PRIORITY]


def _remove_rules(home: Channel, bridge: str) -> None:
    home.send(
        [
            rtnl.mark_rule(rule.priority, bridge, rule.mark, rule.table, delete=True)
            for rule in own_rules(home, bridge)
        ],
        _GONE,
    )
