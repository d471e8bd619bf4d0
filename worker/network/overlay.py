"""An overlay network's share on this node: a namespace with a bridge and a VXLAN device.

The device learns nothing: where each address and MAC is comes from the endpoint table, as permanent
forwarding and neighbour entries. The bridge learns nothing either: it has static entries for local
ports and remote MACs, or a task that moved could be misdirected for minutes.
"""

import errno
import os
import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import msgspec

from worker.network import nshelper
from worker.network.audit import Fact
from worker.network.netlink import rtnl
from worker.network.netlink.channel import ROUTE, Channel, NetlinkError
from worker.network.netlink.codec import Message
from worker.network.nshelper import NamespaceHelper
from worker.network.table import Remote

BRIDGE, VXLAN = 10, 11  # numbers of the links in the overlay's namespace

_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV}
_PERMANENT = 0x80
_SELF = 0x02
_STATIC = 0x40


class OverlayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an overlay was made with."""

    network_id: str
    vni: int
    local: str
    port: int
    mtu: int
    netns: str


class Forwarding(NamedTuple):
    """The entries of a VXLAN device: MAC -> VTEP, and address -> MAC."""

    vteps: dict[str, str]
    neighbours: dict[str, str]


def forwarding(remotes: Mapping[str, Remote]) -> Forwarding:
    vteps = {remote.mac: remote.vtep for remote in remotes.values()}
    return Forwarding(vteps, {address: remote.mac for address, remote in remotes.items()})


def plan(old: Forwarding, new: Forwarding) -> tuple[list[Message], list[Message]]:
    """The requests that remove what is wrong, and those that add what is missing."""
    wrong = {mac: vtep for mac, vtep in old.vteps.items() if new.vteps.get(mac) != vtep}
    remove = [
        rtnl.vtep(VXLAN, mac, vtep, bridged=False, delete=True) for mac, vtep in wrong.items()
    ]
    # Apart from the device's: where the bridge has another way by now, the kernel removes neither.
    remove += [rtnl.local_port(VXLAN, mac, delete=True) for mac in wrong]
    remove += [
        rtnl.neighbour(VXLAN, address, mac, delete=True)
        for address, mac in old.neighbours.items()
        if address not in new.neighbours
    ]
    add = [
        rtnl.vtep(VXLAN, mac, vtep, bridged=True)
        for mac, vtep in new.vteps.items()
        if old.vteps.get(mac) != vtep
    ]
    add += [
        rtnl.neighbour(VXLAN, address, mac)
        for address, mac in new.neighbours.items()
        if old.neighbours.get(address) != mac
    ]
    return remove, add


def facts(remotes: Mapping[str, Remote], ports: Iterable[str]) -> set[Fact]:
    """The entries that there should be. `ports`: the MACs of the sandboxes that are attached."""
    entries = forwarding(remotes)
    return {
        *(("vtep", mac, vtep) for mac, vtep in entries.vteps.items()),
        *(("remote", mac) for mac in entries.vteps),
        *(("neighbour", address, mac) for address, mac in entries.neighbours.items()),
        *(("port", mac) for mac in ports if mac not in entries.vteps),
    }


class Overlay:
    """The kernel state of one overlay on this node. For the helper thread."""

    def __init__(self, record: OverlayRecord, descriptor: int, channel: Channel) -> None:
        self.record = record
        self.descriptor = descriptor
        self._channel = channel
        self._entries = Forwarding({}, {})

    @classmethod
    def create(cls, helper: NamespaceHelper, home: Channel, record: OverlayRecord) -> "Overlay":
        """Raises NetlinkError (EEXIST: the VNI is in use in this machine's namespace)."""
        descriptor, channel = helper.create(_prepare)
        overlay = cls(record, descriptor, channel)
        try:
            channel.send([rtnl.set_up(1), rtnl.add_bridge("br0", BRIDGE, record.mtu)])
            overlay._add_vxlan(home)
            nshelper.persist(descriptor, Path(record.netns))
        except BaseException:
            overlay.close()
            raise
        return overlay

    @classmethod
    def adopt(cls, helper: NamespaceHelper, record: OverlayRecord) -> "Overlay | None":
        """The overlay that an earlier daemon made, with the entries it has; None if it is gone."""
        descriptor = nshelper.reopen(Path(record.netns))
        if descriptor is None:
            return None
        with helper.inside(descriptor):
            channel = Channel.open(ROUTE)
        overlay = cls(record, descriptor, channel)
        try:
            names = {rtnl.parse_link(found).name for found in channel.dump(rtnl.get_links())}
            if not {"br0", "vxlan0"} <= names:
                overlay.destroy()
                return None
            overlay._entries = overlay.read()
        except NetlinkError:
            overlay.destroy()
            return None
        return overlay

    def _add_vxlan(self, home: Channel) -> None:
        record = self.record
        device = rtnl.add_vxlan(
            "vxlan0",
            record.vni,
            IPv4Address(record.local),
            record.port,
            index=VXLAN,
            mtu=record.mtu,
            master=BRIDGE,
            namespace=self.descriptor,
        )
        home.send([device])
        self._channel.send([rtnl.set_learning(VXLAN, False)])

    def rewire(self, home: Channel, record: OverlayRecord) -> None:
        """Make the VXLAN device anew, as the node has another address; entries are lost."""
        self._channel.send([rtnl.del_link("vxlan0")], _GONE)
        self.record = record
        self._entries = Forwarding({}, {})
        self._add_vxlan(home)

    def program(self, remotes: Mapping[str, Remote]) -> None:
        """Make the entries exactly these. Raises NetlinkError; then the state is read again."""
        wanted = forwarding(remotes)
        remove, add = plan(self._entries, wanted)
        try:
            self._channel.send(remove, _GONE)
            self._channel.send(add)
        except NetlinkError:
            self._entries = self.read()
            raise
        self._entries = wanted

    def attach(self, port: str, mac: str) -> None:
        """Take in the near end of a sandbox's veth pair."""
        self._channel.send([rtnl.enslave(port, BRIDGE)])
        index = rtnl.parse_link(self._channel.ask(rtnl.get_link(port))).index
        self._channel.send([rtnl.set_learning(index, False), rtnl.local_port(index, mac)])

    def detach(self, port: str) -> None:
        self._channel.send([rtnl.del_link(port)], _GONE)

    def ports(self) -> set[str]:
        """Names of the near ends that are here."""
        links = [rtnl.parse_link(found) for found in self._channel.dump(rtnl.get_links())]
        return {link.name for link in links if link.kind == "veth"}

    def repair(self, remotes: Mapping[str, Remote]) -> None:
        """As `program`, but trusting nothing that we believed of the kernel."""
        requests = []
        for fact in self.facts() - facts(remotes, ()):
            match fact:
                case "vtep", str(mac), str(vtep):
                    requests.append(rtnl.vtep(VXLAN, mac, vtep, bridged=False, delete=True))
                case "remote", str(mac):
                    requests.append(rtnl.local_port(VXLAN, mac, delete=True))
                case "neighbour", str(address), str(mac):
                    requests.append(rtnl.neighbour(VXLAN, address, mac, delete=True))
        self._channel.send(requests, _GONE)
        self._entries = Forwarding({}, {})
        self.program(remotes)

    def read(self) -> Forwarding:
        """The entries that the kernel has."""
        vteps = {}
        for message in self._channel.dump(rtnl.get_neighbours(rtnl.AF_BRIDGE)):
            found = rtnl.parse_neighbour(message)
            if found.index == VXLAN and found.flags & _SELF and found.address:
                vteps[found.mac] = found.address
        neighbours = {}
        for message in self._channel.dump(rtnl.get_neighbours(socket.AF_INET)):
            found = rtnl.parse_neighbour(message)
            if found.index == VXLAN and found.state & _PERMANENT:
                neighbours[found.address] = found.mac
        return Forwarding(vteps, neighbours)

    def facts(self) -> set[Fact]:
        """All entries that the kernel has: the device's, the bridge's, and the neighbours."""
        found: set[Fact] = set()
        for message in self._channel.dump(rtnl.get_neighbours(rtnl.AF_BRIDGE)):
            entry = rtnl.parse_neighbour(message)
            if entry.flags & _SELF:
                if entry.index == VXLAN and entry.address:
                    found.add(("vtep", entry.mac, entry.address))
            elif entry.state & _STATIC:
                found.add(("remote" if entry.index == VXLAN else "port", entry.mac))
        for message in self._channel.dump(rtnl.get_neighbours(socket.AF_INET)):
            entry = rtnl.parse_neighbour(message)
            if entry.index == VXLAN and entry.state & _PERMANENT:
                found.add(("neighbour", entry.address, entry.mac))
        return found

    def destroy(self) -> None:
        """Remove the namespace; the VXLAN device at once, so that the VNI is free again."""
        self._channel.send([rtnl.del_link("vxlan0")], _GONE)
        nshelper.forget(Path(self.record.netns))
        self.close()

    def close(self) -> None:
        """Let go of it without removing anything."""
        self._channel.close()
        os.close(self.descriptor)


def _prepare() -> Channel:
    for name in ("iptables", "ip6tables", "arptables"):
        nshelper.try_sysctl(f"net.bridge.bridge-nf-call-{name}", "0")
    for scope in ("all", "default"):
        nshelper.try_sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", "1")
    return Channel.open(ROUTE)
