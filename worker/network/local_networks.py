"""The networks that users made on this node, their addresses, and who is named on them.

Loop side: what the kernel has of them is in `bridges.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from common.errors import Conflict, Forbidden, Invalid, NotFound
from common.protocol.network import (
    NetworkChange,
    NetworkItem,
    OverlayEndpoint,
    OverlayNetwork,
    Subnet,
    key,
)
from worker.network.ipam import Ipam
from worker.network.journal import Journal
from worker.network.local_spec import LocalNetwork
from worker.network.model import Interface, SandboxSpec
from worker.network.names import Scope
from worker.network.sandbox import Leg, SandboxRecord
from worker.network.table import Table

_KIND = "networks"
_SHORT = 12


class LocalNetworks:
    """All of one daemon, by id. Changes are on disk before the kernel hears of them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._networks: dict[str, LocalNetwork] = {}
        self._ipams: dict[str, Ipam] = {}
        self.names = Table()  # of this node's containers
        self._shown: dict[str, tuple[OverlayEndpoint, ...]] = {}  # by container

    def load(self, records: Iterable[SandboxRecord]) -> list[LocalNetwork]:
        """Read what is on disk; `records`: the sandboxes that there are."""
        for network in self._journal.load(_KIND, LocalNetwork).values():
            self._networks[network.id] = network
            self._ipams[network.id] = _ipam(network)
        for record in records:
            for leg in record.legs:
                if leg.network_id in self._ipams:
                    self._ipams[leg.network_id].note(_address(leg))
        return list(self._networks.values())

    def __contains__(self, network_id: str) -> bool:
        return network_id in self._networks

    def all(self) -> list[LocalNetwork]:
        return list(self._networks.values())

    def get(self, network_id: str) -> LocalNetwork:
        """Raises NotFound."""
        found = self._networks.get(network_id)
        if found is None:
            raise NotFound(f"network {network_id} not found")
        return found

    def subnets(self) -> list[IPv4Network]:
        return [network.subnet.network for network in self._networks.values()]

    def check(self, wanted: LocalNetwork) -> None:
        """Raises Conflict (the name, the interface), Forbidden (the subnet is taken)."""
        for other in self._networks.values():
            if other.name == wanted.name:
                raise Conflict(f"network with name {wanted.name} already exists")
            if other.driver == wanted.driver == "bridge" and other.link == wanted.link:
                raise Conflict(f"interface {wanted.link} is network {other.name}'s already")
            if wanted.subnet.network.overlaps(other.subnet.network):
                raise Forbidden(
                    "invalid pool request: Pool overlaps with other one on this address space: "
                    f"{wanted.subnet.subnet} with {other.subnet.subnet} of network {other.name}"
                )

    def add(self, network: LocalNetwork) -> None:
        """Blocking: returns when it survives a power cut."""
        self._journal.put(_KIND, network.id, network, sync=True)
        self._networks[network.id] = network
        self._ipams[network.id] = _ipam(network)

    def drop(self, network_id: str) -> None:
        """Blocking. Safe to repeat."""
        self._journal.remove(_KIND, network_id, sync=True)
        self._networks.pop(network_id, None)
        self._ipams.pop(network_id, None)

    # Addresses

    def take(self, network_id: str, wish: str) -> str:
        """An address with its prefix length: `wish`, or a free one. Raises Invalid, Forbidden,
        Unavailable."""
        network, ipam = self.get(network_id), self._ipams[network_id]
        if wish:
            check_wish(network, wish)
        address = ipam.claim(IPv4Address(wish)) if wish else ipam.take()
        return f"{address}/{ipam.subnet.prefixlen}"

    def give_back(self, legs: Iterable[Leg]) -> None:
        for leg in legs:
            if leg.network_id in self._ipams:
                self._ipams[leg.network_id].give_back(_address(leg))

    # Names

    def as_overlay(self, network_id: str) -> OverlayNetwork | None:
        """A network of this node in the words of the cluster's."""
        network = self._networks.get(network_id)
        if network is None:
            return None
        subnet = Subnet(subnet=network.subnet.subnet, gateway=network.subnet.gateway)
        return OverlayNetwork(id=network_id, name=network.name, vni=0, subnets=(subnet,))

    def show(self, record: SandboxRecord, bridge: str) -> None:
        """Others find the sandbox by its names from now on. `bridge`: the id of the node's own,
        where only links do."""
        self.hide(record.spec.id)
        aliases = {item.network_id: item.aliases for item in record.spec.attachments}
        shown = tuple(
            self._endpoint(record.spec, interface, aliases.get(interface.network_id, ()))
            for interface in record.sandbox.interfaces
            if interface.network_id in self._networks or interface.network_id == bridge
        )
        self._shown[record.spec.id] = shown
        self.names.apply(NetworkChange(puts=shown))

    def _endpoint(
        self, spec: SandboxSpec, interface: Interface, aliases: Sequence[str]
    ) -> OverlayEndpoint:
        named = interface.network_id in self._networks
        return OverlayEndpoint(
            task_id=spec.id,
            network_id=interface.network_id,
            node_id="",
            address=interface.address.split("/")[0],
            mac=interface.mac,
            task_name=spec.name if named else "",
            aliases=dns_names(spec.name, aliases, spec.id, spec.hostname)[1:] if named else (),
            active=True,
        )

    def hide(self, container_id: str) -> None:
        gone = self._shown.pop(container_id, ())
        self.names.apply(NetworkChange(removes=tuple(key(item) for item in gone)))

    def endpoint(self, network_id: str, container_id: str) -> list[NetworkItem]:
        """Of a container that runs; empty if it is not on the network."""
        shown = self._shown.get(container_id, ())
        return [item for item in shown if item.network_id == network_id]


def dns_names(name: str, aliases: Sequence[str], id: str, hostname: str) -> tuple[str, ...]:
    """What others on its network may call a container, its name first."""
    return tuple(dict.fromkeys([name, *aliases, id[:_SHORT], *([hostname] if hostname else [])]))


def check_wish(network: LocalNetwork, wish: str) -> None:
    """Raises Invalid unless a container may ask for the address `wish`."""
    if not network.subnet.given:
        raise Invalid(
            "user specified IP address is supported only when connecting to networks with user "
            f"configured subnets: make network {network.name} with --subnet"
        )
    try:
        address = IPv4Address(wish)
    except ValueError as error:
        raise Invalid(f"invalid IPv4 address: {wish}") from error
    if address not in network.subnet.network:
        raise Invalid(
            f"Invalid address {wish}: It does not belong to any of this network's subnets"
        )


def _ipam(network: LocalNetwork) -> Ipam:
    subnet = network.subnet
    return Ipam(
        subnet.network,
        gateway_=IPv4Address(subnet.gateway),
        within=IPv4Network(subnet.ip_range) if subnet.ip_range else None,
        reserved=[IPv4Address(text) for text in subnet.aux.values()],
    )


def _address(leg: Leg) -> IPv4Address:
    return IPv4Address(leg.address.split("/")[0])


class Directory:
    """Who has which name, as one sandbox sees it: the cluster's table, this node's, its links."""

    def __init__(
        self, cluster: Table, here: LocalNetworks, links: Mapping[tuple[str, str], set[str]]
    ) -> None:
        """`links`: (network, name in lower case) -> ids of containers."""
        self._cluster = cluster
        self._here = here
        self._links = links

    def network(self, network_id: str) -> OverlayNetwork | None:
        return self._cluster.network(network_id) or self._here.as_overlay(network_id)

    def _table(self, network_id: str) -> Table:
        endpoints = self._cluster.network(network_id)
        return self._here.names if endpoints is None else self._cluster

    def named(self, network_id: str, name: str) -> list[NetworkItem]:
        found = self._table(network_id).named(network_id, name)
        linked = self._links.get((network_id, name), ())
        return [*found, *(item for one in linked for item in self._here.endpoint(network_id, one))]

    def at(self, network_id: str, address: str) -> list[NetworkItem]:
        return self._table(network_id).at(network_id, address)

    def active(self, network_id: str, service_id: str) -> list[str]:
        return self._table(network_id).active(network_id, service_id)


def scopes(record: SandboxRecord, bridge: str) -> list[Scope]:
    """The networks whose names a sandbox sees; the node's own bridge has none but links."""
    return [
        Scope(item.network_id, item.network_name)
        for item in record.spec.attachments
        if item.network_id != bridge or item.links
    ]


def links(record: SandboxRecord) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for item in record.spec.attachments:
        for link in item.links:
            container_id, _, alias = link.partition(":")
            found.setdefault((item.network_id, alias.lower()), set()).add(container_id)
    return found
