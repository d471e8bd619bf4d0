"""What a sandbox is to be connected to: its legs, their addresses, and which is the way out.

Takes addresses of this node's own subnets; overlays' come with the attachment.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface
from typing import NamedTuple

from msgspec.structs import replace

from common.errors import Invalid, NotFound, ShoalError, Unavailable
from worker.network import local, sandbox
from worker.network.ipam import Ipam
from worker.network.local_networks import LocalNetworks
from worker.network.local_spec import BRIDGE, HOST_ADDRESS, IPVLAN
from worker.network.model import (
    ENDPOINT_SYSCTLS,
    Attachment,
    HostPort,
    Interface,
    Sandbox,
    SandboxSpec,
)
from worker.network.netlink.rtnl import mac_bytes
from worker.network.sandbox import Leg, SandboxRecord
from worker.network.table import Table

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
_MODES = ("private", "none", "host")


class Settings(NamedTuple):
    """The machine's own."""

    resolv_conf: str
    search: Sequence[str]
    hosts: str


def check(spec: SandboxSpec) -> None:
    """Raises Invalid for what no sandbox can be."""
    if not _ID.match(spec.id):
        raise Invalid(f"{spec.id!r} cannot name a sandbox")
    if spec.mode not in _MODES:
        raise Invalid(f"network mode {spec.mode!r} is not one of {', '.join(_MODES)}")
    if spec.mode != "private" and (spec.host_ports or spec.attachments):
        raise Invalid(f"network mode {spec.mode} goes with no published ports and no networks")
    if spec.internal_only and spec.host_ports:
        raise Invalid("a container on internal networks only cannot publish ports")
    if spec.mode == "host" and any(name.startswith("net.") for name in spec.sysctls):
        raise Invalid("network mode host goes with no net.* sysctls: they are the machine's")
    for server in spec.dns_servers:
        try:
            IPv4Address(server)
        except ValueError as error:
            raise Invalid(f"DNS server {server!r} is not an IPv4 address") from error
    for word in (*spec.dns_search, *spec.dns_options, spec.hostname):
        if not word.isprintable() or " " in word:
            raise Invalid(f"{word!r} cannot stand in a name or an option of the resolver")


class Planner:
    """`near_name` gives names never used before."""

    def __init__(
        self, table: Table, here: LocalNetworks, owner: str, near_name: Callable[[], str]
    ) -> None:
        self._table = table
        self._here = here
        self._bridge_id = local.network_id(owner, local.BRIDGE)
        self._near_name = near_name
        self.node: Ipam  # the addresses of the node's bridge

    def open(
        self, spec: SandboxSpec, netns: str, ports: tuple[HostPort, ...], machine: Settings
    ) -> SandboxRecord:
        """Raises Invalid, Forbidden, NotFound, Unavailable; no address is taken then."""
        if spec.mode == "host":
            made = Sandbox(
                id=spec.id, netns="", resolv_conf=machine.resolv_conf, hosts=machine.hosts
            )
            return SandboxRecord(spec=spec, sandbox=made)
        if spec.mode == "none":
            hosts = sandbox.hosts(spec.hostname, ())
            made = Sandbox(id=spec.id, netns=netns, resolv_conf=machine.resolv_conf, hosts=hosts)
            return SandboxRecord(spec=spec, sandbox=made)
        text = sandbox.resolv_conf(spec, machine.search)
        empty = Sandbox(id=spec.id, netns=netns, host_ports=ports, resolv_conf=text)
        record = self.connected(SandboxRecord(spec=spec, sandbox=empty), spec)
        if ports and not any(leg.gateway for leg in record.legs):
            self.give_back(record.legs)
            raise Invalid("ports cannot be published: the container is on internal networks only")
        return record

    def connected(self, record: SandboxRecord, spec: SandboxSpec) -> SandboxRecord:
        """`record` with exactly the networks of `spec`; legs that it has already stay.

        Give back the addresses of the legs that the result has not. Raises as `open`.
        """
        wanted = self._networks(spec)
        kept = {leg.network_id: leg for leg in record.legs if leg.network_id in wanted}
        made: list[Leg] = []
        try:
            for network_id, item in wanted.items():
                if network_id not in kept:
                    name = _free_name([*kept.values(), *made])
                    made.append(self._leg(name, network_id, item))
            legs = {leg.network_id: leg for leg in (*kept.values(), *made)}
            ordered = [legs[network_id] for network_id in wanted]
            return self._record(record, spec, self._with_way_out(spec, ordered))
        except ShoalError:
            self.give_back(made)
            raise

    def give_back(self, legs: Sequence[Leg]) -> None:
        """These addresses of ours are free again."""
        for leg in legs:
            if not leg.network_id:
                self.node.give_back(IPv4Address(leg.address.split("/")[0]))
        self._here.give_back(legs)

    def host_address(self, spec: SandboxSpec) -> str:
        """Where its published ports are opened that name no address: "" everywhere."""
        for item in spec.attachments:
            if item.network_id in self._here:
                text = self._here.get(item.network_id).options.get(HOST_ADDRESS, "")
                if text not in ("", "0.0.0.0"):
                    return text
        return ""

    # Which networks

    def _networks(self, spec: SandboxSpec) -> dict[str, Attachment | None]:
        """By id, "" being the node's bridge, in the order of the links: overlays, this node's, and
        the node's bridge, if it was asked for or if there is no other way out."""
        items = spec.attachments
        overlays = [item for item in items if not self.is_bridge(item) and not self._is_local(item)]
        locals_ = [item for item in items if self._is_local(item)]
        bridged = next((item for item in items if self.is_bridge(item)), None)
        wanted: dict[str, Attachment | None] = {
            item.network_id: item for item in (*overlays, *locals_)
        }
        leads_out = any(self._gateway(item.network_id) for item in locals_)
        needs_way = bool(overlays) and not leads_out and not self._isolated(spec, overlays)
        if bridged is not None or needs_way or not (items or spec.internal_only):
            wanted[""] = bridged
        return wanted

    def is_bridge(self, item: Attachment) -> bool:
        """Whether it is the node's own bridge."""
        return item.network_id in (local.BRIDGE, self._bridge_id) or (
            item.network_name == local.BRIDGE
        )

    def _is_local(self, item: Attachment) -> bool:
        return not self.is_bridge(item) and item.network_id in self._here

    def _isolated(self, spec: SandboxSpec, overlays: Sequence[Attachment]) -> bool:
        """Whether it has no way out: all its networks are internal, and nobody comes in either."""
        if spec.internal_only:
            return True
        if spec.host_ports:
            return False
        for item in overlays:
            network = self._table.network(item.network_id)
            if network is None or not network.internal:
                return False
            address = item.address.split("/")[0]
            for found in self._table.at(item.network_id, address):
                service = self._table.service(getattr(found, "service_id", ""))
                if service is not None and service.ports:
                    return False
        return True

    def _gateway(self, network_id: str) -> str:
        """Of a network of this node; "" if it leads nowhere."""
        if not network_id:
            return str(self.node.gateway)
        if network_id not in self._here:
            return ""
        network = self._here.get(network_id)
        return "" if network.internal else network.subnet.gateway

    # Legs

    def _leg(self, name: str, network_id: str, item: Attachment | None) -> Leg:
        if not network_id:
            address = self.node.take()
            cidr = f"{address}/{self.node.subnet.prefixlen}"
            mac, sysctls = _mac(cidr, item), _sysctls(name, item)
            return Leg(name=name, near=self._near_name(), mac=mac, address=cidr, sysctls=sysctls)
        assert item is not None
        if network_id in self._here:
            network = self._here.get(network_id)
            cidr = self._here.take(network_id, item.address)
            return Leg(
                name=name,
                near=self._near_name() if network.driver == BRIDGE else "",
                mac=_mac(cidr, item) if network.driver != IPVLAN else "",
                address=cidr,
                network_id=network_id,
                local=True,
                sysctls=_sysctls(name, item),
            )
        return self._overlay_leg(name, item)

    def _overlay_leg(self, name: str, item: Attachment) -> Leg:
        shown = item.network_name or item.network_id
        if len(item.network_id) == local.ID_LENGTH:
            raise NotFound(f"network {item.network_id} not found")  # it was removed meanwhile
        if self._table.network(item.network_id) is None:
            raise Unavailable(f"network {shown} is not known on this node")
        try:
            address = IPv4Interface(item.address)
            mac_bytes(item.mac)
        except ValueError as error:
            raise Invalid(
                f"network {shown}: address {item.address!r} with MAC {item.mac!r} is not usable"
            ) from error
        return Leg(
            name=name,
            near=self._near_name(),
            mac=item.mac,
            address=str(address),
            network_id=item.network_id,
        )

    def _with_way_out(self, spec: SandboxSpec, legs: Sequence[Leg]) -> list[Leg]:
        """The default route is by the network of the highest priority, then of the first name; by
        the node's bridge last if nobody asked for it."""
        items = {item.network_id: item for item in spec.attachments}
        bridged = next((item for item in spec.attachments if self.is_bridge(item)), None)

        def rank(leg: Leg) -> tuple[bool, int, str]:
            item = items.get(leg.network_id) if leg.network_id else bridged
            return item is None, -item.priority if item else 0, item.network_name if item else ""

        ways = sorted((leg for leg in legs if self._gateway(leg.network_id)), key=rank)
        chosen = ways[0].network_id if ways else None
        return [
            replace(leg, gateway=self._gateway(leg.network_id) if leg.network_id == chosen else "")
            for leg in legs
        ]

    def _record(self, record: SandboxRecord, spec: SandboxSpec, legs: list[Leg]) -> SandboxRecord:
        interfaces = tuple(self._interfaces(spec, legs))
        addresses = [interface.address.split("/")[0] for interface in interfaces]
        node = next((leg.address.split("/")[0] for leg in legs if not leg.network_id), "")
        made = replace(
            record.sandbox,
            interfaces=interfaces,
            attachments=spec.attachments,
            node_address=node,
            hosts=sandbox.hosts(spec.hostname, addresses),
        )
        return replace(record, spec=spec, sandbox=made, legs=tuple(legs))

    def _interfaces(self, spec: SandboxSpec, legs: Sequence[Leg]) -> list[Interface]:
        """The node's bridge is shown only if it was asked for, or if there is nothing else."""
        names: Mapping[str, str] = {item.network_id: item.network_name for item in spec.attachments}
        shown = [leg for leg in legs if leg.network_id]
        bridged = any(self.is_bridge(item) for item in spec.attachments)
        if bridged or not shown:
            shown = list(legs)
        return [
            Interface(
                name=leg.name,
                network_id=leg.network_id or self._bridge_id,
                network_name=names.get(leg.network_id, "") if leg.network_id else local.BRIDGE,
                address=leg.address,
                gateway=self._gateway(leg.network_id),
                mac=leg.mac,
            )
            for leg in shown
        ]


def _free_name(legs: Sequence[Leg]) -> str:
    taken = {leg.name for leg in legs}
    return next(name for name in map("eth{}".format, range(len(taken) + 1)) if name not in taken)


def _mac(cidr: str, item: Attachment | None) -> str:
    """The one asked for, or one that goes with the address. Raises Invalid."""
    if item is not None and item.mac:
        try:
            mac_bytes(item.mac)
        except ValueError as error:
            raise Invalid(f"MacAddress = {item.mac!r} is not a MAC address") from error
        return item.mac
    return "02:42:" + IPv4Interface(cidr).ip.packed.hex(":")


def _sysctls(link: str, item: Attachment | None) -> dict[str, str]:
    """Those that its endpoint's options set, for its own link."""
    text = item.options.get(ENDPOINT_SYSCTLS, "") if item is not None else ""
    pairs = (setting.partition("=") for setting in text.split(",") if setting)
    return {name.replace(".IFNAME.", f".{link}."): value for name, _, value in pairs}
