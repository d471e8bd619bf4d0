"""The sandboxes of this machine and what leads into them. Runs on the helper thread only."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from worker.network import nshelper
from worker.network.balancer import Groups
from worker.network.ingress import HostTarget, MachineTable
from worker.network.journal import Journal
from worker.network.model import HostPort
from worker.network.nshelper import NamespaceHelper
from worker.network.ports import Ports
from worker.network.sandbox import Bare, Leg, Namespace, Plug, SandboxRecord, network_sysctls
from worker.network.table import Table


class Wires(Protocol):
    """The other ends: what the networks of this machine are to a sandbox."""

    def prepare(self, leg: Leg, table: Table) -> None:
        """Have the network of `leg` on this machine. Raises Unavailable, NetlinkError."""
        ...

    def plug(self, leg: Leg, namespace: int) -> Plug:
        """Where its near end goes; a macvlan's child is made now, in `namespace`."""
        ...

    def take_in(self, leg: Leg) -> None:
        """Take in the near end."""
        ...

    def groups(self, legs: Sequence[Leg]) -> Groups:
        """The balancer's groups of the networks."""
        ...

    def unused(self) -> None:
        """Some network may have lost its last sandbox."""
        ...


class Boxes:
    """`records` and `namespaces` by container id; a container on the machine's own network has no
    namespace here."""

    def __init__(
        self,
        helper: NamespaceHelper,
        journal: Journal,
        folder: Path,
        ports: Ports,
        wires: Wires,
    ) -> None:
        self._helper = helper
        self._journal = journal
        self._folder = folder
        self._ports = ports
        self._wires = wires
        self._spare: Bare | None = None  # for the next sandbox
        self.records: dict[str, SandboxRecord] = {}
        self.namespaces: dict[str, Namespace] = {}

    def open(self, table: MachineTable) -> None:
        self._machine = table

    def close(self) -> None:
        """Let go of all; they live on."""
        for namespace in self.namespaces.values():
            namespace.close()
        if self._spare is not None:
            self._spare.close()

    def adopt(self, table: Table) -> None:
        """Find those again that an earlier daemon made; forget those that are gone."""
        for record in self._journal.load("sandboxes", SandboxRecord).values():
            name = record.spec.id
            if record.spec.mode == "host":
                self.records[name] = record
                continue
            namespace = Namespace.adopt(
                self._helper, Path(record.sandbox.netns), balanced=record.on_overlays
            )
            if namespace is None:
                self._journal.remove("sandboxes", name)
                continue
            self.namespaces[name] = namespace
            self.records[name] = record
            if record.spec.mode == "private":
                self._adopt(record, namespace, table)

    def _adopt(self, record: SandboxRecord, namespace: Namespace, table: Table) -> None:
        namespace.open_resolver()
        if record.changing:
            self._finish(record, namespace, table)
        namespace.load(self._wires.groups(record.legs))
        for port in record.sandbox.host_ports:
            self._ports.claim(record.spec.id, port, force=True)
        self._open_hosts(record)

    def _finish(self, record: SandboxRecord, namespace: Namespace, table: Table) -> None:
        """A network was being connected or disconnected when we were killed."""
        there = namespace.links()
        namespace.disconnect(sorted(there - {leg.name for leg in record.legs}))
        for leg in record.legs:
            if leg.name not in there:
                self._connect(namespace, [leg], table)
        namespace.reroute(record.legs)
        self._keep(replace(record, changing=False))

    def sweep(self, others: Iterable[str]) -> None:
        """Remove namespaces that are nobody's. `others`: paths that are not sandboxes'."""
        known = {record.sandbox.netns for record in self.records.values()} | set(others)
        for path in self._folder.glob("*"):
            if str(path) not in known:
                nshelper.forget(path)

    def path(self, name: str) -> Path:
        return self._folder / name

    # Ports

    def claim_ports(self, name: str, wanted: Sequence[HostPort]) -> tuple[HostPort, ...]:
        """Raises Conflict, Invalid; then none is held."""
        try:
            return tuple(self._ports.claim(name, port) for port in wanted)
        except BaseException:
            self._ports.release(name)
            raise

    def release_ports(self, name: str) -> None:
        self._ports.release(name)

    # Making and removing

    def begin(self, record: SandboxRecord) -> Namespace | None:
        """Make the bare namespace of `record`, whose ports are claimed already."""
        if record.spec.mode == "host":
            return None
        try:
            sysctls = network_sysctls(record.spec.sysctls)
            bare, path = self._bare(sysctls), Path(record.sandbox.netns)
            return Namespace.keep(self._helper, bare, path, balanced=record.on_overlays)
        except BaseException:
            self._release(record)
            raise

    def _bare(self, sysctls: dict[str, str]) -> Bare:
        spare = self._spare
        if spare is None or sysctls:
            return Bare.make(self._helper, sysctls)
        self._spare = None
        return spare

    def stock(self) -> None:
        """Have a bare namespace ready for the next sandbox: that saves its start most of a
        millisecond."""
        if self._spare is None:
            with suppress(OSError):  # the next sandbox will tell
                self._spare = Bare.make(self._helper, {})

    def complete(self, record: SandboxRecord, namespace: Namespace | None, table: Table) -> None:
        """Connect what `begin` gave, or remove it."""
        try:
            if namespace is not None and record.spec.mode == "private":
                self._equip(namespace, record, table)
            if namespace is not None:
                namespace.settle()
            self._keep(record)
        except BaseException:
            if namespace is not None:
                namespace.destroy()
            self._release(record)
            raise
        if namespace is not None:
            self.namespaces[record.spec.id] = namespace

    def _keep(self, record: SandboxRecord) -> None:
        self._journal.put("sandboxes", record.spec.id, record)
        self.records[record.spec.id] = record

    def _equip(self, namespace: Namespace, record: SandboxRecord, table: Table) -> None:
        for leg in record.legs:
            self._wires.prepare(leg, table)
        namespace.open_resolver()
        self._plug_in(namespace, record.legs)
        namespace.load(self._wires.groups(record.legs))
        self._open_hosts(record)

    def _connect(self, namespace: Namespace, legs: Sequence[Leg], table: Table) -> None:
        for leg in legs:
            self._wires.prepare(leg, table)
        self._plug_in(namespace, legs)

    def _plug_in(self, namespace: Namespace, legs: Sequence[Leg]) -> None:
        namespace.connect([self._wires.plug(leg, namespace.descriptor) for leg in legs])
        for leg in legs:
            if leg.near:
                self._wires.take_in(leg)
        namespace.tune(legs)

    def change(self, record: SandboxRecord, table: Table) -> None:
        """Give a sandbox the legs of `record`, its new one, in place of those it has.

        If that fails it has those it had. A crash on the way is put right by the next `adopt`.
        """
        name = record.spec.id
        old, namespace = self.records[name], self.namespaces[name]
        before, after = ({leg.name: leg for leg in one.legs} for one in (old, record))
        fresh = [leg for leg in record.legs if before.get(leg.name, leg).near != leg.near
                 or leg.name not in before]  # fmt: skip
        gone = [leg.name for leg in old.legs if after.get(leg.name, leg).near != leg.near
                or leg.name not in after]  # fmt: skip
        self._journal.put("sandboxes", name, replace(record, changing=True))
        try:
            namespace.disconnect(gone)
            self._connect(namespace, fresh, table)
            namespace.reroute(record.legs)
        except BaseException:
            namespace.disconnect([leg.name for leg in fresh])
            self._connect(namespace, [leg for leg in old.legs if leg.name in gone], table)
            namespace.reroute(old.legs)
            self._keep(old)
            raise
        self._keep(record)
        namespace.balanced(record.on_overlays)
        namespace.load(self._wires.groups(record.legs))
        if _way_in(old) != _way_in(record):
            self._close_hosts(old)
            self._open_hosts(record)
        self._wires.unused()

    def note(self, record: SandboxRecord) -> None:
        """Something of a record changed that the kernel does not know."""
        self._keep(record)

    def _open_hosts(self, record: SandboxRecord) -> None:
        if targets := _targets(record):
            self._machine.open_hosts(targets)

    def host_targets(self) -> list[HostTarget]:
        """All ports of the node that lead to one sandbox."""
        return [target for record in self.records.values() for target in _targets(record)]

    def _close_hosts(self, record: SandboxRecord) -> None:
        address = _way_in(record)
        if record.sandbox.host_ports and address:
            self._machine.close_hosts(address)

    def destroy(self, name: str) -> None:
        """Remove a sandbox and what was only for it; no error if it is gone already."""
        record = self.records.pop(name, None)
        namespace = self.namespaces.pop(name, None)
        self._journal.remove("sandboxes", name)
        if record is None:
            return
        if namespace is not None:
            namespace.destroy()
        self._release(record)
        for leg in record.legs:
            if not leg.network_id or leg.gateway:
                address = IPv4Address(leg.address.split("/")[0])
                self._machine.forget_flows(str(address), everything=True)

    def _release(self, record: SandboxRecord) -> None:
        self._ports.release(record.spec.id)
        self._close_hosts(record)
        self._wires.unused()


def _targets(record: SandboxRecord) -> list[HostTarget]:
    """The ports of the node that lead to the sandbox."""
    address = _way_in(record)
    return [
        HostTarget(port.host_ip, port.protocol, port.published, address, port.target)
        for port in record.sandbox.host_ports
        if address
    ]


def _way_in(record: SandboxRecord) -> str:
    """The address that ports of the node lead to: that of the way out."""
    return next((leg.address.split("/")[0] for leg in record.legs if leg.gateway), "")
