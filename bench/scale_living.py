"""The cases of `bench.scale` about clusters that live: losses, updates, heartbeats, lists.

Agents are played by one task that answers at once, so what is measured is the manager's part.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from bench.scale_cluster import (
    Counter,
    Meter,
    Sim,
    nodes,
    pending,
    percentile,
    running,
    spec,
    template,
)
from bench.scale_placing import Row
from common.model.base import to_json
from common.model.cluster import Cluster, ClusterSpec, DispatcherConfig, RootCA
from common.model.node import Node, NodeState
from common.model.service import Service, UpdateConfig
from common.model.task import SECOND, Task, TaskState, TaskStatus
from common.protocol.dispatcher import (
    Applied,
    Assign,
    Heartbeat,
    Hello,
    StatusReport,
    TaskStatusUpdate,
    ToAgent,
    Welcome,
    decode_to_agent,
    encode,
)
from common.streams import StreamClosed
from manager import leader
from manager.api.tasks import Tasks
from manager.dispatcher.dispatcher import Dispatcher
from manager.store.store import Tx

REPORTS = 500  # statuses in one transaction, as from many agents
HEARTBEAT_S = 5.0


class QuickAgents:
    """Does at once, for all nodes but `lost`, what the tasks say."""

    def __init__(self, sim: Sim) -> None:
        self._sim = sim
        self.lost: set[str] = set()

    async def run(self) -> None:
        todo: dict[str, None] = {}
        with self._sim.store.watch() as watcher:
            while True:
                events = await watcher.next() if not todo else watcher.take()
                for event in events:
                    task = event.object
                    if isinstance(task, Task) and event.action != "remove" and self._next(task):
                        todo[task.id] = None
                ids = list(itertools.islice(todo, REPORTS))
                for id in ids:
                    del todo[id]
                await self._sim.store.update(lambda tx, ids=ids: self._write(tx, ids))  # type: ignore[misc]

    def _write(self, tx: Tx, ids: Iterable[str]) -> None:
        for id in ids:
            task = tx.get(Task, id)
            state = None if task is None else self._next(task)
            if task is not None and state is not None:
                tx.put(replace(task, status=TaskStatus(state=state)))

    def _next(self, task: Task) -> TaskState | None:
        state, desired = task.status.state, task.desired_state
        if not TaskState.ASSIGNED <= state <= TaskState.RUNNING or task.node_id in self.lost:
            return None
        if desired > TaskState.COMPLETE:
            return TaskState.SHUTDOWN
        if desired is TaskState.RUNNING:
            return None if state is TaskState.RUNNING else TaskState.RUNNING
        return None if state is TaskState.READY else TaskState.READY


async def settled(
    node_count: int, services: int, replicas: int, update: UpdateConfig | None = None
) -> Sim:
    """A cluster on which everything runs."""
    sim = Sim()
    await sim.put_all(nodes(node_count))
    wanted = template()
    made = [
        Service(id=f"service-{number:06}", spec=spec(f"s{number}", replicas, wanted, update))
        for number in range(services)
    ]
    await sim.put_all(made)
    turn = itertools.cycle(range(node_count))

    def tasks() -> Iterable[Task]:
        for service in made:
            stored = sim.store.view().get(Service, service.id)
            assert stored is not None
            for slot in range(1, replicas + 1):
                task = pending(stored, slot, f"{service.id}-{slot:07}")
                yield running(task, f"node-{next(turn):06}")

    await sim.put_all(tasks())
    return sim


async def node_loss(case: str, node_count: int, services: int, replicas: int) -> list[Row]:
    sim = await settled(node_count, services, replicas)
    lost = {f"node-{number:06}" for number in range(node_count // 10)}
    total, gone = services * replicas, services * replicas // 10
    agents = QuickAgents(sim)
    agents.lost = lost

    def lose() -> object:
        def write(tx: Tx) -> None:
            for id in lost:
                node = tx.get(Node, id)
                assert node is not None
                tx.put(replace(node, status=replace(node.status, state=NodeState.DOWN)))

        return sim.store.update(write)

    def on_others(least: TaskState) -> Callable[[Task], bool]:
        return lambda task: (
            task.desired_state is TaskState.RUNNING
            and least <= task.status.state <= TaskState.RUNNING
            and task.node_id not in lost
        )

    rows = []
    placed = Counter(sim.store, on_others(TaskState.ASSIGNED))
    up = Counter(sim.store, on_others(TaskState.RUNNING))
    decided: list[float] = []

    def done() -> bool:
        if not decided and placed.count() >= total:
            decided.append(time.perf_counter() - begun[0])
        return up.count() >= total

    begun = [0.0]

    def begin() -> object:
        begun[0] = time.perf_counter()
        return lose()

    async with asyncio.TaskGroup() as group:
        playing = group.create_task(agents.run())
        cost = await sim.run_until(sim.loops(), done, begin)
        playing.cancel()
    note = f"all decided after {decided[0]:.2f} s; {late(sim)}"
    rows.append(Row(case, f"{services} services x {replicas}", cost, gone, note))
    return rows


async def rolling_update(case: str, replicas: int, node_count: int, parallelism: int) -> Row:
    update = UpdateConfig(parallelism=parallelism, monitor=1)
    sim = await settled(node_count, 1, replicas, update)
    service = next(iter(sim.store.view().find(Service)))
    image = "registry.example/shop/web:2.0.0"
    changed = spec(service.spec.name, replicas, template(image=image), update)

    def is_new(task: Task) -> bool:
        container = task.spec.container_spec
        return (
            task.status.state is TaskState.RUNNING
            and container is not None
            and container.image == image
        )

    progress = Counter(sim.store, is_new)
    async with asyncio.TaskGroup() as group:
        playing = group.create_task(QuickAgents(sim).run())
        cost = await sim.run_until(
            sim.loops(),
            lambda: progress.count() >= replicas,
            lambda: sim.services.update(service.id, service.version.index, changed),
        )
        playing.cancel()
    return Row(case, f"{parallelism} at a time", cost, replicas, late(sim))


async def lists(case: str, count: int) -> list[Row]:
    sim = await settled(1000, 100, count // 100)
    api, rows = Tasks(sim.store), []
    meter = Meter()
    size = len(to_json(api.list({})))
    rows.append(Row(case, "list all at once", meter.read(), count, f"{size >> 20} MiB of JSON"))
    meter, after, seen, slowest = Meter(), "", 0, 0.0
    while True:
        begin = time.perf_counter()
        page = api.page({}, 1000, after)
        to_json(page)
        slowest = max(slowest, time.perf_counter() - begin)
        seen += len(page)
        if not page:
            break
        after = page[-1].id
    assert seen == count
    note = f"slowest page {slowest * 1000:.1f} ms"
    rows.append(Row(case, "list, pages of 1,000", meter.read(), count, note))
    return rows


def late(sim: Sim) -> str:
    worst = max(sim.lags, default=0.0) * 1000
    return f"loop late p99 {percentile(sim.lags, 0.99) * 1000:.0f} ms, worst {worst:.0f}"


# Steady state


class Line:
    """The manager's end of an agent's stream; the other end is `Herd`."""

    def __init__(self, herd: "Herd", node_id: str) -> None:
        self._herd = herd
        self.node_id = node_id
        self.sequence = 0
        self.digest = ""
        self.welcomed = False
        self.served = asyncio.Event()
        self.reports = 0
        self._inbox: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def push(self, data: bytes) -> None:
        self._inbox.append(data)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def send(self, data: bytes) -> None:
        begin = time.perf_counter()
        self._herd.heard(self, decode_to_agent(data))
        self._herd.spent_s += time.perf_counter() - begin

    async def receive(self) -> bytes:
        while not self._inbox:
            if self._closed:
                raise StreamClosed("closed")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._inbox.pop(0)

    async def close(self) -> None:
        self._closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Herd:
    """All agents. `spent_s` is their own part of the processor time, as far as it can be told."""

    def __init__(self, sim: Sim, node_count: int) -> None:
        self.lines = [Line(self, f"node-{number:06}") for number in range(node_count)]
        self.spent_s = 0.0
        self.beats = 0
        self.failed = 0
        self._sim = sim
        self._rng = random.Random(2)

    async def all_served(self) -> None:
        """Until every agent has its complete set."""
        for line in self.lines:
            await line.served.wait()

    def heard(self, line: Line, message: ToAgent) -> None:
        line.welcomed |= isinstance(message, Welcome)
        if not isinstance(message, Assign):
            return
        line.sequence, line.digest = message.sequence, message.digest
        line.served.set()
        line.push(encode(Applied(sequence=message.sequence)))
        updates = []
        for task in message.tasks:
            if task.desired_state is TaskState.RUNNING and task.status.state < TaskState.RUNNING:
                updates.append((task.id, TaskState.RUNNING))
            elif task.desired_state > TaskState.COMPLETE and task.status.state <= TaskState.RUNNING:
                updates.append((task.id, TaskState.SHUTDOWN))
        self.report(line, updates)

    def report(self, line: Line, updates: Iterable[tuple[str, TaskState]]) -> None:
        said = tuple(
            TaskStatusUpdate(task_id=id, status=TaskStatus(state=state)) for id, state in updates
        )
        if said:
            line.reports += 1
            line.push(encode(StatusReport(number=line.reports, updates=said)))

    async def live(self, fails_per_s: float) -> None:
        """Beat and fail, evenly spread."""
        step_s, due, failing = 0.02, 0.0, 0.0
        turn, last = itertools.cycle(self.lines), time.perf_counter()
        while True:
            begin = time.perf_counter()
            passed, last = begin - last, begin
            due += len(self.lines) / HEARTBEAT_S * passed
            while due >= 1:
                line = next(turn)
                due -= 1
                if line.welcomed:
                    line.push(encode(Heartbeat(sequence=line.sequence, digest=line.digest)))
                    self.beats += 1
            failing += fails_per_s * passed
            while failing >= 1:
                failing -= 1
                self._fail_one()
            self.spent_s += time.perf_counter() - begin
            await asyncio.sleep(step_s - (time.perf_counter() - begin))

    def _fail_one(self) -> None:
        line = self._rng.choice(self.lines)
        for task in self._sim.store.view().find(Task, node_id=line.node_id):
            if task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING:
                self.report(line, [(task.id, TaskState.FAILED)])
                self.failed += 1
                return


async def steady(case: str, agents: int, services: int, replicas: int, seconds: float) -> list[Row]:
    sim = await settled(agents, services, replicas)
    cluster = Cluster(
        id="cluster",
        spec=ClusterSpec(
            name="default", dispatcher=DispatcherConfig(heartbeat_period=int(HEARTBEAT_S * SECOND))
        ),
        root_ca=RootCA(certificate="", key="", join_token_worker="", join_token_manager=""),
    )
    await sim.store.update(lambda tx: tx.put(cluster))
    dispatcher = Dispatcher(sim.store, sim.clock, sim.rng)
    herd = Herd(sim, agents)
    rows = []
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(dispatcher.run()),
            group.create_task(leader.lead(sim.store, sim.loops(), sim.clock)),
            group.create_task(sim.watch_lag()),
        ]
        meter = Meter()
        for line in herd.lines:
            stored = sim.store.view().get(Node, line.node_id)
            assert stored is not None
            described = stored.description
            hello = Hello(description=described, address="10.0.0.1")
            line.push(encode(hello))
            tasks.append(group.create_task(dispatcher.serve(line.node_id, line)))
        tasks.append(group.create_task(herd.live(services * replicas / 100 / 60)))
        await herd.all_served()
        note = f"all at once; {late(sim)}"
        rows.append(Row(case, f"{agents} agents register", meter.read(), agents, note))
        await asyncio.sleep(5.0)
        sim.lags.clear()
        herd.spent_s, herd.beats, herd.failed, meter = 0.0, 0, 0, Meter()
        await asyncio.sleep(seconds)
        cost = meter.read()
        share = (cost.cpu_s - herd.spent_s) / cost.wall_s
        note = (
            f"CPU share of the manager {share:.0%}; {herd.beats / cost.wall_s:.0f} beats/s,"
            f" {herd.failed} of {services * replicas} tasks failed; {late(sim)}"
        )
        rows.append(Row(case, f"steady, {agents} agents", cost, herd.failed, note))
        for task in tasks:
            task.cancel()
    return rows
