"""The cases of `bench.scale` about placing many tasks.

Each is measured three times:

    decide    only the scheduler's decisions: which node for each task, entered in its books
    schedule  PENDING to ASSIGNED through the store, the scheduler's loop alone
              (what SwarmKit's own benchmark measures, but there nothing is encoded for a log)
    create    from the API's "create service" to the last task ASSIGNED, all of the leader's loops
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from bench.scale_cluster import (
    CHUNK,
    Cost,
    Counter,
    Meter,
    Sim,
    assigned,
    nodes,
    pending,
    percentile,
    spec,
    template,
)
from common.model.service import Service
from common.model.task import Task, TaskSpec
from manager.scheduler.kept import Choices
from manager.scheduler.nodeset import NodeSet
from manager.scheduler.placement import place
from manager.scheduler.scheduler import Scheduler


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    case: str
    what: str
    cost: Cost
    tasks: int
    note: str = ""


class Load(msgspec.Struct, frozen=True):
    """So many services of so many tasks each, on so many nodes."""

    services: int
    replicas: int
    nodes: int
    template: Callable[[], TaskSpec] = template

    @property
    def tasks(self) -> int:
        return self.services * self.replicas


async def decide(case: str, load: Load) -> Row:
    books = NodeSet()
    for each in nodes(load.nodes):
        books.put_node(each)
    groups = [_group(load, number) for number in range(load.services)]
    sim = Sim()
    now = sim.clock.now()
    choices = Choices()
    meter = Meter()
    for group in groups:
        for first in range(0, len(group), CHUNK):
            _, refused = place(books, group[first : first + CHUNK], now, choices)
            assert not refused, refused
    return Row(case, "decide", meter.read(), load.tasks)


def _group(load: Load, number: int) -> list[Task]:
    service = Service(
        id=f"service-{number:06}", spec=spec(f"s{number}", load.replicas, load.template())
    )
    slots = range(1, load.replicas + 1)
    return [pending(service, slot, f"task-{number:06}-{slot:07}") for slot in slots]


async def schedule(case: str, load: Load) -> Row:
    sim = Sim()
    await sim.put_all(nodes(load.nodes))
    for first in range(0, load.services, CHUNK):
        numbers = range(first, min(first + CHUNK, load.services))
        specs = [spec(f"s{number}", load.replicas, load.template()) for number in numbers]
        made = [Service(id=f"service-{n:06}", spec=s) for n, s in zip(numbers, specs, strict=True)]
        await sim.put_all(made)
        for service in made:
            stored = sim.store.view().get(Service, service.id)
            assert stored is not None
            await sim.put_all(_pending_tasks(stored, load))
    counter = Counter(sim.store, assigned)
    cost = await sim.run_until([Scheduler()], lambda: counter.count() >= load.tasks, None)
    return Row(case, "schedule", cost, load.tasks, _note(sim))


def _pending_tasks(service: Service, load: Load) -> Iterable[Task]:
    slots = range(1, load.replicas + 1)
    return (pending(service, slot, f"{service.id}-{slot:07}") for slot in slots)


async def create(case: str, load: Load) -> Row:
    sim = Sim()
    await sim.put_all(nodes(load.nodes))
    counter = Counter(sim.store, assigned)
    wanted = load.template()
    specs = [spec(f"s{number}", load.replicas, wanted) for number in range(load.services)]

    async def begin() -> None:
        for first in range(0, len(specs), 100):
            await asyncio.gather(*map(sim.services.create, specs[first : first + 100]))

    cost = await sim.run_until(sim.loops(), lambda: counter.count() >= load.tasks, begin)
    return Row(case, "create", cost, load.tasks, _note(sim))


def _note(sim: Sim) -> str:
    worst = max(sim.lags, default=0.0)
    return (
        f"loop late p99 {percentile(sim.lags, 0.99) * 1000:.0f} ms, worst {worst * 1000:.0f};"
        f" largest entry {sim.log.largest >> 10} KiB"
    )


async def one_more(case: str, node_count: int, each: int, rounds: int) -> list[Row]:
    """One task after the other on a cluster whose nodes are full but for the last few."""
    rows = []
    for what, group in (("same service", True), ("new service each", False)):
        times, cost = _one_more(node_count, each, rounds, group)
        middle, worst = (percentile(times, share) * 1000 for share in (0.5, 0.99))
        note = f"p50 {middle:.3f} ms, p99 {worst:.3f} ms"
        rows.append(Row(case, f"decide, {what}", cost, rounds, note))
    return rows


def _one_more(node_count: int, each: int, rounds: int, same: bool) -> tuple[Sequence[float], Cost]:
    books, sim = NodeSet(), Sim()
    for one in nodes(node_count):
        books.put_node(one)
    now = sim.clock.now()
    full = Load(1, node_count * each - rounds, node_count, lambda: template(cpus=64 / each))
    group, choices = _group(full, 0), Choices()
    for first in range(0, len(group), CHUNK):
        place(books, group[first : first + CHUNK], now, choices)
    times = []
    meter = Meter()
    for number in range(rounds):
        task = _group(Load(1, 1, node_count, full.template), 0 if same else number + 1)[0]
        task = msgspec.structs.replace(task, id=f"more-{number}")
        begin = time.perf_counter()
        placed, refused = place(books, [task], now, choices)
        times.append(time.perf_counter() - begin)
        assert placed, refused
    return times, meter.read()
