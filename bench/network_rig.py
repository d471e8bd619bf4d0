"""Lab machines without daemons, each with the network part of one, all in this process.

So what is measured is the data plane and nothing else. An endpoint here is a sandbox with an entry
in the table, as the manager would make it; programs are run inside with nsenter.
"""

import asyncio
import os
import random
from dataclasses import dataclass, field

import msgspec

from common.clock import SystemClock
from common.config import DaemonConfig
from common.protocol.network import (
    IngressBackend,
    NetworkChange,
    NetworkItem,
    OverlayEndpoint,
    OverlayNetwork,
    Peer,
    PublishedPort,
    ServiceEntry,
    Subnet,
    key,
)
from lab.cluster import Cluster
from lab.machine import Machine
from worker.network.model import Attachment, Sandbox, SandboxSpec
from worker.network.networks import Networks

PREFIX = "shoal-bench-net"
POOL = "10.192.0.0/10"
NETWORK = OverlayNetwork(
    id="net1", name="bench", vni=4097, subnets=(Subnet(subnet="10.0.0.0/16", gateway="10.0.0.1"),)
)


@dataclass
class Node:
    number: int
    machine: Machine
    networks: Networks
    netns: str  # a path

    @property
    def id(self) -> str:
        return f"n{self.number}"

    @property
    def ip(self) -> str:
        return self.machine.ip


@dataclass(frozen=True)
class Box:
    """A sandbox on the overlay. `address` is its own there."""

    node: Node
    sandbox: Sandbox
    endpoint: OverlayEndpoint

    @property
    def netns(self) -> str:
        return self.sandbox.netns

    @property
    def address(self) -> str:
        return self.endpoint.address


@dataclass
class Rig:
    cluster: Cluster = field(default_factory=lambda: Cluster(PREFIX))
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    nodes: list[Node] = field(default_factory=list)
    table: dict[tuple[str, ...], NetworkItem] = field(default_factory=dict)
    _descriptors: list[int] = field(default_factory=list)

    async def start(self, count: int) -> None:
        """`count` machines that know of each other, and the network `NETWORK`."""
        self.cluster.down()
        self.cluster.prepare(count)
        for machine in self.cluster.machines:
            machine.boot()
            self.nodes.append(await self._node(machine))
        peers = [Peer(node_id=node.id, index=node.number, address=node.ip) for node in self.nodes]
        await self.put(*peers, NETWORK)

    async def _node(self, machine: Machine) -> Node:
        assert machine.init is not None
        netns = f"/proc/{machine.init.pid}/ns/net"
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(descriptor)
        config = DaemonConfig(state_dir=machine.state_dir, run_dir=machine.run_dir)
        networks = Networks(config, SystemClock(), self.rng, machine=descriptor)
        await networks.open()
        node = Node(int(machine.name[1:]), machine, networks, netns)
        await networks.join(node.id, node.number, POOL, node.ip, 4789)
        return node

    @property
    def client(self) -> str:
        """The namespace of the world outside, on the same wire."""
        init = self.cluster.switch.init
        assert init is not None
        return f"/proc/{init.pid}/ns/net"

    async def put(self, *items: NetworkItem) -> None:
        """Have all nodes apply new items."""
        self.table |= {key(item): item for item in items}
        change = NetworkChange(puts=items)
        await asyncio.gather(*(node.networks.apply(change) for node in self.nodes))

    async def remove(self, *items: NetworkItem) -> None:
        gone = tuple(key(item) for item in items)
        for place in gone:
            self.table.pop(place)
        change = NetworkChange(removes=gone)
        await asyncio.gather(*(node.networks.apply(change) for node in self.nodes))

    async def box(self, node: Node, address: str, service: str = "") -> Box:
        """A sandbox with this overlay address; an active backend of `service`."""
        endpoint = endpoint_of(node.id, address, service)
        await self.put(endpoint)
        attachment = Attachment(
            network_id=NETWORK.id,
            network_name=NETWORK.name,
            address=f"{address}/16",
            mac=endpoint.mac,
        )
        spec = SandboxSpec(id=f"box-{address}", attachments=(attachment,))
        return Box(node, await node.networks.open_sandbox(spec), endpoint)

    async def publish(self, service: str, box: Box, active: bool = True) -> None:
        """Make `box` a backend of the service's published ports."""
        await self.put(
            IngressBackend(
                task_id=box.endpoint.task_id,
                service_id=service,
                node_id=box.node.id,
                address=box.sandbox.node_address,
                active=active,
            )
        )

    async def activate(self, box: Box, active: bool) -> None:
        await self.put(msgspec.structs.replace(box.endpoint, active=active))

    async def close(self, box: Box) -> None:
        await self.remove(box.endpoint)
        await box.node.networks.close_sandbox(box.sandbox.id)

    async def stop(self) -> None:
        """Remove all that was made."""
        for node in self.nodes:
            for name in node.networks.sandboxes():
                await node.networks.close_sandbox(name)
            await node.networks.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.cluster.down()


def endpoint_of(node: str, address: str, service: str, active: bool = True) -> OverlayEndpoint:
    return OverlayEndpoint(
        task_id=f"task-{address}",
        network_id=NETWORK.id,
        node_id=node,
        address=address,
        mac="02:42:" + bytes(map(int, address.split("."))).hex(":"),
        task_name=f"{service}.{address}",
        service_id=service,
        active=active,
    )


def service_of(name: str, vip: str, *ports: PublishedPort) -> ServiceEntry:
    vips = {NETWORK.id: vip} if vip else {}
    return ServiceEntry(service_id=name, name=name, vips=vips, ports=ports)
