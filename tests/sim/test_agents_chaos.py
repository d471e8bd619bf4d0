"""Streams cut, nodes out of reach, agents and leaders restarted: each task still gets where it
should, what was seen is stored, and no stop signal outruns the endpoint tables."""

import asyncio
import os
from pathlib import Path

import pytest

from common.model.node import Node, NodeState
from common.model.task import Task, TaskState
from manager.dispatcher import assignments
from tests.support.agents_world import AgentsWorld, Machine

S = TaskState
SEEDS = int(os.environ.get("AGENT_SEEDS", "15"))
STEPS = 150
SETTLED_S = 3.5  # a node that was in reach for so long has answered before the deadline


class Chaos:
    """Does things at random, and remembers what must come out of them."""

    def __init__(self, world: AgentsWorld) -> None:
        self.world = world
        self.rng = world.rng
        self.tasks: dict[str, Machine] = {}
        self.ended: dict[str, int] = {}  # by itself, with that exit code
        self.deleted: set[str] = set()
        self.early: list[str] = []  # stop signals that came too soon
        self.stops = 0
        self.backward: list[str] = []
        self._out_of_reach: dict[str, float] = {}
        for machine in world.machines:
            machine.engine.on_stop = self._on_stop

    def _on_stop(self, task_id: str) -> None:
        if task_id in self.deleted:
            return  # forced: nothing to wait for
        self.stops += 1
        for machine in self.world.machines:
            if self._in_touch(machine) and machine.networks.active(task_id):
                self.early.append(f"{task_id}: {machine.id} still sends requests")

    def _in_touch(self, machine: Machine) -> bool:
        now = asyncio.get_running_loop().time()
        since = max(
            machine.connected_at,
            self.world.lead_since,
            self._out_of_reach.get(machine.id, 0.0),
        )
        return not machine.unreachable and machine.in_session and now - since > SETTLED_S

    async def watch(self) -> None:
        with self.world.store.watch() as watcher:
            while True:
                for event in await watcher.next():
                    new, old = event.object, event.old
                    if event.action == "update" and isinstance(new, Task):
                        assert isinstance(old, Task)
                        if new.status.state < old.status.state:
                            self.backward.append(f"{new.id}: {old.status} -> {new.status}")

    async def step(self) -> None:
        world, rng = self.world, self.rng
        machine = rng.choice(world.machines)
        match rng.choices(
            ["create", "stop", "remove", "delete", "exit", "cut", "silence", "restart", "leader"],
            [30, 15, 10, 3, 8, 12, 4, 5, 2],
        )[0]:
            case "create":
                self.tasks[await world.create(machine)] = machine
            case "stop":
                await self._want(S.SHUTDOWN)
            case "remove":
                await self._want(S.REMOVE)
            case "delete":
                if self.tasks:
                    id = rng.choice(list(self.tasks))
                    self.deleted.add(id)
                    self.tasks.pop(id)
                    self.ended.pop(id, None)
                    await world.delete(id)
            case "exit":
                self._exit(machine)
            case "cut":
                machine.cut()
            case "silence":
                machine.silence(True)
                await asyncio.sleep(rng.uniform(0, 6))
                machine.silence(False)
                self._out_of_reach[machine.id] = asyncio.get_running_loop().time()
            case "restart":
                await machine.stop()
                await asyncio.sleep(rng.uniform(0, 2))
                machine.start()
            case "leader":
                await world.end_term()
                await asyncio.sleep(rng.uniform(0, 1))
                world.lead()

    async def _want(self, desired: TaskState) -> None:
        if self.tasks:
            await self.world.want(self.rng.choice(list(self.tasks)), desired)

    def _exit(self, machine: Machine) -> None:
        live = [
            id
            for id in machine.engine.tasks()
            if (seen := machine.engine.look(id)) is not None
            and seen.live
            and id in self.tasks
            and self.world.task(id).desired_state is S.RUNNING
            and self.world.task(id).status.state is S.RUNNING
        ]
        if live:
            id, code = self.rng.choice(live), self.rng.choice([0, 1, 42])
            machine.engine.exit(id, code)
            self.ended[id] = code

    def settled(self) -> bool:
        return not self.unsettled()

    def unsettled(self) -> list[str]:
        """What is not yet as it should be in the end."""
        world, found = self.world, []
        for id, machine in self.tasks.items():
            task, seen = world.task(id), machine.engine.look(id)
            if task.desired_state is S.RUNNING and id not in self.ended:
                if task.status.state is not S.RUNNING or seen is None or not seen.live:
                    found.append(f"{id} should run: {task.status.state} {seen}")
            elif task.status.state <= S.RUNNING or (seen is not None and seen.live):
                found.append(f"{id} should have ended: {task.status.state} {seen}")
            elif task.desired_state is S.REMOVE and seen is not None:
                found.append(f"{id} should be removed: {seen}")
        for machine in world.machines:
            extra = [id for id in machine.engine.tasks() if self.tasks.get(id) is not machine]
            if extra:
                found.append(f"{machine.id} still has {extra}")
            node = world.store.view().get(Node, machine.id)
            if node is None or node.status.state is not NodeState.READY:
                found.append(f"{machine.id} is not ready")
            if machine.networks.digest() != world.dispatcher._assignments.digest(machine.id):
                found.append(f"{machine.id} has another table")
        return found


async def run(folder: Path, seed: int) -> Chaos:
    world = AgentsWorld(folder, seed, nodes=5)
    async with world.running():
        chaos = Chaos(world)
        watching = asyncio.get_running_loop().create_task(chaos.watch())
        try:
            for _ in range(STEPS):
                await chaos.step()
                await asyncio.sleep(chaos.rng.expovariate(4))
            try:
                await world.until(chaos.settled, 60)
            except AssertionError:
                raise AssertionError(f"seed {seed}: {chaos.unsettled()}") from None
        finally:
            watching.cancel()
    return chaos


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_all_comes_right_in_the_end(tmp_path: Path, seed: int) -> None:
    chaos = await run(tmp_path, seed)
    assert chaos.backward == []
    assert chaos.early == []
    for id, code in chaos.ended.items():
        status = chaos.world.task(id).status
        assert status.state in (S.COMPLETE if code == 0 else S.FAILED, S.SHUTDOWN), id
        if status.state is not S.SHUTDOWN:
            assert status.container_status is not None
            assert status.container_status.exit_code == code
        else:  # the order to stop came before anybody had looked
            assert chaos.world.task(id).desired_state >= S.SHUTDOWN


async def test_without_the_barrier_the_simulation_finds_early_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation can find the fault that it is for."""
    monkeypatch.setattr(assignments.Assignments, "_may_hold", lambda self, task: False)
    early = []
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        early += (await run(folder, seed)).early
    assert early


async def test_a_run_can_be_replayed(tmp_path: Path) -> None:
    traces = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        chaos = await run(folder, 3)
        started = [machine.engine.started for machine in chaos.world.machines]
        traces.append((chaos.world.store.version, started, chaos.stops, chaos.rng.getstate()))
    assert traces[0] == traces[1]
