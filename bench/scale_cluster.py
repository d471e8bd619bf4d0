"""A simulated cluster to measure: the real store and the leader's real loops, no log and no disk.

Every change passes through a transaction, is encoded as an entry of the log, decoded and applied,
as on a manager that leads alone; only Raft and the disk are not there.
"""

import asyncio
import gc
import random
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from common.clock import SystemClock
from common.ids import Ids
from common.model.base import Annotations, Version
from common.model.node import Node, NodeDescription, NodeSpec, NodeState, NodeStatus
from common.model.service import ReplicatedService, Service, ServiceMode, ServiceSpec, UpdateConfig
from common.model.task import (
    ContainerSpec,
    Placement,
    PlacementPreference,
    ResourceRequirements,
    Resources,
    SpreadOver,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from manager import leader
from manager.allocator.allocator import Allocator
from manager.api.services import Services
from manager.control import Loop
from manager.dispatcher.usage import UsageBook
from manager.orchestrator.autoscale import Autoscaler
from manager.orchestrator.enforcer import Enforcer
from manager.orchestrator.global_services import GlobalOrchestrator
from manager.orchestrator.jobs import GlobalJobOrchestrator, ReplicatedJobOrchestrator
from manager.orchestrator.reaper import Reaper
from manager.orchestrator.rebalance import Rebalancer
from manager.orchestrator.replicated import ReplicatedOrchestrator
from manager.orchestrator.timetable import Timetable
from manager.scheduler.scheduler import Scheduler
from manager.store.store import Resync, Store, Tx

T = TypeVar("T")
GIB = 1 << 30
CPU = 1_000_000_000
CHUNK = 500  # objects written in one transaction while a cluster is filled
RACKS = 20


class Loopback:
    """A log that has every entry at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.largest = 0  # bytes of an entry
        self.written = 0  # bytes of all

    async def propose(self, data: bytes) -> int:
        self.largest = max(self.largest, len(data))
        self.written += len(data)
        index = self._store.version + 1
        self._store.apply(index, data)
        return index

    async def confirm(self) -> None:
        """It leads for ever."""


class Meter:
    """Time and processor time since it was made, and memory that came since."""

    def __init__(self) -> None:
        gc.collect()
        self._memory = rss()
        self._cpu = time.process_time()
        self._begin = time.perf_counter()

    def read(self) -> "Cost":
        wall, cpu = time.perf_counter() - self._begin, time.process_time() - self._cpu
        return Cost(wall, cpu, rss() - self._memory)


class Cost(msgspec.Struct, frozen=True):
    """Seconds, seconds, bytes."""

    wall_s: float
    cpu_s: float
    memory: int


def rss() -> int:
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Sim:
    """A manager that leads, alone."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.rng = random.Random(1)
        self.ids = Ids(self.rng)
        self.store = Store(self.clock)
        self.log = Loopback(self.store)
        self.store.lead(self.log)
        self.services = Services(self.store, self.ids, self.clock)
        self.lags: list[float] = []

    def loops(self) -> list[Loop]:
        """Those of a leader, as `manager/parts.py` has them."""
        scheduler = Scheduler()
        return [
            ReplicatedOrchestrator(self.ids),
            GlobalOrchestrator(self.ids),
            ReplicatedJobOrchestrator(self.ids),
            GlobalJobOrchestrator(self.ids),
            Timetable(),
            Enforcer(),
            Reaper(),
            Allocator(),
            scheduler,
            Autoscaler(UsageBook(lambda node_id, message: False, self.clock.now)),
            Rebalancer(lambda: scheduler.nodes),
        ]

    async def put_all(self, objects: Iterable[Node | Service | Task]) -> None:
        """Write `objects`, chunk by chunk."""
        chunk: list[Node | Service | Task] = []
        for object in objects:
            chunk.append(object)
            if len(chunk) == CHUNK:
                await self._put(chunk)
                chunk = []
        await self._put(chunk)

    async def _put(self, chunk: Sequence[Node | Service | Task]) -> None:
        def write(tx: Tx) -> None:
            for object in chunk:
                tx.put(object)

        await self.store.update(write)

    async def run_until(
        self, loops: Sequence[Loop], done: Callable[[], bool], begin: Callable[[], object] | None
    ) -> Cost:
        """What it costs from `begin` (may be a coroutine) until `done`, `loops` running."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(leader.lead(self.store, loops, self.clock))
            lag = group.create_task(self.watch_lag())
            await asyncio.sleep(0.05)
            with self.store.watch() as settling:  # a new leader looks at everything first
                while begin is not None and any(loop.dirty for loop in loops):
                    await settling.wait(0.05)
            self.lags.clear()
            meter = Meter()
            if begin is not None:
                begun = begin()
                if asyncio.iscoroutine(begun):
                    await begun
            with self.store.watch() as watcher:
                while not done():
                    await watcher.wait(1.0)
            cost = meter.read()
            running.cancel()
            lag.cancel()
        return cost

    async def watch_lag(self) -> None:
        """Note how late a timer of 5 ms comes."""
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.005)
            self.lags.append(time.perf_counter() - begin - 0.005)


class Counter:
    """Counts the tasks that have got somewhere, from the events of the store."""

    def __init__(self, store: Store, reached: Callable[[Task], bool]) -> None:
        self._store = store
        self._watcher = store.watch()
        self._reached = reached
        self.ids = {task.id for task in store.view().all(Task) if reached(task)}

    def count(self) -> int:
        try:
            events = self._watcher.take()
        except Resync:
            tasks = self._store.view().all(Task)
            self.ids = {task.id for task in tasks if self._reached(task)}
            return len(self.ids)
        for event in events:
            object = event.object
            if isinstance(object, Task):
                if event.action != "remove" and self._reached(object):
                    self.ids.add(object.id)
                else:
                    self.ids.discard(object.id)
        return len(self.ids)


def assigned(task: Task) -> bool:
    return task.status.state >= TaskState.ASSIGNED and bool(task.node_id)


def node(number: int) -> Node:
    return Node(
        id=f"node-{number:06}",
        spec=NodeSpec(
            name="",
            labels={"rack": f"rack-{number % RACKS}", "disk": "ssd" if number % 2 else "hdd"},
        ),
        description=NodeDescription(
            hostname=f"machine-{number}",
            resources=Resources(nano_cpus=64 * CPU, memory_bytes=256 * GIB),
        ),
        status=NodeStatus(state=NodeState.READY, addr=f"10.{number >> 16}.{number >> 8 & 255}.1"),
        index=number + 1,
    )


def nodes(count: int) -> Iterable[Node]:
    return (node(number) for number in range(count))


def template(
    *,
    constraints: Iterable[str] = (),
    spread: Iterable[str] = (),
    cpus: float = 0.01,
    image: str = "registry.example/shop/web:1.2.3",
) -> TaskSpec:
    placement = Placement(
        constraints=tuple(constraints),
        preferences=tuple(
            PlacementPreference(spread=SpreadOver(spread_descriptor=each)) for each in spread
        ),
    )
    return TaskSpec(
        container_spec=ContainerSpec(image=image, env=("MODE=production",)),
        resources=ResourceRequirements(reservations=Resources(nano_cpus=int(cpus * CPU))),
        placement=None if placement == Placement() else placement,
    )


def spec(
    name: str, replicas: int, task: TaskSpec, update: UpdateConfig | None = None
) -> ServiceSpec:
    return ServiceSpec(
        name=name,
        task_template=task,
        mode=ServiceMode(replicated=ReplicatedService(replicas=replicas)),
        update_config=update,
    )


def pending(service: Service, slot: int, id: str) -> Task:
    """A task that only needs a node."""
    return Task(
        id=id,
        name=f"{service.spec.name}.{slot}.{id}",
        spec=service.spec.task_template,
        service_id=service.id,
        slot=slot,
        service_annotations=Annotations(name=service.spec.name, labels=service.spec.labels),
        status=TaskStatus(state=TaskState.PENDING, message="pending task scheduling"),
        desired_state=TaskState.RUNNING,
        spec_version=service.spec_version or Version(index=1),
    )


def running(task: Task, node_id: str) -> Task:
    return replace(task, node_id=node_id, status=TaskStatus(state=TaskState.RUNNING))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
