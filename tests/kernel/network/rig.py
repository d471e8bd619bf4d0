"""The machines, and programs that run in their sandboxes. Set up with ip(8), not with our code."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from common.clock import Clock
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
from worker.network.model import Attachment, Sandbox, SandboxSpec
from worker.network.networks import Networks

PROGRAMS = Path(__file__).parent / "programs.py"
POOL = "10.192.0.0/10"
DEADLINE_S = 20.0


def sh(*words: str) -> str:
    """Run a command; its output. Raises with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Node:
    number: int
    netns: str
    address: str
    directory: Path
    networks: Networks
    config: DaemonConfig


@dataclass
class Server:
    process: asyncio.subprocess.Process
    name: str


@dataclass
class Lab:
    prefix: str
    directory: Path
    rng: random.Random
    clock: Clock
    nodes: list[Node] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    broken: bool = False  # the test itself changes the nodes' kernel state
    table: dict[tuple[str, ...], NetworkItem] = field(default_factory=dict)

    async def start(self, count: int) -> None:
        switch = self._namespace("sw")
        sh("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", switch, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            self._plug(switch, f"m{number}", f"10.77.0.{number}/24")
        self._plug(switch, "client", "10.77.0.100/24")
        for number in range(1, count + 1):
            await self._node(number)

    def _namespace(self, name: str) -> str:
        whole = f"{self.prefix}-{name}"
        sh("ip", "netns", "add", whole)
        self.namespaces.append(whole)
        sh("ip", "-n", whole, "link", "set", "lo", "up")
        return whole

    def _plug(self, switch: str, name: str, address: str) -> None:
        netns = self._namespace(name)
        near = f"p{name}"
        sh(*f"ip -n {switch} link add {near} type veth peer eth0 netns {netns}".split())
        sh("ip", "-n", switch, "link", "set", near, "master", "br0", "up")
        sh("ip", "-n", netns, "addr", "add", address, "dev", "eth0")
        sh("ip", "-n", netns, "link", "set", "eth0", "up")

    async def _node(self, number: int) -> None:
        directory = self.directory / f"m{number}"
        config = DaemonConfig(state_dir=directory / "state", run_dir=directory / "run")
        resolv = directory / "resolv.conf"
        directory.mkdir()
        resolv.write_text("nameserver 127.53.0.1\nsearch example.test\n")
        netns = f"{self.prefix}-m{number}"
        node = Node(number, netns, f"10.77.0.{number}", directory, None, config)  # type: ignore[arg-type]
        node.networks = self.make_networks(node)
        self.nodes.append(node)
        await node.networks.open()

    def make_networks(self, node: Node) -> Networks:
        descriptor = os.open(f"/run/netns/{node.netns}", os.O_RDONLY)
        networks = Networks(
            node.config,
            self.clock,
            self.rng,
            resolv_conf=node.directory / "resolv.conf",
            machine=descriptor,
        )
        self._descriptors.append(descriptor)
        return networks

    _descriptors: list[int] = field(default_factory=list)

    async def restart(self, node: Node) -> None:
        """What a restarted daemon does."""
        await node.networks.close()
        node.networks = self.make_networks(node)
        await node.networks.open()

    async def join(self) -> None:
        for node in self.nodes:
            await node.networks.join(f"n{node.number}", node.number, POOL, node.address, 4789)
        await self.put(
            *(
                Peer(node_id=f"n{node.number}", index=node.number, address=node.address)
                for node in self.nodes
            )
        )

    async def put(self, *items: NetworkItem) -> None:
        """Have all nodes apply new items."""
        self.table |= {key(item): item for item in items}
        await asyncio.gather(
            *(node.networks.apply(NetworkChange(puts=items)) for node in self.nodes)
        )

    async def remove(self, *items: NetworkItem) -> None:
        for item in items:
            self.table.pop(key(item))
        removes = tuple(key(item) for item in items)
        await asyncio.gather(
            *(node.networks.apply(NetworkChange(removes=removes)) for node in self.nodes)
        )

    async def serve(self, sandbox: Sandbox, name: str, port: int = 80) -> Server:
        """Run the test server in a sandbox until the lab ends."""
        process = await asyncio.create_subprocess_exec(
            *enter(sandbox.netns, "serve", name, str(port)), stdout=asyncio.subprocess.PIPE
        )
        server = Server(process, name)
        self.servers.append(server)
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.readline()
        return server

    async def stop_server(self, server: Server) -> None:
        if server.process.returncode is None:
            server.process.kill()
        await server.process.wait()

    async def stop(self) -> None:
        for server in self.servers:
            await self.stop_server(server)
        differences = await self.differences()
        for node in self.nodes:
            for name in node.networks.sandboxes() if node.networks._opened else ():
                await node.networks.close_sandbox(name)
            await node.networks.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        for name in self.namespaces:
            await asyncio.to_thread(sh, "ip", "netns", "del", name)
        assert differences == []

    async def differences(self) -> list[str]:
        """What the nodes' kernels have otherwise than their endpoint tables want it, ever."""
        found = []
        for node in self.nodes:
            if node.networks._opened:
                found += [f"n{node.number}: {item}" for item in await node.networks.audit()]
                counts = node.networks.counts
                if not found and counts.differences and not self.broken:
                    found.append(f"n{node.number} had {counts.differences}")
        return found


def enter(netns: str, *words: str) -> tuple[str, ...]:
    path = netns if netns.startswith("/") else f"/run/netns/{netns}"
    return ("nsenter", f"--net={path}", sys.executable, str(PROGRAMS), *words)


async def run(netns: str, *words: str) -> Any:
    """Run one of the programs in a namespace; the JSON it prints."""
    process = await asyncio.create_subprocess_exec(
        *enter(netns, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {errors.decode()}")
    return json.loads(output)


async def ask(netns: str, address: str, port: int, count: int = 1) -> Counter[str]:
    """Make `count` connections; who answered, how often. Failures count under "!errno"."""
    answers: list[list[str]] = await run(netns, "ask", address, str(port), str(count))
    return Counter(server for server, _ in answers)


async def seen_from(netns: str, address: str, port: int, count: int = 1) -> set[str]:
    """The client addresses that the servers saw."""
    answers: list[list[str]] = await run(netns, "ask", address, str(port), str(count))
    return {client for _, client in answers}


async def resolve(netns: str, name: str, kind: int = 1, how: str = "udp") -> tuple[int, list[str]]:
    """The resolver's code, and addresses (or names) in order of their text."""
    code, found = await run(netns, "resolve", name, str(kind), how)
    return code, sorted(found)


NETWORK = OverlayNetwork(
    id="net1", name="blue", vni=4097, subnets=(Subnet(subnet="10.0.1.0/24", gateway="10.0.1.1"),)
)
OTHER = OverlayNetwork(
    id="net2", name="red", vni=4098, subnets=(Subnet(subnet="10.0.2.0/24", gateway="10.0.2.1"),)
)


@dataclass
class Replica:
    node: Node
    sandbox: Sandbox
    endpoint: OverlayEndpoint
    backend: IngressBackend
    server: Server


def mac_of(address: str) -> str:
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def spec(name: str, address: str, network: OverlayNetwork = NETWORK, **more: Any) -> SandboxSpec:
    attachment = Attachment(
        network_id=network.id,
        network_name=network.name,
        address=f"{address}/24",
        mac=mac_of(address),
    )
    return SandboxSpec(id=name, attachments=(attachment,), hostname=name, **more)


class Service:
    """A service of the lab, driven as the manager would: endpoint, sandbox, then active."""

    def __init__(self, lab: Lab, name: str, vip: str, ports: Iterable[PublishedPort] = ()) -> None:
        self.lab = lab
        self.entry = ServiceEntry(
            service_id=f"svc-{name}",
            name=name,
            vips={NETWORK.id: vip} if vip else {},
            aliases={NETWORK.id: (f"{name}-alias",)},
            ports=tuple(ports),
        )
        self.replicas: list[Replica] = []

    async def add(self, node: Node, address: str) -> Replica:
        name = f"{self.entry.name}.{address.rsplit('.', 1)[1]}"
        endpoint = OverlayEndpoint(
            task_id=f"task-{name}",
            network_id=NETWORK.id,
            node_id=f"n{node.number}",
            address=address,
            mac=mac_of(address),
            task_name=name,
            service_id=self.entry.service_id,
        )
        await self.lab.put(endpoint)
        sandbox = await node.networks.open_sandbox(spec(f"box-{name}", address))
        server = await self.lab.serve(sandbox, name)
        backend = IngressBackend(
            task_id=endpoint.task_id,
            service_id=self.entry.service_id,
            node_id=f"n{node.number}",
            address=sandbox.node_address,
        )
        replica = Replica(node, sandbox, endpoint, backend, server)
        self.replicas.append(replica)
        await self.activate(replica, True)
        return replica

    async def activate(self, replica: Replica, active: bool) -> None:
        replica.endpoint = msgspec.structs.replace(replica.endpoint, active=active)
        replica.backend = msgspec.structs.replace(replica.backend, active=active)
        await self.lab.put(replica.endpoint, replica.backend)

    async def drop(self, replica: Replica) -> None:
        await self.activate(replica, False)
        await self.lab.stop_server(replica.server)
        await self.lab.remove(replica.endpoint, replica.backend)
        await replica.node.networks.close_sandbox(replica.sandbox.id)
        self.replicas.remove(replica)
