"""All kernel state of the network part on this machine. Runs on the helper thread only.

Every method is whole: it leaves the kernel as the table and the records say, or raises and leaves
nothing half-made. `Networks` decides when, and never lets two run at once.
"""

import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import msgspec

from common.errors import Unavailable
from worker.network import balancer, bridge, mesh
from worker.network.audit import Difference, Fact, compare
from worker.network.balancer import Groups
from worker.network.boxes import Boxes
from worker.network.bridge import NodeBridge
from worker.network.bridges import Bridges
from worker.network.firewall import Firewall
from worker.network.ingress import MachineTable, Names
from worker.network.ipam import node_subnet
from worker.network.journal import Journal
from worker.network.local_spec import LocalNetwork
from worker.network.mesh import Mesh
from worker.network.netlink import conntrack, rtnl
from worker.network.netlink.channel import NETFILTER, ROUTE, Channel
from worker.network.nshelper import NamespaceHelper
from worker.network.overlay import Overlay, OverlayRecord
from worker.network.overlay import facts as overlay_facts
from worker.network.ports import Ports
from worker.network.sandbox import Leg, Plug, SandboxRecord
from worker.network.surroundings import Surroundings, surroundings
from worker.network.table import Table, Touched

Part = tuple[str, str]
log = logging.getLogger(__name__)

VXLAN_OVERHEAD = 50
_UNDERLAY_MTU = 1500  # while no underlay is known


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is in its cluster."""

    node_id: str
    index: int
    pool: str
    address: str
    port: int


class Machine:
    """Bridge, table, mesh, overlays, sandboxes."""

    def __init__(
        self,
        helper: NamespaceHelper,
        journal: Journal,
        run_dir: Path,
        owner: str,
        mtu: int,
        rng: random.Random,
    ) -> None:
        self._helper = helper
        self._journal = journal
        self._netns = run_dir / "netns"
        self._owner = owner
        self._configured_mtu = mtu
        self._underlay_mtu = mtu or _UNDERLAY_MTU
        self._ports = Ports(rng)
        self._unanswered: dict[tuple[str, int], str] = {}  # published port -> who has it here
        self._member: Membership | None = None
        self._mesh: Mesh | None = None
        self._overlays: dict[str, Overlay] = {}
        self._groups: dict[str, Groups] = {}
        self.boxes = Boxes(helper, journal, self._netns, self._ports, self)
        self._sandboxes, self._records = self.boxes.namespaces, self.boxes.records
        self._macs: dict[tuple[str, str], str] = {}

    # Opening and closing

    def open(self) -> int:
        """Open channels and the node's bridge; its number among those of this namespace."""
        self._home = Channel.open(ROUTE)
        self._filter = Channel.open(NETFILTER)
        self._bridge = NodeBridge.open(self._home, self._owner)
        name = self._bridge.name
        self._names = Names(table=name, bridge=name, mesh=f"{name}-ing")
        self._table = MachineTable(self._filter, self._names)
        self.boxes.open(self._table)
        self.bridges = Bridges(
            self._home,
            self._filter,
            self._owner,
            (name, self._names.mesh),
            lambda: self._underlay_mtu,
        )
        self._firewall = Firewall(self._filter, name, lambda: self.bridges.links)
        return self._bridge.number

    def start(
        self,
        subnets: Sequence[IPv4Network],
        member: Membership | None,
        table: Table,
        networks: Iterable[LocalNetwork] = (),
    ) -> bool:
        """Serve `subnets`, have `networks`; adopt what an earlier daemon left, remove what is left
        over.

        False if `member` cannot be: the machine has another address now. Then a join is needed.
        """
        self._bridge.serve(self._home, tuple(subnets))
        self._table.load(subnets, vxlan=member.port if member else 0)
        self._member = member
        joined = False
        if member is None:
            mesh.remove_all(self._home, self._names.mesh, self._names.bridge)
        else:
            joined = self._rejoin(member)
        for problem in self.bridges.start(networks):
            log.error("%s", problem)
        self._firewall.admit()
        self._adopt_overlays(table)
        self.boxes.adopt(table)
        for record in self._records.values():
            self._reattach(record)
        self.unused()
        self.boxes.sweep(overlay.record.netns for overlay in self._overlays.values())
        self._program_peers(table)
        self._publish((), (item.service_id for item in table.services()), table)
        return joined

    def _rejoin(self, member: Membership) -> bool:
        try:
            self._open_mesh(member, adopt=True)
        except (Unavailable, OSError):
            self._mesh = None
            return False
        return True

    def _adopt_overlays(self, table: Table) -> None:
        for record in self._journal.load("overlays", OverlayRecord).values():
            overlay = Overlay.adopt(self._helper, record)
            if overlay is None:
                self._journal.remove("overlays", record.network_id)
                continue
            self._overlays[record.network_id] = overlay
            self._fill(record.network_id, table)

    def close(self) -> None:
        """Leave what running containers need, or nothing if there are none."""
        if not self._records:
            mesh.remove_all(self._home, self._names.mesh, self._names.bridge)
            for overlay in list(self._overlays.values()):
                self._destroy_overlay(overlay)
            self._firewall.withdraw()
            self._table.destroy()
            self.bridges.close()
            self._bridge.destroy(self._home)
        self.boxes.close()
        for overlay in self._overlays.values():
            overlay.close()
        self._ports.close()
        self._home.close()
        self._filter.close()

    # The cluster

    def join(self, member: Membership, subnets: Sequence[IPv4Network], table: Table) -> None:
        """Be `member`; what was made for another address is made anew."""
        self._bridge.serve(self._home, tuple(subnets))
        self._member = member
        self._open_mesh(member, adopt=False)
        self._table.load(subnets, vxlan=member.port)
        for network_id, overlay in list(self._overlays.items()):
            overlay.rewire(self._home, self._overlay_record(network_id, table))
            self._journal.put("overlays", network_id, overlay.record)
            self._fill(network_id, table)
        self._program_peers(table)
        self._publish((), (item.service_id for item in table.services()), table)

    def _open_mesh(self, member: Membership, adopt: bool) -> None:
        mtu = self._configured_mtu or bridge.underlay_mtu(self._home, member.address)
        self._underlay_mtu = mtu
        name, link = self._names.mesh, self._names.bridge
        if not adopt:
            mesh.remove_all(self._home, name, link)
        self._mesh = Mesh(self._home, name, link, member.pool, member.index)
        self._mesh.open(member.address, member.port, mtu - VXLAN_OVERHEAD, adopt)

    def leave(self, subnets: Sequence[IPv4Network]) -> None:
        """Remove all that belongs to the cluster."""
        mesh.remove_all(self._home, self._names.mesh, self._names.bridge)
        self._mesh = self._member = None
        for overlay in list(self._overlays.values()):
            self._destroy_overlay(overlay)
        self._macs.clear()
        self._ports.release_services()
        self._unanswered.clear()
        self._table.clear()
        self.serve(subnets)

    def serve(self, subnets: Sequence[IPv4Network]) -> None:
        """The node's own subnets are these now."""
        self._bridge.serve(self._home, tuple(subnets))
        self._table.load(subnets)

    def repair(self, table: Table) -> None:
        """Bring everything where `table` is, trusting nothing that we believed of the kernel."""
        table.index()
        for network_id, overlay in self._overlays.items():
            overlay.repair(table.remotes(network_id, self._node_id))
            self._fill(network_id, table)
        for name, record in self._records.items():
            if record.spec.mode == "private":
                self._reattach(record)
                self._sandboxes[name].load(self.groups(record.legs))
                self._sandboxes[name].forget_neighbours(self._misplaced(name, table))
        if self._mesh is not None:
            self._mesh.refresh()
        self._table.load(hosts=self.boxes.host_targets())
        self.bridges.load()
        self._firewall.admit()
        self._program_peers(table)
        stale = self._table.published - self._answered(table).keys()
        self._publish(stale, (item.service_id for item in table.services()), table)

    def _reattach(self, record: SandboxRecord) -> None:
        for leg in record.legs:
            if leg.near and leg.network_id:
                with suppress(OSError):  # its end may be gone with its processes' namespace
                    self.take_in(leg)

    # Comparing

    def parts(self) -> list[Part]:
        """What `differences` compares one at a time."""
        return [
            ("machine", ""),
            ("names", ""),
            *(("overlay", network_id) for network_id in self._overlays),
            *(("sandbox", name) for name in self._sandboxes),
        ]

    def differences(self, part: Part, table: Table) -> list[Difference]:
        """What of `part` is in the kernel otherwise than `table` wants it; none if it is gone."""
        kind, name = part
        if kind == "machine":
            return self._machine_differences(table)
        if kind == "names":
            return table.differences()
        if kind == "overlay" and name in self._overlays:
            macs = (leg.mac for record in self._records.values() for leg in record.legs_on(name))
            wanted = overlay_facts(table.remotes(name, self._node_id), macs)
            found = self._overlays[name].facts()
            # A port whose sandbox has gone lives on for a moment, with what led to it.
            gone = {fact for fact in found - wanted if fact[0] == "port"}
            return compare("overlay", name, wanted, found - gone)
        if kind == "sandbox" and name in self._sandboxes:
            return self._sandbox_differences(name, table)
        return []

    def is_as_left(self) -> bool:
        """Whether nobody else has changed the firewall of this machine since the last question."""
        return self._table.is_as_left

    def _machine_differences(self, table: Table) -> list[Difference]:
        peers = self._peers(table)
        found = []
        if self._mesh is not None:
            found += compare("mesh", "", self._mesh.wanted(peers), self._mesh.facts())
        else:
            peers = {}
        ports = self._answered(table)
        wanted = self._table.wanted(ports, peers, self.boxes.host_targets())
        found += self.bridges.differences()
        found += compare("firewall", "", self._firewall.missing(), set())
        return found + compare("ports", "", wanted, self._table.facts())

    def _sandbox_differences(self, name: str, table: Table) -> list[Difference]:
        record, namespace = self._records[name], self._sandboxes[name]
        if record.spec.mode != "private":
            return []
        groups = {
            balancer.address_key(vip): _backends(table, leg.network_id, service_id)
            for leg in record.legs
            for vip, service_id in table.vips(leg.network_id).items()
        }
        found = compare("sandbox", name, namespace.wanted(groups), namespace.facts())
        stale: set[Fact] = {
            ("neighbour", str(at), mac) for _, at, mac in self._misplaced(name, table)
        }
        return found + compare("sandbox", name, set(), stale)

    def _misplaced(self, name: str, table: Table) -> list[tuple[int, IPv4Address, str]]:
        """The addresses that the sandbox seeks at another MAC than the table says."""
        record = self._records[name]
        found: list[tuple[int, IPv4Address, str]] = []
        if not record.on_overlays:
            return found
        networks = {leg.place: leg.network_id for leg in record.legs}
        for place, address, mac in self._sandboxes[name].neighbours():
            network_id = networks.get(place, "")
            known = table.mac(network_id, address) if network_id else ""
            if known not in ("", mac):
                found.append((place, IPv4Address(address), mac))
        return found

    def _answered(self, table: Table) -> dict[tuple[str, int], set[tuple[str, int]]]:
        """The published ports that this node answers, with their backends."""
        ports: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for service in table.services():
            ports |= table.published(service.service_id)
        return {key: backends for key, backends in ports.items() if key not in self._unanswered}

    def apply(self, touched: Touched, table: Table) -> None:
        """Bring the kernel where `table` is."""
        if touched.peers:
            self._program_peers(table)
        for network_id in self._overlays if touched.peers else touched.networks:
            overlay = self._overlays.get(network_id)
            if overlay is not None:
                overlay.program(table.remotes(network_id, self._node_id))
        self._rebalance(touched, table)
        self._forget_moved(touched, table)
        self._forget_flows(touched)
        self._publish(touched.ports_gone, touched.published, table)
        for address in touched.idle_ingress:
            self._table.forget_flows(address, everything=False)

    @property
    def _node_id(self) -> str:
        return self._member.node_id if self._member else ""

    @property
    def _address(self) -> str:
        return self._member.address if self._member else ""

    def _program_peers(self, table: Table) -> None:
        if self._mesh is None:
            return
        peers = self._peers(table)
        self._mesh.program(peers)
        self._table.know_nodes(peers)

    def _peers(self, table: Table) -> dict[int, str]:
        """The other nodes: index -> address."""
        return {
            peer.index: peer.address
            for peer in table.peers()
            # a former self, lost and replaced, has our address: there is nobody to reach
            if peer.node_id != self._node_id and peer.address != self._address
        }

    def _rebalance(self, touched: Touched, table: Table) -> None:
        for network_id, groups in self._groups.items():
            edits = []
            for where, vip in touched.vips_gone:
                if where == network_id:
                    edits += groups.put(balancer.address_key(vip), None)
            for where, service_id in touched.groups:
                service = table.service(service_id)
                address = service.vips.get(network_id) if service else None
                if where == network_id and address:
                    backends = _backends(table, where, service_id)
                    edits += groups.put(balancer.address_key(address), backends)
            if not edits:
                continue
            ready = balancer.messages("shoal", edits)
            for name in self._attached(network_id):
                self._sandboxes[name].balance(edits, ready)

    def _forget_flows(self, touched: Touched) -> None:
        for network_id in self._overlays:
            requests = [
                conntrack.forget(IPv4Address(address), conntrack.UDP)
                for where, address in touched.idle
                if where == network_id
            ]
            requests += [
                conntrack.forget(IPv4Address(address))
                for where, address in touched.gone
                if where == network_id
            ]
            if requests:
                for name in self._attached(network_id):
                    self._sandboxes[name].forget_flows(requests)

    def _forget_moved(self, touched: Touched, table: Table) -> None:
        """An address that has a new MAC must not be sought at the old one until ARP ages."""
        for network_id, address in touched.moved:
            if network_id not in self._overlays:
                continue
            mac = table.mac(network_id, address)
            before = self._macs.get((network_id, address), mac)
            self._macs[network_id, address] = mac
            if before == mac:
                continue
            for name in self._attached(network_id):
                legs = self._records[name].legs
                found = [
                    (leg.place, IPv4Address(address), before)
                    for leg in legs
                    if leg.network_id == network_id
                ]
                self._sandboxes[name].forget_neighbours(found)

    def _publish(
        self, gone: Iterable[tuple[str, int]], services: Iterable[str], table: Table
    ) -> None:
        """What somebody else has on this node stays with them: the other nodes answer."""
        gone = set(gone)
        for key in gone:
            self._ports.unpublish(*key)
            self._unanswered.pop(key, None)
        ports: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for service_id in services:
            ports |= table.published(service_id)
        ours = {key: backends for key, backends in ports.items() if self._hold(key)}
        self._table.publish(gone | (ports.keys() - ours.keys()), ours)

    def _hold(self, port: tuple[str, int]) -> bool:
        holder = self._ports.publish(*port)
        if holder:
            self._unanswered[port] = holder
        else:
            self._unanswered.pop(port, None)
        return not holder

    def look_around(self) -> Surroundings:
        """The networks around this machine that are not ours."""
        names = (self._names.bridge, self._names.mesh)
        links = map(rtnl.parse_link, self._home.dump(rtnl.get_links()))
        own = {link.index for link in links if link.name in names}
        return surroundings(map(rtnl.parse_route, self._home.dump(rtnl.get_routes())), own)

    def retry_ports(self, table: Table) -> None:
        """Answer at published ports that somebody else had and has no more."""
        before = len(self._unanswered)
        for port in list(self._unanswered):
            self._hold(port)
        if len(self._unanswered) < before:
            self._publish((), (item.service_id for item in table.services()), table)

    def unanswered(self) -> tuple[str, ...]:
        """In words, the published ports at which this node does not answer, and why."""
        return tuple(
            f"published port {port}/{protocol} is not answered on this node: {why}"
            for (protocol, port), why in sorted(self._unanswered.items())
        )

    @property
    def firewall_warnings(self) -> tuple[str, ...]:
        """What the machine's own firewall keeps us from, as of the last comparison."""
        return self._firewall.warnings

    def create_network(self, network: LocalNetwork) -> None:
        """Raises what `Bridges.create` raises."""
        self.bridges.create(network)
        self._firewall.admit()

    def remove_network(self, network_id: str) -> None:
        self.bridges.remove(network_id)
        self._firewall.admit()

    # Overlays

    def ensure_overlay(self, network_id: str, table: Table) -> None:
        """Have the network's share on this node. Raises Unavailable, NetlinkError."""
        if network_id in self._overlays:
            return
        record = self._overlay_record(network_id, table)
        self._journal.put("overlays", network_id, record)
        try:
            overlay = Overlay.create(self._helper, self._home, record)
        except BaseException:
            self._journal.remove("overlays", network_id)
            raise
        self._overlays[network_id] = overlay
        self._fill(network_id, table)

    def _overlay_record(self, network_id: str, table: Table) -> OverlayRecord:
        network = table.network(network_id)
        if self._member is None or network is None:
            raise Unavailable(f"network {network_id} is not known on this node")
        mtu = network.mtu or self._underlay_mtu - VXLAN_OVERHEAD
        return OverlayRecord(
            network_id=network_id,
            vni=network.vni,
            local=self._member.address,
            port=self._member.port,
            mtu=mtu,
            netns=str(self._netns / f"overlay-{network_id}"),
        )

    def _fill(self, network_id: str, table: Table) -> None:
        remotes = table.remotes(network_id, self._node_id)
        self._overlays[network_id].program(remotes)
        self._macs |= {(network_id, address): item.mac for address, item in remotes.items()}
        groups = Groups()
        for vip, service_id in table.vips(network_id).items():
            groups.put(balancer.address_key(vip), _backends(table, network_id, service_id))
        self._groups[network_id] = groups

    def unused(self) -> None:
        """Remove overlays that no sandbox is on."""
        for network_id, overlay in list(self._overlays.items()):
            if not self._attached(network_id):
                self._destroy_overlay(overlay)

    def _destroy_overlay(self, overlay: Overlay) -> None:
        network_id = overlay.record.network_id
        overlay.destroy()
        self._journal.remove("overlays", network_id)
        del self._overlays[network_id]
        self._groups.pop(network_id, None)
        self._macs = {key: mac for key, mac in self._macs.items() if key[0] != network_id}

    def _attached(self, network_id: str) -> list[str]:
        return [
            name
            for name, record in self._records.items()
            if any(leg.network_id == network_id for leg in record.legs) and name in self._sandboxes
        ]

    # What a sandbox is connected to

    def groups(self, legs: Sequence[Leg]) -> Groups:
        members: dict[bytes, balancer.Backends] = {}
        for leg in legs:
            if leg.network_id in self._groups:
                members |= self._groups[leg.network_id].members
        return Groups(members)

    def prepare(self, leg: Leg, table: Table) -> None:
        if leg.network_id in self.bridges:
            self.bridges.ensure(leg.network_id)
        elif leg.network_id:
            self.ensure_overlay(leg.network_id, table)

    def plug(self, leg: Leg, namespace: int) -> Plug:
        if leg.network_id in self._overlays:
            overlay = self._overlays[leg.network_id]
            return Plug(leg, overlay.descriptor, overlay.record.mtu)
        if not leg.near:
            self.bridges.bear(leg, namespace)
            return Plug(leg, -1, 0)
        if leg.network_id:
            return Plug(leg, self._helper.home, self.bridges.mtu(leg.network_id))
        # Small enough for the mesh as well.
        return Plug(leg, self._helper.home, self._underlay_mtu - VXLAN_OVERHEAD)

    def take_in(self, leg: Leg) -> None:
        if leg.network_id in self._overlays:
            self._overlays[leg.network_id].attach(leg.near, leg.mac)
        elif leg.network_id:
            self.bridges.attach(leg.network_id, leg.near)
        else:
            self._bridge.attach(self._home, leg.near)


def _backends(table: Table, network_id: str, service_id: str) -> set[bytes]:
    return {balancer.address_key(address) for address in table.active(network_id, service_id)}


def default_subnet(pool: str, number: int) -> IPv4Network:
    """The subnet of a node outside any cluster: from the end of the pool, out of members' way."""
    return node_subnet(pool, -1 - number)


def subnets_of(records: Iterable[SandboxRecord], current: IPv4Network) -> tuple[IPv4Network, ...]:
    """`current`, and those that sandboxes made before still have addresses of."""
    found = {current}
    for record in records:
        for leg in record.legs:
            if not leg.network_id:
                found.add(IPv4Interface(leg.address).network)
    return tuple(sorted(found))
