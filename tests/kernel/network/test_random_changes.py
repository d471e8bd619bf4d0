"""Behaviours 252 and 253 on the real kernel: after any series of changes each node's kernel is
what its table says, as read by our own comparison and by the kernel's own tools."""

import json
import random
from typing import Any

import msgspec
import pytest

from common.protocol.network import (
    IngressBackend,
    NetworkChange,
    NetworkItem,
    OverlayEndpoint,
    Peer,
    PublishedPort,
    ServiceEntry,
    key,
)
from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import NETWORK, POOL, Lab, Node, mac_of, sh, spec
from worker.network.names import lookup

pytestmark = pytest.mark.root

STEPS = 70
SERVICES = ("web", "api")


class Series:
    """Random changes: endpoints that come, go, move and are used again; nodes that miss some."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.rng = random.Random(seed)
        self.table: dict[tuple[str, ...], NetworkItem] = dict(lab.table)
        self.away: set[int] = set()  # nodes that hear nothing
        self.boxes: dict[str, Node] = {}  # address -> where its sandbox is

    async def change(self, *puts: NetworkItem, removes: tuple[tuple[str, ...], ...] = ()) -> None:
        for at in removes:
            self.table.pop(at)
        self.table |= {key(item): item for item in puts}
        for node in self.lab.nodes:
            if node.number not in self.away:
                await node.networks.apply(NetworkChange(puts=puts, removes=removes))

    async def come_back(self) -> None:
        for node in self.lab.nodes:
            if node.number in self.away:
                await node.networks.join(f"n{node.number}", node.number, POOL, node.address, 4789)
                puts = tuple(self.table.values())
                await node.networks.apply(NetworkChange(complete=True, puts=puts))
        self.away.clear()

    async def step(self) -> None:
        rng = self.rng
        address = f"10.0.1.{rng.randint(10, 15)}"
        place = ("endpoint", NETWORK.id, f"task-{address}")
        kinds = ["add", "add", "flip", "flip", "remove", "service", "away", "restart", "peer"]
        match rng.choice(kinds):
            case "add" if place not in self.table:
                await self.add(address, rng.randint(1, 4), rng.choice(SERVICES))
            case "flip" if place in self.table:
                await self.flip(address)
            case "remove" if place in self.table:
                await self.remove(address)
            case "service":
                await self.serve(rng.choice(SERVICES))
            case "away":
                self.away.add(rng.choice(self.lab.nodes).number)
            case "restart":
                await self.lab.restart(rng.choice(self.lab.nodes))
                self.away |= {node.number for node in self.lab.nodes}
                await self.come_back()
            case "peer":
                await self.peer(rng.choice((3, 4)))

    async def add(self, address: str, number: int, service: str) -> None:
        """Nodes 3 and 4 are only names; one that is here gets a sandbox."""
        endpoint = OverlayEndpoint(
            task_id=f"task-{address}",
            network_id=NETWORK.id,
            node_id=f"n{number}",
            address=address,
            mac=mac_of(address),
            task_name=f"{service}.{address[-2:]}",
            service_id=f"svc-{service}",
        )
        await self.change(endpoint)
        if number <= len(self.lab.nodes):
            await self.come_back()
            node = self.lab.nodes[number - 1]
            await node.networks.open_sandbox(spec(f"box-{address}", address))
            self.boxes[address] = node
        await self.flip(address)

    async def flip(self, address: str) -> None:
        old: Any = self.table["endpoint", NETWORK.id, f"task-{address}"]
        backend = IngressBackend(
            task_id=old.task_id,
            service_id=old.service_id,
            node_id=old.node_id,
            address=f"10.192.9.{address[-2:]}",
            active=not old.active,
        )
        await self.change(msgspec.structs.replace(old, active=not old.active), backend)

    async def remove(self, address: str) -> None:
        task = f"task-{address}"
        await self.change(removes=(("endpoint", NETWORK.id, task), ("ingress", task)))
        node = self.boxes.pop(address, None)
        if node is not None:
            await node.networks.close_sandbox(f"box-{address}")

    async def serve(self, name: str) -> None:
        number = SERVICES.index(name)
        if ("service", f"svc-{name}") in self.table and self.rng.random() < 0.3:
            await self.change(removes=(("service", f"svc-{name}"),))
            return
        ports = range(8080 + 10 * number, 8080 + 10 * number + self.rng.randint(0, 2))
        entry = ServiceEntry(
            service_id=f"svc-{name}",
            name=name,
            vips={NETWORK.id: f"10.0.1.{self.rng.choice((2, 4)) + number}"},
            ports=tuple(PublishedPort(protocol="tcp", published=p, target=80) for p in ports),
        )
        await self.change(entry)

    async def peer(self, number: int) -> None:
        """It goes, or comes back with another address."""
        if ("peer", f"n{number}") in self.table:
            await self.change(removes=(("peer", f"n{number}"),))
        else:
            address = f"10.77.0.{self.rng.randint(60, 62) + 10 * number}"
            await self.change(Peer(node_id=f"n{number}", index=number, address=address))

    # What the kernel's own tools say

    def check(self, node: Node) -> None:
        overlay = f"--net={node.config.run_dir}/netns/overlay-{NETWORK.id}"
        here = [address for address, at in self.boxes.items() if at is node]
        if here:
            entries = sh("nsenter", overlay, "bridge", "fdb", "show", "dev", "vxlan0")
            found = {line.split()[0] for line in entries.splitlines() if " dst " in f"{line} "}
            assert found == {end.mac for end in self.remotes(node)}
        for address in here:
            netns = node.networks.sandboxes()[f"box-{address}"].netns
            assert vips(netns) == self.vips()
        table = node.networks._table
        for service in SERVICES:
            answer = lookup(table, NETWORK.id, f"tasks.{service}")
            known = ("service", f"svc-{service}") in self.table
            assert (answer is not None and set(answer.addresses)) == (
                known and self.active(f"svc-{service}")
            )

    def remotes(self, node: Node) -> list[OverlayEndpoint]:
        return [
            item
            for item in self.table.values()
            if isinstance(item, OverlayEndpoint)
            and item.node_id != f"n{node.number}"
            and ("peer", item.node_id) in self.table
        ]

    def active(self, service_id: str) -> set[str]:
        return {
            item.address
            for item in self.table.values()
            if isinstance(item, OverlayEndpoint) and item.active and item.service_id == service_id
        }

    def vips(self) -> dict[str, set[str]]:
        return {
            item.vips[NETWORK.id]: self.active(item.service_id)
            for item in self.table.values()
            if isinstance(item, ServiceEntry)
        }


def vips(netns: str) -> dict[str, set[str]]:
    """VIP -> backends, as nft(8) shows a sandbox's maps."""
    text = sh("nsenter", f"--net={netns}", "nft", "-j", "list", "table", "ip", "shoal")
    parts = [part.get("map") or part.get("set") for part in json.loads(text)["nftables"]]
    maps = {part["name"]: part.get("elem", []) for part in parts if part is not None}
    found: dict[str, set[str]] = {vip: set() for vip, _ in maps["vips"]}
    found |= {vip: set() for vip in maps["dead"]}
    for place, backend in maps["be"]:
        found[place["concat"][0]].add(backend)
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_after_any_series_of_changes_the_kernels_are_what_the_table_says(
    make_lab: MakeLab, seed: int
) -> None:
    lab = await make_lab(2)
    await lab.join()
    await lab.put(NETWORK)
    series = Series(lab, seed)
    for _ in range(STEPS):
        await series.step()
        for node in lab.nodes:
            assert await node.networks.audit() == []
    await series.come_back()
    for node in lab.nodes:
        assert await node.networks.audit() == []
        series.check(node)
        assert not node.networks.counts.differences
        assert not node.networks.counts.repairs
        sh("nsenter", f"--net=/run/netns/{node.netns}", "nft", "list", "ruleset")
