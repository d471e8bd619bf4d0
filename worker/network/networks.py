"""The network part of one machine: sandboxes, overlays, balancing, names, published ports.

This is the side of the event loop: it keeps the endpoint table, decides, serves names, and has
`Machine` do the kernel's part on the helper thread. One operation runs at a time.
"""

import asyncio
import builtins
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from common.clock import Clock
from common.config import DaemonConfig
from common.errors import NotFound, ShoalError, Unavailable
from common.model.network import NetworkSpec
from common.protocol.network import NetworkChange
from worker.network import local
from worker.network.audit import Counts, Difference, summary
from worker.network.ipam import Ipam, node_subnet
from worker.network.journal import Journal
from worker.network.local_networks import LocalNetworks
from worker.network.machine import Machine, Membership, Part, default_subnet, subnets_of
from worker.network.model import Attachment, HostPort, Sandbox, SandboxSpec
from worker.network.node_networks import NodeNetworks, Tell, network_ids
from worker.network.nshelper import NamespaceHelper
from worker.network.planning import Planner, Settings, check
from worker.network.resolvers import Resolvers
from worker.network.sandbox import SandboxRecord
from worker.network.surroundings import Surroundings
from worker.network.table import Table
from worker.network.upstream import MachineSettings, Upstream

R = TypeVar("R")

_SAVE_AFTER_S = 2.0
_AROUND_S = 60.0  # how often the machine's networks are looked at
_PORTS_S = 2.0  # how often a published port that a process has is tried again
_AUDIT_S = 30.0  # how often the kernel is compared with the endpoint table
_WATCH_S = 2.0  # how often the machine's tables are looked at for others' changes
_AUDIT_SHARE = 100.0  # comparing takes no more than one part in so many of the time
_RESOLV_CONF = Path("/etc/resolv.conf")
_HOSTS = Path("/etc/hosts")

log = logging.getLogger(__name__)


class Networks:
    """What the engine and the agent use. Nothing but `open` may be called before it."""

    def __init__(
        self,
        config: DaemonConfig,
        clock: Clock,
        rng: random.Random,
        *,
        resolv_conf: Path = _RESOLV_CONF,
        machine: int | None = None,
        tell: Tell = lambda kind, action, id, attributes: None,
    ) -> None:
        """`machine`: descriptor of the machine's network namespace, if not the process's own;
        `tell`: where events go."""
        self._config = config
        self._clock = clock
        self._rng = rng
        self._owner = str(config.state_dir)
        self._journal = Journal(config.state_dir / "network")
        self._table = Table()
        self.local = LocalNetworks(self._journal)
        self._planner = Planner(self._table, self.local, self._owner, self._near_name)
        self._member: Membership | None = None
        self._settings = MachineSettings(resolv_conf, config.dns)
        upstream = Upstream(lambda: self._settings.servers, rng)
        self._node_networks = NodeNetworks(self._owner, clock.now(), self.local, self._table, tell)
        self._resolvers = Resolvers(
            self._table, self.local, upstream, self._node_networks.bridge_id, rng
        )
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._saving: asyncio.TimerHandle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._auditing: asyncio.TimerHandle | None = None
        self._audit_at = 0.0  # when everything is compared next
        self._counts = Counts()
        self._around = Surroundings()
        self._warnings: tuple[str, ...] = ()
        self._namespace = machine
        self._opened = False
        self._joined = False  # as `_member`, in the kernel
        self._damaged = False

    # Opening and closing

    async def open(self) -> None:
        """Adopt what runs, clean what is left over. Raises Unavailable if the kernel refuses."""
        self._member = self._journal.get("state", "member", Membership)
        saved = self._journal.get("state", "table", NetworkChange)
        if saved is not None and self._member is not None:
            self._table.apply(saved)
        self._helper = NamespaceHelper(self._namespace)
        self._machine = Machine(
            self._helper,
            self._journal,
            self._config.run_dir,
            self._owner,
            self._config.mtu,
            self._rng,
        )
        try:
            self._number = await self._helper.run(self._machine.open)
            # Which subnets are in use shows only when the sandboxes are read.
            records = self._journal.load("sandboxes", SandboxRecord).values()
            self._use(self._own_subnet(), records)
            subnets = subnets_of(records, self._planner.node.subnet)
            networks = self.local.load(records)
            self._joined = await self._helper.run(
                self._machine.start, subnets, self._member, self._table, networks
            )
        except OSError as error:
            raise _refused("open the node's network", error) from error
        self._opened = True
        self._audit_at = self._now() + _AUDIT_S
        self._auditing = asyncio.get_running_loop().call_later(_WATCH_S, self._audit_later)
        await self._look_around()
        self._note_ports()
        for name, record in self._records.items():
            self._resolvers.serve(record, self._machine.boxes.namespaces.get(name))

    @property
    def _records(self) -> dict[str, SandboxRecord]:
        return self._machine.boxes.records

    def _own_subnet(self) -> IPv4Network:
        if self._member is not None:
            return node_subnet(self._member.pool, self._member.index)
        return default_subnet(self._config.node_pool, self._number)

    @property
    def _pool(self) -> str:
        return self._member.pool if self._member is not None else self._config.node_pool

    def _use(self, subnet: IPv4Network, records: Iterable[SandboxRecord]) -> None:
        taken = [
            IPv4Address(record.sandbox.node_address)
            for record in records
            if record.sandbox.node_address
        ]
        self._planner.node = Ipam(subnet, taken)

    async def close(self) -> None:
        """Stop serving; kernel state for running containers stays, and all goes if there are none.

        Sandboxes answer no names until the next `open`; connections go on.
        """
        if not self._opened:
            return
        self._opened = False
        await asyncio.gather(*self._running, return_exceptions=True)
        async with self._lock:
            for timer in (self._saving, self._retrying, self._looking, self._auditing):
                if timer is not None:
                    timer.cancel()
            if self._member is not None:
                await asyncio.to_thread(self._save_table)
            await self._resolvers.close()
            await self._helper.run(self._machine.close)
            await asyncio.to_thread(self._helper.close)

    # The cluster

    async def join(
        self, node_id: str, node_index: int, node_pool: str, address: str, data_path_port: int
    ) -> None:
        """Be node `node_id` of a cluster, with `node_pool`'s /22 of number `node_index`.

        Idempotent. Sandboxes made before keep their addresses. Raises Unavailable.
        """
        member = Membership(
            node_id=node_id,
            index=node_index,
            pool=node_pool,
            address=address,
            port=data_path_port or self._config.data_path_port,
        )
        await self._whole(self._join(member))

    async def _join(self, member: Membership) -> None:
        if self._joined and member == self._member:
            return
        subnet = node_subnet(member.pool, member.index)
        records = self._records.values()
        try:
            await self._helper.run(
                self._machine.join, member, subnets_of(records, subnet), self._table
            )
        except OSError as error:
            raise _refused(f"join the cluster's network as {member.address}", error) from error
        self._member, self._joined = member, True
        self._note_ports()
        self._use(subnet, records)
        await asyncio.to_thread(self._journal.put, "state", "member", member)

    async def leave(self) -> None:
        """The cluster is left: remove overlays, ingress, names, all of the cluster's state."""
        await self._whole(self._leave())

    async def _leave(self) -> None:
        if self._member is None and not any(True for _ in self._table.items()):
            return
        self._member, self._joined = None, False
        self._table.apply(NetworkChange(complete=True))
        self._journal.remove("state", "member")
        self._journal.remove("state", "table")
        records = self._records.values()
        self._use(self._own_subnet(), records)
        await self._helper.run(self._machine.leave, subnets_of(records, self._planner.node.subnet))
        self._note_ports()

    async def apply(self, change: NetworkChange) -> None:
        """Returns when the kernel, the balancer and the names agree with `change`."""
        await self._whole(self._apply(change))

    async def _apply(self, change: NetworkChange) -> None:
        touched = self._table.apply(change)
        try:
            if self._damaged:
                await self._repair()
            await self._helper.run(self._machine.apply, touched, self._table)
        except OSError as error:
            # The table is ahead of the kernel now: what this change touched is known no more.
            log.warning("repairing the network of this node after: %s", error)
            await self._repair()
        self._note_ports()
        if self._saving is None:
            loop = asyncio.get_running_loop()
            self._saving = loop.call_later(_SAVE_AFTER_S, self._save_later)

    async def _repair(self) -> None:
        self._counts.repairs += 1
        self._damaged = True  # until it has worked; the next change tries again
        try:
            await self._helper.run(self._machine.repair, self._table)
        except OSError as error:
            raise _refused("apply the endpoint table", error) from error
        self._damaged = False

    def _save_later(self) -> None:
        self._saving = None
        if self._member is not None and self._opened:
            self._start(self._save())

    async def _save(self) -> None:
        async with self._lock:  # the table must not change meanwhile
            if self._member is not None:
                await asyncio.to_thread(self._save_table)

    def _save_table(self) -> None:
        puts = tuple(self._table.items())
        self._journal.put("state", "table", NetworkChange(complete=True, puts=puts))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does not work on this node as the cluster's users may expect, a sentence each."""
        pool = self._pool
        known = (*self._warnings, *(self._machine.firewall_warnings if self._opened else ()))
        found = self._around.overlapping(pool)
        if not found:
            return known
        line = (
            f"{found}, a network of this machine, overlaps with the node pool {pool}: containers "
            "and it may not reach each other; make the cluster with another node_pool"
        )
        return (*known, line)

    @property
    def around(self) -> Surroundings:
        """The networks around this machine, as they were up to a minute ago."""
        return self._around

    async def _look(self) -> None:
        try:
            self._around = await self._helper.run(self._machine.look_around)
        except OSError as error:
            log.warning("cannot read the routes of this machine: %s", error)

    async def _look_around(self) -> None:
        await self._look()
        if self._opened:
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(_AROUND_S, self._look_later)

    def _look_later(self) -> None:
        if self._opened:
            self._start(self._look_around())

    def _note_ports(self) -> None:
        """Tell of published ports that others have here, and try them again in a while."""
        before, self._warnings = self._warnings, self._machine.unanswered()
        for line in self._warnings:
            if line not in before:
                log.warning("%s", line)
        if self._warnings and self._retrying is None:
            loop = asyncio.get_running_loop()
            self._retrying = loop.call_later(_PORTS_S, self._retry_later)

    def _retry_later(self) -> None:
        self._retrying = None
        if self._opened:
            self._start(self._alone(self._retry_ports()))

    async def _retry_ports(self) -> None:
        if not self._opened:
            return
        try:
            await self._helper.run(self._machine.retry_ports, self._table)
        except OSError as error:
            log.warning("repairing the network of this node after: %s", error)
            self._damaged = True
        self._note_ports()

    # Comparing with the kernel

    @property
    def counts(self) -> Counts:
        """What comparing the kernel with the endpoint table has come to."""
        return self._counts

    async def audit(self) -> list[Difference]:
        """Compare the kernel with the endpoint table, and repair it if it differs.

        Part by part, so that changes wait for one part's comparison at the most.
        """
        found = []
        for part in self._machine.parts():
            found += await self._whole(self._audit_part(part))
        self._counts.audits += 1
        return found

    async def _audit_part(self, part: Part) -> list[Difference]:
        if self._damaged:
            await self._repair()
        found = await self._helper.run(self._machine.differences, part, self._table)
        if found:
            self._counts.note(found)
            log.warning("repairing the network of this node: %s", summary(found))
            await self._repair()
        return found

    async def _audit_often(self) -> None:
        """Everything at intervals; the machine's own table soon after others changed tables."""
        began = self._now()
        try:
            if began >= self._audit_at:
                await self.audit()
            elif not await self._helper.run(self._machine.is_as_left):
                await self._whole(self._audit_part(self._machine.parts()[0]))
        except (OSError, ShoalError) as error:
            if not self._opened:
                return
            log.warning("cannot compare the kernel with the endpoint table: %s", error)
        took_s = self._now() - began
        if began >= self._audit_at:
            self._audit_at = began + max(_AUDIT_S, _AUDIT_SHARE * took_s)
        if self._opened:
            wait_s = max(_WATCH_S, _AUDIT_SHARE * took_s)
            self._auditing = asyncio.get_running_loop().call_later(wait_s, self._audit_later)

    def _audit_later(self) -> None:
        if self._opened:
            self._start(self._audit_often())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def digest(self) -> str:
        """Of the endpoint table, to be compared with the dispatcher's."""
        return self._table.digest()

    # Sandboxes

    async def open_sandbox(
        self, spec: SandboxSpec, early: Callable[[Sandbox], Awaitable[None]] | None = None
    ) -> Sandbox:
        """Make a sandbox ready for processes; the one there is if `spec.id` has one.

        `early` is awaited as soon as its namespace exists, which is well before it is connected.
        Raises Invalid, PortTaken, Unavailable (a network is not known on
        this node, no address is free, the kernel refuses); then nothing is left of it.
        """
        return await self._whole(self._open_sandbox(spec, early))

    async def _open_sandbox(
        self, spec: SandboxSpec, early: Callable[[Sandbox], Awaitable[None]] | None
    ) -> Sandbox:
        existing = self._records.get(spec.id)
        if existing is not None:
            return existing.sandbox
        check(spec)
        ports: tuple[HostPort, ...] = ()
        boxes = self._machine.boxes
        if spec.host_ports:
            wanted = self._addressed(spec)
            ports = await self._helper.run(boxes.claim_ports, spec.id, wanted)
        record = None
        try:
            machine = Settings(self._settings.text, self._settings.search, _read(_HOSTS))
            record = self._planner.open(spec, str(boxes.path(spec.id)), ports, machine)
            namespace = await self._helper.run(boxes.begin, record)
            if early is not None:
                await early(record.sandbox)
            await self._helper.run(boxes.complete, record, namespace, self._table)
            self._start(self._helper.run(boxes.stock))
        except (OSError, ShoalError) as error:
            if record is not None:
                self._planner.give_back(record.legs)
            await self._helper.run(boxes.release_ports, spec.id)
            if isinstance(error, OSError):
                raise _refused(f"make the sandbox of {spec.id[:12]}", error) from error
            raise
        self._resolvers.serve(record, namespace)
        self._node_networks.tell_all("connect", record)
        return record.sandbox

    def _addressed(self, spec: SandboxSpec) -> tuple[HostPort, ...]:
        """Its ports, with the address that its network opens them at."""
        address = self._planner.host_address(spec)
        return tuple(
            port if port.host_ip else replace(port, host_ip=address) for port in spec.host_ports
        )

    def _near_name(self) -> str:
        """Never used before: the near end of a dead sandbox's pair lives on for a moment."""
        return f"sh{self._rng.getrandbits(48):012x}"

    async def close_sandbox(self, sandbox_id: str) -> None:
        """Remove a sandbox whose processes have ended; no error if there is none."""
        await self._whole(self._close_sandbox(sandbox_id))

    async def _close_sandbox(self, sandbox_id: str) -> None:
        await self._resolvers.stop(sandbox_id)
        record = self._records.get(sandbox_id)
        try:
            await self._helper.run(self._machine.boxes.destroy, sandbox_id)
        except OSError as error:
            raise _refused(f"remove the sandbox of {sandbox_id[:12]}", error) from error
        if record is not None:
            self._planner.give_back(record.legs)
            self._node_networks.tell_all("disconnect", record)

    def sandboxes(self) -> dict[str, Sandbox]:
        """All that exist, by id."""
        return {name: record.sandbox for name, record in self._records.items()}

    async def reconnect(self, sandbox_id: str, attachments: tuple[Attachment, ...]) -> Sandbox:
        """Connect a sandbox with exactly these networks, while processes are in it.

        Links of networks that it was on before stay as they are. Raises Invalid, Forbidden,
        NotFound, Unavailable; then it is connected as before.
        """
        return await self._whole(self._reconnect(sandbox_id, attachments))

    async def _reconnect(self, sandbox_id: str, attachments: tuple[Attachment, ...]) -> Sandbox:
        old = self._records.get(sandbox_id)
        if old is None:
            raise NotFound(f"container {sandbox_id[:12]} has no network here")
        spec = replace(old.spec, attachments=attachments, internal_only=not attachments)
        record = self._planner.connected(old, spec)
        fresh = [leg for leg in record.legs if leg.network_id not in network_ids(old)]
        try:
            await self._helper.run(self._machine.boxes.change, record, self._table)
        except (OSError, ShoalError) as error:
            self._planner.give_back(fresh)
            if isinstance(error, OSError):
                raise _refused(f"connect container {sandbox_id[:12]}", error) from error
            raise
        gone = [leg for leg in old.legs if leg.network_id not in network_ids(record)]
        self._planner.give_back(gone)
        await self._resolvers.stop(sandbox_id)
        self._resolvers.serve(record, self._machine.boxes.namespaces.get(sandbox_id))
        self._node_networks.tell_all("disconnect", old, besides=record)
        self._node_networks.tell_all("connect", record, besides=old)
        return record.sandbox

    async def rename(self, sandbox_id: str, name: str) -> None:
        """The container is called `name` now; nothing happens if it does not run."""
        await self._whole(self._rename(sandbox_id, name))

    async def _rename(self, sandbox_id: str, name: str) -> None:
        old = self._records.get(sandbox_id)
        if old is not None:
            record = replace(old, spec=replace(old.spec, name=name))
            await self._helper.run(self._machine.boxes.note, record)
            self._resolvers.show(record)

    # Networks of this node, for the API

    def list(self) -> list[dict[str, Any]]:
        """The node's own networks, as the API shows them."""
        records = self._records.values()
        return [row | {"Containers": local.containers(row["Id"], records)} for row in self._rows()]

    def _rows(self) -> builtins.list[dict[str, Any]]:
        return self._node_networks.rows(f"shoal{self._number}", self._planner.node.subnet)

    def inspect(self, ref: str) -> dict[str, Any]:
        """One of them by name or id, but for who is on it. Raises NotFound."""
        return local.find(self._rows(), ref)

    def check_address(self, network_id: str, address: str) -> None:
        """Raises Invalid unless a container may ask for `address` on a network of this node."""
        self._node_networks.check_address(network_id, address)

    async def create(self, spec: NetworkSpec, network_id: str) -> None:
        """Make a network of this node. Raises Invalid, Forbidden, Conflict, NotImplementedHere,
        Unavailable (the kernel refuses); nothing is left then."""
        await self._whole(self._create(spec, network_id))

    async def _create(self, spec: NetworkSpec, network_id: str) -> None:
        await self._look()
        network = self._node_networks.plan(
            spec, network_id, self._clock.now(), self._pool, self._around
        )
        await asyncio.to_thread(self.local.add, network)
        try:
            await self._helper.run(self._machine.create_network, network)
        except (OSError, ShoalError) as error:
            await asyncio.to_thread(self.local.drop, network_id)
            if isinstance(error, OSError):
                raise _refused(f"make network {network.name}", error) from error
            raise
        self._node_networks.tell("create", network.id, network.name, network.driver)

    async def remove(self, ref: str) -> None:
        """Raises NotFound, Forbidden: one that is predefined, or that running containers use."""
        await self._whole(self._remove(ref))

    async def _remove(self, ref: str) -> None:
        row = self.inspect(ref)
        self._node_networks.check_removable(row, self._records.values())
        await asyncio.to_thread(self.local.drop, row["Id"])
        try:
            await self._helper.run(self._machine.remove_network, row["Id"])
        except OSError as error:
            raise _refused(f"remove the interface of network {row['Name']}", error) from error
        self._node_networks.tell("destroy", row["Id"], row["Name"], row["Driver"])

    # Running things whole

    async def _whole(self, work: Coroutine[Any, Any, R]) -> R:
        """One at a time, and to the end also if the caller gives up: the kernel knows no half."""
        if not self._opened:
            work.close()
            raise Unavailable("the network part of this node is not open")
        return await asyncio.shield(self._start(self._alone(work)))

    async def _alone(self, work: Coroutine[Any, Any, R]) -> R:
        async with self._lock:
            return await work

    def _start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _refused(what: str, error: OSError) -> Unavailable:
    return Unavailable(f"cannot {what}: {error.strerror or error}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
