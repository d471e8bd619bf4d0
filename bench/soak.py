"""Updates services again and again and shows that nothing grows: `python -m bench.soak`.

Real log, disk and store of one or more managers in this process, without a network: messages go
from one to the other on the loop. Each of 100 services is overwritten in turn and a task of each is
replaced, so that ids come and go. Every so many updates a line says what is held.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import uvloop

from bench.consensus_load import memory_mb
from common.clock import SystemClock
from common.model.service import Service, ServiceSpec
from common.model.task import Task, TaskState, TaskStatus
from manager.manager import Lead
from manager.raft.config import RaftConfig
from manager.raft.disk import SEGMENT_BYTES, FileDisk
from manager.raft.driver import Driver, bootstrap
from manager.raft.membership import AddLearner
from manager.raft.message import Member
from manager.store.store import Store, Tx

SERVICES = 100
WRITERS = 64
PAYLOAD = "x" * 256


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one manager holds after so many updates."""

    updates: int
    memory_mb: float  # of the process, after a collection
    disk_bytes: int
    disk_files: int
    snapshot_bytes: int
    log_entries: int
    log_bytes: int
    ring_commits: int
    ring_bytes: int
    objects: int
    tracked: int  # by the collector: what could leak


class _Wire:
    """A Network between drivers of one loop."""

    def __init__(self, drivers: dict[str, Driver]) -> None:
        self._drivers = drivers

    def send(self, member: Member, message: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._drivers[member.id].receive, message)


class Soak:
    """Managers in this process, the first of which leads."""

    def __init__(self, folder: Path, members: int, config: RaftConfig, segment_bytes: int) -> None:
        self._folder = folder
        self._members = [Member(f"m{n}", f"node{n}", f"host{n}:1") for n in range(members)]
        self._drivers: dict[str, Driver] = {}
        self._stores: dict[str, Store] = {}
        self._segment_bytes = segment_bytes
        for member in self._members:
            store = self._stores[member.id] = Store(SystemClock())
            self._drivers[member.id] = Driver(
                member_id=member.id,
                config=config,
                disk=self._disk(member.id),
                network=_Wire(self._drivers),
                machine=store,
                rng=random.Random(member.id),
            )

    def _disk(self, member_id: str) -> FileDisk:
        return FileDisk(self._folder / member_id, member_id, segment_bytes=self._segment_bytes)

    async def run(
        self, updates: int, step: int, writers: int = WRITERS
    ) -> AsyncIterator[list[Held]]:
        """What each holds, the leader first, after each `step` of `updates`."""
        disk = self._disk("m0")
        await bootstrap(disk, self._members[0])
        await disk.close()
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(driver.run()) for driver in self._drivers.values()]
            store = await self._lead()
            for done in range(0, updates, step):
                await self._update(store, done, done + step, writers)
                await self._caught_up(store.version)
                gc.collect()
                yield [self._held(member.id, done + step) for member in self._members]
            for task in running:
                task.cancel()

    async def _lead(self) -> Store:
        leader, store = self._drivers["m0"], self._stores["m0"]
        status = leader.status
        while not status.is_leader:
            status = await leader.wait_change(status)
        for member in self._members[1:]:
            await leader.change_members(AddLearner(member))
        await leader.read_barrier()
        store.lead(Lead(leader, leader.status.term))
        return store

    async def _update(self, store: Store, first: int, last: int, writers: int) -> None:
        numbers = iter(range(first, last))

        async def write() -> None:
            for number in numbers:
                await store.update(_change(number))

        async with asyncio.TaskGroup() as group:
            for _ in range(writers):
                group.create_task(write())

    async def _caught_up(self, version: int) -> None:
        while any(store.version < version for store in self._stores.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _held(self, member_id: str, updates: int) -> Held:
        log, store = self._drivers[member_id].raft.log, self._stores[member_id]
        files = _sizes(self._folder / member_id)
        return Held(
            updates=updates,
            memory_mb=memory_mb(os.getpid())[0],
            disk_bytes=sum(files.values()),
            disk_files=len(files),
            snapshot_bytes=max((files[name] for name in files if "snapshot" in name), default=0),
            log_entries=log.last_index - log.base_index,
            log_bytes=log.bytes,
            ring_commits=store.history[0],
            ring_bytes=store.history[1],
            objects=store.view().count(Service) + store.view().count(Task),
            tracked=len(gc.get_objects()),
        )


def _sizes(folder: Path) -> dict[str, int]:
    """Of the files that are still there when it is their turn."""
    sizes = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return sizes


def _change(number: int) -> Callable[[Tx], None]:
    """Overwrite one service, and put a new task in the place of its last one."""
    name = f"service-{number % SERVICES}"
    spec = ServiceSpec(name=name, labels={"payload": f"{number:09d}{PAYLOAD}"})

    def change(tx: Tx) -> None:
        tx.put(Service(id=name, spec=spec))
        for task in tx.find(Task, service_id=name):
            tx.delete(Task, task.id)
        tx.put(
            Task(
                id=f"task-{number}",
                service_id=name,
                slot=1,
                spec=spec.task_template,
                status=TaskStatus(state=TaskState.NEW),
                desired_state=TaskState.RUNNING,
            )
        )

    return change


async def _print(options: argparse.Namespace, folder: Path) -> None:
    soak = Soak(folder, options.members, RaftConfig(), SEGMENT_BYTES)
    print(
        f"{'updates':>8}{'memory MB':>11}{'disk MB':>9}{'files':>7}{'snapshot kB':>13}"
        f"{'log entries':>13}{'log kB':>8}{'ring':>6}{'objects':>9}{'tracked':>9}"
    )
    async for held in soak.run(options.updates, options.step):
        one = held[0]
        print(
            f"{one.updates:>8}{one.memory_mb:>11.1f}{one.disk_bytes / 1e6:>9.1f}"
            f"{one.disk_files:>7}{one.snapshot_bytes / 1e3:>13.1f}{one.log_entries:>13}"
            f"{one.log_bytes / 1e3:>8.0f}{one.ring_commits:>6}{one.objects:>9}{one.tracked:>9}"
        )
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--step", type=int, default=10_000, help="updates between two lines")
    parser.add_argument("--members", type=int, default=1)
    options = parser.parse_args()
    with (  # not in /tmp, which may be memory
        tempfile.TemporaryDirectory(prefix="shoal-soak-", dir="/var/tmp") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_print(options, Path(folder)))


if __name__ == "__main__":
    main()
