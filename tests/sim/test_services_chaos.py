"""All loops of the leader at once, under a random workload and random trouble: services, updates,
rebalancing, order, schedules, lost nodes and leaders. Each slot ends with one running task."""

import asyncio
import contextlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, NotFound, NotImplementedHere, Unavailable
from common.ids import Ids
from common.model import labels
from common.model.cluster import Cluster
from common.model.node import Availability, Node, NodeState
from common.model.service import (
    ReplicatedJob,
    ReplicatedService,
    Service,
    ServiceMode,
    UpdateConfig,
)
from common.model.task import RestartPolicy, Task, TaskState
from manager.allocator.allocator import Allocator
from manager.api import defaults
from manager.api.rebalancing import Rebalancing
from manager.control import Loop
from manager.orchestrator import ordering, update
from manager.orchestrator.rebalance import Rebalancer
from manager.orchestrator.scene import is_lost
from manager.orchestrator.timetable import Timetable
from manager.plan.plan import Planner
from manager.scheduler.scheduler import Scheduler
from tests.support import build
from tests.support.fake_agents import Leader, running
from tests.support.memory_proposer import LoopClock, memory_store
from tests.unit.orchestrator.conftest import World

SEEDS = int(os.environ.get("SERVICE_SEEDS", "5"))
STEPS = 60
NODES = ("n1", "n2", "n3", "n4")
BAD = "bad:1"
SETTLE_S = 1500.0  # more than the longest time for which anything waits for anything
REFUSALS = (Conflict, Invalid, NotFound, NotImplementedHere, Unavailable)


@contextlib.asynccontextmanager
async def cluster(rng: random.Random) -> AsyncIterator[World]:
    def others() -> list[Loop]:
        scheduler = Scheduler()
        return [
            Allocator(),
            scheduler,
            Timetable(),
            Rebalancer(lambda: scheduler.nodes),
        ]

    store = memory_store(delay_s=0.005)
    world = World(store)
    world.agents.full = True
    world.agents.fails[BAD] = TaskState.FAILED
    world.leader = Leader(store, Ids(rng), others)
    found = build.cluster()
    found = replace(found, spec=replace(found.spec, labels={labels.REBALANCE: "4"}))
    await world.put(found, *(build.node(id, index=i) for i, id in enumerate(NODES, 1)))
    agents = asyncio.get_running_loop().create_task(world.agents.run())
    world.leader.start()
    yield world
    await world.leader.kill()
    agents.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await agents
    await store.close()


class Chaos:
    """Does things at random."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.names: list[str] = []
        self.double: list[str] = []  # two tasks of a slot that both get requests
        self.planner = Planner(world.store, LoopClock())
        self.rebalancing = Rebalancing(world.store)

    async def watch(self) -> None:
        with self.world.store.watch() as watcher:
            while True:
                for event in await watcher.next():
                    if isinstance(event.object, Task):
                        self._look(event.object)

    def _look(self, task: Task) -> None:
        """In a stop-first service no slot ever has two tasks that get requests."""
        view = self.world.store.view()
        service = view.get(Service, task.service_id)
        if service is None or service.spec.mode.is_job or not task.slot:
            return
        config = service.spec.update_config
        if config is not None and config.order == "start-first":
            return
        serving = [
            other.id
            for other in running(view.find(Task, service_id=task.service_id))
            if other.slot == task.slot and not is_lost(view.get(Node, other.node_id))
        ]
        if len(serving) > 1:
            self.double.append(f"{task.name}: {serving}")

    async def step(self) -> None:
        actions = [self.create, self.change, self.scale, self.remove, self.drain, self.activate]
        actions += [self.lose, self.find, self.rebalance, self.plan, self.lead, self.fail]
        weights = [14, 12, 10, 3, 8, 10, 7, 9, 8, 6, 2, 10]
        action = self.rng.choices(actions, weights)[0]
        with contextlib.suppress(*REFUSALS):
            await action()

    async def create(self) -> None:
        rng, name = self.rng, f"s{len(self.names)}"
        if len(self.names) >= 8:
            return
        wants: dict[str, str] = {}
        if self.names and rng.random() < 0.4:
            condition = rng.choice(["started", "healthy"])
            wants[labels.DEPENDS_ON] = f"{rng.choice(self.names)}:{condition}"
        if rng.random() < 0.3:
            wants[labels.LOSS_GRACE] = rng.choice(["10s", "2m"])
        self.names.append(name)
        if rng.random() < 0.15:
            wants |= {labels.SCHEDULE: "*/2 * * * *"}
            wants |= {labels.SCHEDULE_OVERLAP: rng.choice(["forbid", "allow", "replace"])}
            mode = ServiceMode(replicated_job=ReplicatedJob(total_completions=2))
            spec = build.service(name, labels=wants, restart=self._restart()).spec
            await self.world.services.create(replace(spec, mode=mode))
            return
        await self.world.create(
            name,
            replicas=rng.randint(1, 6),
            global_=rng.random() < 0.2,
            labels=wants,
            restart=self._restart(),
            update=UpdateConfig(
                parallelism=rng.randint(1, 3),
                monitor=rng.choice([0, 5 * 10**9]),
                delay=rng.choice([0, 2 * 10**9]),
                order=rng.choice(["stop-first", "start-first"]),
                failure_action=rng.choice(["pause", "continue", "rollback"]),
            ),
        )

    def _restart(self) -> RestartPolicy:
        return RestartPolicy(delay=self.rng.choice([10**9, 5 * 10**9]))

    def _some(self) -> Service:
        if not self.names:
            raise NotFound("nothing yet")
        return self.world.services.get(self.rng.choice(self.names))

    async def change(self) -> None:
        image = BAD if self.rng.random() < 0.25 else f"web:{self.rng.randrange(100)}"
        await self.world.update(self._some(), image=image)

    async def scale(self) -> None:
        service = self._some()
        if service.spec.mode.name == "replicated":
            count = ReplicatedService(replicas=self.rng.randint(0, 8))
            await self.world.update(service, mode=ServiceMode(replicated=count))

    async def remove(self) -> None:
        await self.world.services.remove(self._some().id)

    async def drain(self) -> None:
        await self.world.node(self.rng.choice(NODES), availability=Availability.DRAIN)

    async def activate(self) -> None:
        await self.world.node(self.rng.choice(NODES), availability=Availability.ACTIVE)

    async def lose(self) -> None:
        await self.world.node(self.rng.choice(NODES), state=NodeState.DOWN)

    async def find(self) -> None:
        await self.world.node(self.rng.choice(NODES), state=NodeState.READY)

    async def rebalance(self) -> None:
        if self.rng.random() < 0.5:
            await self.rebalancing.node(self.rng.choice(NODES))
        else:
            await self.rebalancing.service(self._some().id, force=True)

    async def plan(self) -> None:
        service = self._some()
        mode = ServiceMode(replicated=ReplicatedService(replicas=self.rng.randint(0, 8)))
        spec = replace(service.spec, mode=mode)
        change = self.world.services.change(service.id, service.version.index, spec)
        await self.planner.plan(change)

    async def lead(self) -> None:
        await self.world.leader.kill()
        await asyncio.sleep(self.rng.uniform(0, 10))
        self.world.leader.start()

    async def fail(self) -> None:
        tasks = [t for t in self.world.tasks() if t.status.state is TaskState.RUNNING]
        if tasks:
            task = self.rng.choice(tasks)
            state = self.rng.choice([TaskState.FAILED, TaskState.COMPLETE])
            await self.world.put(replace(task, status=replace(task.status, state=state)))

    async def heal(self) -> None:
        """All nodes are there, nothing fails, and no update is left to a person."""
        self.world.agents.fails.clear()
        for id in NODES:
            await self.world.node(id, state=NodeState.READY, availability=Availability.ACTIVE)
        found = self.world.store.view().find(Cluster)[0]
        await self.world.put(replace(found, spec=replace(found.spec, labels={})))
        for name in self.names:
            with contextlib.suppress(NotFound):
                service = self.world.services.get(name)
                if service.spec.mode.is_job:
                    await self.world.services.remove(service.id)  # it would go on for ever
                else:
                    await self.world.update(service, image="well:1")


def problems(world: World) -> list[str]:
    """What is not as the specs say."""
    view, found = world.store.view(), list[str]()
    waiting: set[str] = set()
    services = {service.id: service for service in view.find(Service)}
    for service in services.values():
        if service.pending_delete:
            found.append(f"{service.spec.name} is still there")
            continue
        if ordering.waits(view, service) != ordering.NOTHING:
            waiting.add(service.id)  # for one that was removed: it may do so for ever
            continue
        if update.is_under_way(service):
            found.append(f"{service.spec.name} is being updated: {service.update_status}")
        found += _slots(view.find(Task, service_id=service.id), service)
    for task in view.find(Task):
        if task.service_id not in services:
            found.append(f"{task.name} is of no service")
        if (
            task.service_id not in waiting
            and task.leaving
            and task.desired_state <= TaskState.RUNNING
        ):
            found.append(f"{task.name} is still leaving")
    return found


def _slots(tasks: list[Task], service: Service) -> list[str]:
    name, active = service.spec.name, defaultdict[object, list[Task]](list)
    for task in tasks:
        if task.desired_state <= TaskState.RUNNING:
            active[task.slot or task.node_id].append(task)
    if any(task.waits_for for of_slot in active.values() for task in of_slot):
        return [f"{name} waits for nothing"]
    replicated = service.spec.mode.name == "replicated"
    wanted = defaults.replicas(service.spec) if replicated else len(NODES)
    found = [] if len(active) == wanted else [f"{name} has {len(active)} slots of {wanted}"]
    for slot, of_slot in active.items():
        states = Counter(task.status.state.value for task in of_slot)
        if states != {"running": 1}:
            found.append(f"{name}.{slot}: {dict(states)}")
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_each_slot_ends_with_one_running_task(seed: int) -> None:
    rng = random.Random(seed)
    async with cluster(rng) as world:
        chaos = Chaos(world, rng)
        watching = asyncio.get_running_loop().create_task(chaos.watch())
        for _ in range(STEPS):
            await chaos.step()
            await asyncio.sleep(rng.choice([0.0, 0.02, 0.5, 3.0, 20.0]))
        await chaos.heal()
        await asyncio.sleep(SETTLE_S)
        assert problems(world) == []
        for id in NODES:
            await chaos.rebalancing.node(id)
            await asyncio.sleep(SETTLE_S)
            assert problems(world) == []
        assert chaos.double == []
        version = world.store.version
        await asyncio.sleep(SETTLE_S)
        assert world.store.version == version, "something goes on for ever"
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
