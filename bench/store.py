"""What the store costs as it grows: `python -m bench.store`. No log and no disk.

Each line: with so many services and three tasks of each, the microseconds of one `update` of one
service (its transaction, its entry made and applied), of an `update` of 250 per object, of a
`get`, of a `find` of three tasks by service, and of one commit seen by 1,000 watchers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import uvloop

from common.clock import SystemClock
from common.model.service import Service, ServiceSpec
from common.model.task import Task, TaskState, TaskStatus
from manager.store.store import Store, Tx, Watcher

SIZES = (100, 10_000, 100_000)
TASKS = 3
ROUNDS = 300
GROUP = 250
WATCHERS = 1_000


class Loopback:
    """A log that has every entry at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def propose(self, data: bytes) -> int:
        index = self._store.version + 1
        self._store.apply(index, data)
        return index

    async def confirm(self) -> None:
        """It leads for ever."""


def put(tx: Tx, number: int, payload: str) -> None:
    name = f"service-{number}"
    spec = ServiceSpec(name=name, labels={"payload": payload})
    old = tx.get(Service, name)
    fresh = Service(id=name, spec=spec)
    tx.put(fresh if old is None else msgspec.structs.replace(old, spec=spec))


def put_tasks(tx: Tx, number: int) -> None:
    for slot in range(1, TASKS + 1):
        tx.put(
            Task(
                id=f"task-{number}-{slot}",
                service_id=f"service-{number}",
                slot=slot,
                spec=ServiceSpec(name="").task_template,
                status=TaskStatus(state=TaskState.NEW),
                desired_state=TaskState.RUNNING,
            )
        )


async def filled(size: int) -> Store:
    store = Store(SystemClock())
    store.lead(Loopback(store))
    for first in range(0, size, 100):

        def change(tx: Tx, first: int = first) -> None:
            for number in range(first, first + 100):
                put(tx, number, "first")
                put_tasks(tx, number)

        await store.update(change)
    return store


async def timed(do: Callable[[int], Awaitable[object]], rounds: int, each: int = 1) -> float:
    """Microseconds of one, the best of three tries."""
    best = float("inf")
    for attempt in range(3):
        began = time.perf_counter()
        for count in range(rounds):
            await do(attempt * rounds + count)
        best = min(best, time.perf_counter() - began)
    return best / rounds / each * 1e6


async def measure(size: int) -> list[float]:
    store = await filled(size)

    def place(count: int) -> int:
        return count * 7919 % size

    async def update(count: int) -> None:
        await store.update(lambda tx: put(tx, place(count), f"{count}"))

    async def update_group(count: int) -> None:
        def change(tx: Tx) -> None:
            for number in range(GROUP):
                put(tx, place(count * GROUP + number), f"{count} {number}")

        await store.update(change)

    async def get(count: int) -> None:
        store.view().get(Service, f"service-{place(count)}")

    async def find(count: int) -> None:
        found = store.view().find(Task, service_id=f"service-{place(count)}")
        assert len(found) == TASKS

    return [
        await timed(update, ROUNDS),
        await timed(update_group, 4, GROUP),
        await timed(get, ROUNDS),
        await timed(find, ROUNDS),
        await _fan_out(store, update),
    ]


async def _fan_out(store: Store, update: Callable[[int], Awaitable[None]]) -> float:
    """Microseconds from a write to the last of all watchers having it, above the write's own."""
    seen = 0
    all_seen = asyncio.Event()

    async def follow(watcher: Watcher) -> None:
        nonlocal seen
        while await watcher.next():
            seen += 1
            if seen == WATCHERS:
                all_seen.set()

    async def write(count: int) -> None:
        nonlocal seen
        seen = 0
        all_seen.clear()
        await update(count + 1_000_000)
        await all_seen.wait()

    async with asyncio.TaskGroup() as group:
        watchers = [store.watch() for _ in range(WATCHERS)]
        tasks = [group.create_task(follow(watcher)) for watcher in watchers]
        await asyncio.sleep(0)
        cost = await timed(write, 20)
        for task in tasks:
            task.cancel()
    for watcher in watchers:
        watcher.close()
    return cost


async def _run() -> None:
    heads = ("update", "of 250, each", "get", "find of 3", "1,000 watchers")
    print(f"{'services':>9}" + "".join(f"{head:>16}" for head in heads))
    for size in SIZES:
        costs = await measure(size)
        print(f"{size:>9}" + "".join(f"{cost:>13.1f} us" for cost in costs), flush=True)


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run())


if __name__ == "__main__":
    main()
