"""Agents and a dispatcher as in `agents_world`, with the product's network part on fake kernels.

What must be in each kernel is worked out here from the store alone (`expected`), and read from the
kernel alone (`actual`), by none of the product's own comparisons.
"""

import asyncio
import contextlib
import random
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.config import DaemonConfig
from common.errors import NotFound
from common.model.network import IPAM, IPAMConfig, Network
from common.model.node import Node
from common.model.service import Endpoint, Service, VirtualIP
from common.model.task import NetworkAttachment, PortConfig, Task, TaskState
from manager.allocator.ipam import mac
from tests.support import build
from tests.support.agents_world import AgentsWorld, Machine
from tests.support.fake_engine import FakeEngine
from tests.support.fake_kernel import FakeKernel, Namespace
from tests.support.memory_proposer import LoopClock
from worker.network import dnswire
from worker.network.model import Attachment, SandboxSpec
from worker.network.netlink.codec import parse
from worker.network.networks import Networks
from worker.network.overlay import VXLAN

Facts = set[tuple[object, ...]]

SUBNETS = {"net-1": "10.0.1", "net-2": "10.0.2"}
ADDRESSES = range(10, 22)  # few, so that each is used again and again


class SandboxEngine(FakeEngine):
    """Containers that have a sandbox while they run."""

    def __init__(self, rng: random.Random, networks: Callable[[], Networks]) -> None:
        super().__init__(rng)
        self._networks = networks

    async def start(self, task: Task) -> None:
        await self._work()
        seen = self._containers.get(task.id)
        if seen is None:
            raise NotFound("no such container")
        attachments = tuple(
            Attachment(
                network_id=item.network_id,
                network_name=item.network_name,
                address=item.addresses[0],
                mac=item.mac,
            )
            for item in task.networks_attachments
        )
        spec = SandboxSpec(id=seen.id, attachments=attachments)
        box = await self._networks().open_sandbox(spec)
        self._count += 1
        pid = 1000 + self._count
        self.change(task.id, state="running", pid=pid, exit_code=0, node_address=box.node_address)

    async def stop(self, task: Task) -> None:
        await super().stop(task)
        await self.close(task.id)

    async def remove(self, task_id: str) -> None:
        await self.close(task_id)
        await super().remove(task_id)

    async def end(self, task_id: str, code: int) -> None:
        self.exit(task_id, code)
        await self.close(task_id)

    async def close(self, task_id: str) -> None:
        seen = self._containers.get(task_id)
        if seen is not None:
            await self._networks().close_sandbox(seen.id)

    async def sweep(self) -> None:
        """What the engine does when it opens: sandboxes are for containers that run."""
        live = {seen.id for seen in self._containers.values() if seen.live}
        for name in self._networks().sandboxes().keys() - live:
            await self._networks().close_sandbox(name)


class NetMachine(Machine):
    """A node with a kernel."""

    world: "NetworkWorld"
    networks: Networks

    def __init__(self, world: "NetworkWorld", number: int) -> None:
        super().__init__(world, number)
        self.engine = SandboxEngine(world.rng, lambda: self.networks)
        self.config = DaemonConfig(
            state_dir=world.folder / self.id / "state", run_dir=world.folder / self.id / "run"
        )
        self.address = f"192.0.2.{number}"
        self.home = world.kernel.machine(self.address)
        self.counted = 0  # differences that earlier daemons found
        self._crash = False

    def start(self) -> None:
        self._crash = False
        self.networks = Networks(
            self.config,
            LoopClock(),
            self.world.rng,
            resolv_conf=Path("/dev/null"),
            machine=self.home,
        )
        super().start()

    async def _run(self) -> None:
        trouble, self.world.kernel.trouble = self.world.kernel.trouble, 0.0
        await self.networks.open()
        self.world.kernel.trouble = trouble
        await self.engine.sweep()  # type: ignore[attr-defined]
        try:
            await super()._run()
        finally:
            self.counted += sum(self.networks.counts.differences.values())
            if self._crash:
                await abandon(self.networks)
            else:
                await self.networks.close()

    async def crash(self) -> None:
        """kill -9: nothing is closed, nothing saved."""
        self._crash = True
        await self.stop()

    async def reboot(self) -> None:
        await self.crash()
        self.world.kernel.power_off(self.config.run_dir)
        shutil.rmtree(self.config.run_dir, ignore_errors=True)
        self.home = self.world.kernel.machine(self.address)
        self.engine.reboot()
        self.boot_id = f"boot {self.world.rng.random()}"

    # What the kernel has

    def actual(self) -> Facts:
        facts: Facts = set()
        kernel = self.world.kernel
        home = kernel.namespace(self.home)
        table = next((t for name, t in home.tables.items() if name.startswith("shoal")), None)
        if table is not None:
            for key, members in _groups(table.maps, 8).items():
                names = {(str(IPv4Address(m[:4])), _port(m[4:])) for m in members}
                facts |= {("port", _port(key[4:]), *item) for item in names}
                facts.add(("published", _port(key[4:])))
            facts |= {("known", str(IPv4Address(key))) for key in table.maps["vteps"]}
            facts |= {("entry", int.from_bytes(key[2:], "big")) for key in table.maps["nodes"]}
        for name, box in self.networks.sandboxes().items():
            for vip, members in _groups(
                kernel.kept(Path(box.netns)).tables["shoal"].maps, 4
            ).items():
                whole = sorted(str(IPv4Address(item)) for item in members)
                facts.add(("vip", name, str(IPv4Address(vip)), *whole))
            facts |= {("name", name, *answer) for answer in self.names(name)}
        for network_id in SUBNETS:
            path = self.config.run_dir / "netns" / f"overlay-{network_id}"
            if path.exists():
                facts |= _forwarding(network_id, kernel.kept(path))
        return facts

    def names(self, sandbox: str) -> Facts:
        """What the sandbox's resolver says of the services."""
        resolver = self.networks._resolvers.served[sandbox]
        found: Facts = set()
        for service in self.world.services():
            for name in (service.spec.name, f"tasks.{service.spec.name}"):
                query = dnswire.parse(dnswire.make_query(1, name, dnswire.A))
                answer = resolver._own(query, stream=True)
                if answer is not None:
                    records = dnswire.parse_answer(answer).records
                    found.add((name, *sorted(map(socket.inet_ntoa, records))))
        return found

    # What it should have

    def expected(self) -> Facts:
        facts: Facts = set()
        world = self.world
        nodes = {node.id: node for node in world.store.view().find(Node)}
        others = [node for node in nodes.values() if node.id != self.id and node.index]
        facts |= {("known", node.status.addr) for node in others}
        facts |= {("entry", node.index) for node in others}
        tasks = [t for t in world.store.view().find(Task) if t.status.state <= TaskState.RUNNING]
        for service in world.services():
            for port in service.endpoint.ports:
                facts.add(("published", port.published_port))
                for task in world.serving(service.id):
                    address = task.status.node_address
                    facts.add(("port", port.published_port, address, port.target_port))
        here = {}
        for task in tasks:
            seen = self.engine.look(task.id)
            if task.node_id == self.id and seen is not None and seen.live:
                here[seen.id] = task
        for box, task in here.items():
            networks = [item.network_id for item in task.networks_attachments]
            for service in world.services():
                facts |= self._balanced(box, service, networks)
        for network_id in {i.network_id for t in here.values() for i in t.networks_attachments}:
            for task in tasks:
                for item in task.networks_attachments:
                    if item.network_id == network_id:
                        facts |= self._way(task, item, nodes, here.values())
        return facts

    def _balanced(self, box: str, service: Service, networks: list[str]) -> Facts:
        """The VIPs that a sandbox has, and names: of the first network where there is one."""
        facts: Facts = set()
        name = service.spec.name
        vips = {vip.network_id: vip.addr.split("/")[0] for vip in service.endpoint.virtual_ips}
        for network_id in reversed(networks):
            active = sorted(self.world.active(service.id, network_id))
            if network_id in vips:
                facts.add(("vip", box, vips[network_id], *active))
            if network_id in vips or self.world.endpoints(service.id, network_id):
                facts = {fact for fact in facts if fact[0] != "name"}
                told = [vips[network_id]] if network_id in vips else active
                facts.add(("name", box, name, *told))
                facts.add(("name", box, f"tasks.{name}", *active))
        return facts

    def _way(self, task: Task, item: NetworkAttachment, nodes: Any, here: Any) -> Facts:
        address = item.addresses[0].split("/")[0]
        if task.node_id != self.id:
            vtep = nodes[task.node_id].status.addr
            return {
                ("vtep", item.network_id, item.mac, vtep),
                ("remote", item.network_id, item.mac),
                ("neighbour", item.network_id, address, item.mac),
            }
        return {("local", item.network_id, item.mac)} if task in here else set()


def _groups(maps: dict[str, dict[bytes, Any]], width: int) -> dict[bytes, list[bytes]]:
    found = {}
    for key, data in maps["vips"].items():
        (count,) = struct.unpack("=I", data)
        assert maps["by"][data] == f"n{count}"
        found[key] = [maps["be"][key + struct.pack("=I", place)] for place in range(count)]
    assert sum(map(len, found.values())) == len(maps["be"]), "backends that nobody counts"
    for key in maps["dead"]:
        assert (key in found, len(key)) == (False, width)
        found[key] = []
    return found


def _port(data: bytes) -> int:
    return int(struct.unpack_from("!H", data)[0])


def _forwarding(network_id: str, namespace: Namespace) -> Facts:
    facts: Facts = set()
    for (index, kind, _, _), entry in namespace.neighbours.items():
        values = parse(entry.body, 12)
        hardware = values[2].hex(":")
        if entry.body[0] == socket.AF_INET:
            facts.add(("neighbour", network_id, str(IPv4Address(values[1])), hardware))
        elif kind == 0x02:
            facts.add(("vtep", network_id, hardware, str(IPv4Address(values[1]))))
        else:
            facts.add(("remote" if index == VXLAN else "local", network_id, hardware))
    return facts


async def abandon(networks: Networks) -> None:
    """The daemon is gone; the kernel keeps what it has. Descriptors are ours to close."""
    networks._opened = False
    for timer in (networks._saving, networks._retrying, networks._looking, networks._auditing):
        if timer is not None:
            timer.cancel()
    await asyncio.gather(*networks._running, return_exceptions=True)
    await asyncio.gather(*(item.stop() for item in networks._resolvers.served.values()))
    for part in (*networks._machine._sandboxes.values(), *networks._machine._overlays.values()):
        part.close()
    if networks._machine.boxes._spare is not None:
        networks._machine.boxes._spare.close()
    networks._helper.close()


class NetworkWorld(AgentsWorld):
    """Nodes with kernels, and services with virtual IPs and published ports."""

    def __init__(self, folder: Path, seed: int, nodes: int, patch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel(random.Random(seed))
        self.kernel.install(patch)
        super().__init__(folder, seed, nodes, NetMachine)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["NetworkWorld"]:
        def found(tx: Any) -> None:
            for number, (id, prefix) in enumerate(SUBNETS.items()):
                config = IPAMConfig(subnet=f"{prefix}.0/24", gateway=f"{prefix}.1")
                network = replace(build.network(f"other{number}"), id=id, vni=4097 + number)
                tx.put(replace(network, ipam=IPAM(config=(config,))))

        async with super().running():
            # One of them is there already, without a subnet.
            await self.store.update(lambda tx: tx.delete(Network, "net-1"))
            await self.store.update(found)
            yield self

    def services(self) -> list[Service]:
        return self.store.view().find(Service)

    def endpoints(self, service_id: str, network_id: str) -> list[tuple[Task, str]]:
        """The service's unfinished tasks on a network, and their addresses there."""
        return [
            (task, item.addresses[0].split("/")[0])
            for task in self.store.view().find(Task)
            if task.service_id == service_id and task.status.state <= TaskState.RUNNING
            for item in task.networks_attachments
            if item.network_id == network_id
        ]

    def serving(self, service_id: str) -> list[Task]:
        return [
            task
            for task in self.store.view().find(Task)
            if task.service_id == service_id
            and task.status.state is TaskState.RUNNING
            and task.desired_state is TaskState.RUNNING
        ]

    def active(self, service_id: str, network_id: str) -> set[str]:
        serving = self.serving(service_id)
        return {at for task, at in self.endpoints(service_id, network_id) if task in serving}

    async def serve(self, name: str, vips: dict[str, str], ports: dict[int, int]) -> None:
        """A service, or another form of it."""
        endpoint = Endpoint(
            ports=tuple(
                PortConfig(target_port=target, published_port=port)
                for port, target in ports.items()
            ),
            virtual_ips=tuple(
                VirtualIP(network_id=network_id, addr=f"{vip}/24")
                for network_id, vip in vips.items()
            ),
        )
        service = build.service(name, networks=["net-1", "net-2"])
        old = self.store.view().get(Service, service.id)
        made = replace(old or service, endpoint=endpoint)
        await self.store.update(lambda tx: tx.put(made))

    async def add(self, machine: Machine, service: Service, networks: list[str]) -> str | None:
        """A task with an address that no unfinished task has; None if there is none."""
        taken = {
            item.addresses[0]
            for task in self.store.view().find(Task)
            if task.status.state <= TaskState.RUNNING
            for item in task.networks_attachments
        }
        attachments = []
        for network_id in networks:
            choices = [f"{SUBNETS[network_id]}.{number}/24" for number in ADDRESSES]
            free = [address for address in choices if address not in taken]
            if not free:
                return None
            address = self.rng.choice(free)
            name = "other0" if network_id == "net-1" else "other1"
            attachments.append(
                NetworkAttachment(
                    network_id=network_id,
                    network_name=name,
                    addresses=(address,),
                    mac=mac(address),
                )
            )
        self._tasks += 1
        task = build.task(
            service,
            slot=self._tasks,
            id=f"task-{self._tasks:04}",
            node=machine.id,
            state=TaskState.ASSIGNED,
            networks_attachments=tuple(attachments),
        )
        await self.store.update(lambda tx: tx.put(task))
        return task.id
