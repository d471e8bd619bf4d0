"""Behaviours 252 and 253: whatever happens, once the world is healed each kernel has exactly what
the store says, and no comparison has ever found a difference.

Tasks come and go and use each other's addresses; services change VIPs and ports; agents restart,
daemons are killed, machines reboot, streams break, nodes fall silent, leaders change, and kernels
refuse requests for want of memory.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.model.node import Node, NodeState
from common.model.service import Service
from common.model.task import Task, TaskState
from tests.support.network_world import NetMachine, NetworkWorld
from worker.network import overlay, table
from worker.network.ingress import MachineTable
from worker.network.machine import Machine
from worker.network.mesh import Mesh
from worker.network.networks import Networks
from worker.network.resolver import Resolver

S = TaskState
SEEDS = int(os.environ.get("NETWORK_SEEDS", "4"))
STEPS = 80
HEALED_S = 20
NAMES = ("web", "api", "db")


class Chaos:
    def __init__(self, world: NetworkWorld) -> None:
        self.world = world
        self.rng = world.rng
        self.tasks: dict[str, NetMachine] = {}

    async def step(self) -> None:
        world, rng = self.world, self.rng
        node: Any = rng.choice(world.machines)
        kinds = {
            "create": 30, "stop": 20, "end": 6, "service": 8, "unserve": 2, "cut": 6, "silence": 3,
            "restart": 3, "crash": 3, "reboot": 2, "leader": 2, "trouble": 3, "audit": 4,
        }  # fmt: skip
        match rng.choices([*kinds], [*kinds.values()])[0]:
            case "create":
                await self._create(node)
            case "stop" if self.tasks:
                await world.want(rng.choice([*self.tasks]), rng.choice([S.SHUTDOWN, S.REMOVE]))
            case "end":
                await self._end(node)
            case "service":
                await self._serve(rng.choice(NAMES))
            case "unserve" if world.services():
                id = rng.choice(world.services()).id
                await world.store.update(lambda tx: tx.delete(Service, id))
            case "cut":
                node.cut()
            case "silence":
                node.silence(True)
                await asyncio.sleep(rng.uniform(0, 6))
                node.silence(False)
            case "restart":
                await node.restart()
            case "crash" | "reboot" as how:
                await getattr(node, how)()
                await asyncio.sleep(rng.uniform(0, 3))
                node.start()
            case "leader":
                await world.end_term()
                await asyncio.sleep(rng.uniform(0, 1))
                world.lead()
            case "trouble":
                world.kernel.trouble = 0.1
                await asyncio.sleep(rng.uniform(0, 2))
                world.kernel.trouble = 0.0
            case "audit" if node.networks._opened:
                await node.networks.audit()
                for box in node.networks._resolvers.served:
                    node.names(box)  # as containers ask all along

    async def _create(self, node: NetMachine) -> None:
        services = self.world.services()
        if not services:
            return
        networks = self.rng.choice([["net-1"], ["net-2"], ["net-1", "net-2"]])
        id = await self.world.add(node, self.rng.choice(services), networks)
        if id is not None:
            self.tasks[id] = node

    async def _end(self, node: NetMachine) -> None:
        live = [id for id in node.engine.tasks() if (s := node.engine.look(id)) and s.live]
        if live and node.networks._opened:
            await node.engine.end(self.rng.choice(live), 1)  # type: ignore[attr-defined]

    async def _serve(self, name: str) -> None:
        """Each name has its VIPs and ports, or goes without."""
        number = NAMES.index(name)
        vips = {
            net: f"{prefix}.{2 + number}"
            for net, prefix in (("net-1", "10.0.1"), ("net-2", "10.0.2"))
        }
        chosen = {net: vip for net, vip in vips.items() if self.rng.random() < 0.7}
        ports = {8000 + 10 * number + k: 80 for k in range(self.rng.randint(0, 2))}
        await self.world.serve(name, chosen, ports)

    def wrong(self) -> list[str]:
        """What is not (yet) as it should be."""
        world, found = self.world, []
        for id, node in self.tasks.items():
            task = world.store.view().get(Task, id)
            seen = node.engine.look(id)
            if task is not None and task.desired_state is S.RUNNING:
                if task.status.state < S.RUNNING or (
                    task.status.state is S.RUNNING and not (seen and seen.live)
                ):
                    found.append(f"{id} does not run: {task.status} {seen}")
            elif task is not None and task.status.state <= S.RUNNING:
                found.append(f"{id} has not ended")
        for item in world.machines:
            node = world.store.view().get(Node, item.id)
            if node is None or node.status.state is not NodeState.READY:
                found.append(f"{item.id} is not ready")
            elif item.networks.digest() != world.dispatcher._assignments.digest(item.id):
                found.append(f"{item.id} has another table")
            else:
                assert isinstance(item, NetMachine)
                wanted, actual = item.expected(), item.actual()
                found += [f"{item.id} lacks {fact}" for fact in wanted - actual]
                found += [f"{item.id} still has {fact}" for fact in actual - wanted]
        return found


async def healed(chaos: Chaos) -> list[str]:
    """What is still wrong after a while."""
    for _ in range(HEALED_S):
        await asyncio.sleep(1)
        if not chaos.wrong():
            return []
    return chaos.wrong()


async def run(folder: Path, seed: int, patch: pytest.MonkeyPatch) -> list[str]:
    """What was wrong in the end; and what comparisons found meanwhile."""
    world = NetworkWorld(folder, seed, 4, patch)
    async with world.running():
        chaos = Chaos(world)
        for name in NAMES:
            await chaos._serve(name)
        for _ in range(STEPS):
            await chaos.step()
            await asyncio.sleep(chaos.rng.expovariate(4))
        if wrong := await healed(chaos):
            return [f"seed {seed}: {line}" for line in wrong]
        found = []
        for node in world.machines:
            found += [f"seed {seed}: {node.id}: {item}" for item in await node.networks.audit()]
            counts = node.networks.counts.differences
            if counts or node.counted:  # type: ignore[attr-defined]
                found.append(f"seed {seed}: {node.id} had differences: {counts}")
        return found


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_each_kernel_has_what_the_store_says_once_all_is_healed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = await run(tmp_path, seed, monkeypatch)
    assert wrong == [], "\n".join(wrong)


def ways_stay(patch: pytest.MonkeyPatch) -> None:
    plan = overlay.plan
    patch.setattr(overlay, "plan", lambda old, new: ([], plan(old, new)[1]))


def backends_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Machine, "_rebalance", lambda self, touched, table: None)


def members_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(table, "_discard", lambda index, outer, inner: None)


def ports_stay(patch: pytest.MonkeyPatch) -> None:
    publish = MachineTable.publish
    patch.setattr(MachineTable, "publish", lambda self, gone, ports: publish(self, (), ports))


def nodes_are_not_reached(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mesh, "program", lambda self, peers: None)


async def _nothing(self: Networks) -> None:
    pass


def refusals_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Networks, "_repair", _nothing)


def answers_are_kept(patch: pytest.MonkeyPatch) -> None:
    """For ever, as a cache without the table's version would."""
    own, kept = Resolver._own, dict[Any, Any]()

    def remembered(self: Resolver, query: Any, stream: bool) -> Any:
        return kept.setdefault((self, query.name), own(self, query, stream))

    patch.setattr(Resolver, "_own", remembered)


@pytest.mark.parametrize(
    "defect",
    [
        ways_stay,
        backends_stay,
        members_stay,
        ports_stay,
        nodes_are_not_reached,
        refusals_are_forgotten,
        answers_are_kept,
    ],
)
async def test_the_simulation_finds_what_it_is_for(
    tmp_path: Path, defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "HEALED_S", 3)
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if await run(folder, seed, monkeypatch):
            return
    raise AssertionError("nothing was found")
