"""A simulated cluster whose members hold real stores, written as a manager writes them.

Besides the rules of Raft it is checked all the time that stores of the same version are equal, and
that watchers, quick, slow and moving from member to member, hear of every change in order.
"""

import asyncio
import contextlib
import datetime as dt
import random
from collections.abc import Iterable
from typing import Any

from common.errors import Unavailable
from common.model.base import Object
from common.tasks import end, own
from manager.manager import Lead
from manager.raft.machine import StateMachine
from manager.store.change import PROVISIONAL, Event
from manager.store.store import Resync, Store, View
from manager.store.tables import KINDS
from tests.support.memory_proposer import LoopClock
from tests.support.raft_world import Checker, Process, World

DIGEST_EVERY = 8  # entries; a digest looks at every object
COMMITS_MAX = 24  # of a ring: slow watchers fall off its end now and then
RETRY_S = 0.5

Held = dict[tuple[type[Object], str], Object]


class StoreChecker(Checker):
    """Knows the digest of the store at some versions."""

    def __init__(self) -> None:
        super().__init__()
        self.compared = self.resynced = self.moved = 0
        self._digests: dict[int, str] = {}
        self._versions: dict[tuple[str, str], int] = {}

    def found(self, key: str, value: str, version: int) -> None:
        """A client read this; each value is written once, so it has one version."""
        known = self._versions.setdefault((key, value), version)
        same = not value or known == version
        self.require(same, f"{key} has {value} at the versions {known} and {version}")

    def holds(self, node: str, version: int, digest: str) -> None:
        known = self._digests.setdefault(version, digest)
        self.compared += known is not digest
        self.require(known == digest, f"stores differ: {node} at version {version}")


class WatchedStore(Store):
    """A store that shows the checker each state it takes on."""

    def __init__(self, member_id: str, checker: StoreChecker, rng: random.Random) -> None:
        start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=rng.uniform(0, 60))
        super().__init__(LoopClock(start), commits_max=COMMITS_MAX)
        self._member_id = member_id
        self._checker = checker
        self._taken = 0  # entries since the last digest

    def apply(self, index: int, data: bytes) -> None:
        super().apply(index, data)
        self._checker.applied(self._member_id, index, data, 0)

    def _commit(self, index: int, *rest: Any) -> None:
        super()._commit(index, *rest)
        if index % DIGEST_EVERY == 0:
            self.show()

    def show(self) -> None:
        """Compare this state with that of all others at this version."""
        self._checker.holds(self._member_id, self.version, self.digest())


class StoreWorld(World):
    """Each process leads its store while it leads the cluster, as `manager.Manager` does."""

    def __init__(self, seed: str, group: asyncio.TaskGroup, **rest: Any) -> None:
        self.seen = StoreChecker()
        super().__init__(seed, group, **rest)
        self._watching = random.Random(f"{seed}/watchers")

    def make_checker(self) -> Checker:
        return self.seen

    def make_machine(self, member_id: str) -> StateMachine:
        return WatchedStore(member_id, self.seen, self._watching)

    def start(self, member_id: str) -> Process:
        process = super().start(member_id)
        delays = [(0.0, 0.0), (0.05, 1.5)]
        process.around += [
            self.group.create_task(_follow_raft(process)),
            *(self.group.create_task(self._watch(process, *delay)) for delay in delays),
        ]
        return process

    def compare(self, member_ids: Iterable[str]) -> None:
        for member_id in member_ids:
            store = store_of(self.processes[member_id])
            store.show()
            for kind in KINDS:
                for object in store.view().find(kind.type):
                    self.checker.require(_is_stamped(object), f"a provisional version: {object}")

    # Watchers

    async def _watch(self, process: Process, least_s: float, most_s: float) -> None:
        """Follow the events of one member; as slow as that."""
        store = store_of(process)
        view, watcher = store.view_and_watch()
        with watcher:
            held = everything(view)
            while True:
                await asyncio.sleep(self._watching.uniform(least_s, most_s))
                await watcher.wait()
                try:
                    follow(held, watcher.take())
                except Resync:
                    self.seen.resynced += 1
                    held = everything(store.view())
                except Gap as gap:
                    self.checker.require(False, f"watch of {process.member.id}: {gap}")
                    return
                self._same(process, held)

    async def roam(self) -> None:
        """Watch one member for a while, then go on at another from the version reached."""
        held: Held = {}
        version = 0
        while True:
            await asyncio.sleep(self._watching.uniform(0.01, 0.4))
            processes = [process for process in self.alive if store_of(process).version]
            if not processes:
                continue
            process = self._watching.choice(processes)
            store = store_of(process)
            with store.watch(since=version) as watcher:
                for _ in range(self._watching.randrange(1, 4)):
                    try:
                        follow(held, watcher.take())
                    except Resync:
                        self.seen.resynced += 1
                        held, version = everything(store.view()), store.version
                    except Gap as gap:
                        what = f"watch of {process.member.id} since {version}: {gap}"
                        self.checker.require(False, what)
                        return
                    if store.version >= version:
                        version = store.version
                        self._same(process, held)
                        self.seen.moved += 1
                    await asyncio.sleep(self._watching.uniform(0.01, 0.2))

    def _same(self, process: Process, held: Held) -> None:
        there = everything(store_of(process).view())
        if held != there:
            differing = {key[1] for key in held.keys() | there if held.get(key) != there.get(key)}
            at = store_of(process).version
            what = f"lost events: {process.member.id} at version {at}: {sorted(differing)}"
            self.checker.require(False, what)


class Gap(Exception):
    """An event that cannot follow those before it."""


def follow(held: Held, events: Iterable[Event]) -> None:
    """Make the changes in `held`. Raises Gap."""
    for event in events:
        key = (type(event.object), event.object.id)
        known = held.get(key)
        if event.old != known or (event.action == "create") != (known is None):
            raise Gap(f"{event.action} of {key[1]} where {_version(known)} was known")
        if event.action == "remove":
            del held[key]
            continue
        if known is not None and _version(event.object) < _version(known):
            raise Gap(f"{key[1]} goes back to {_version(event.object)}")
        held[key] = event.object


def _version(object: Object | None) -> int:
    return object.version.index if object is not None else 0


def everything(view: View) -> Held:
    return {(kind.type, object.id): object for kind in KINDS for object in view.find(kind.type)}


def store_of(process: Process) -> WatchedStore:
    assert isinstance(process.machine, WatchedStore)
    return process.machine


def _is_stamped(object: Object) -> bool:
    spec_version = getattr(object, "spec_version", None)
    newest = max(object.version.index, spec_version.index if spec_version else 0)
    return 0 < newest < PROVISIONAL


# Leading, as in manager.Manager


async def _follow_raft(process: Process) -> None:
    driver = process.driver
    status = driver.status
    while True:
        if status.is_leader:
            await own(_lead_until_lost(process, status.term))
        now = driver.status
        status = await driver.wait_change(status) if now == status else now


async def _lead_until_lost(process: Process, term: int) -> None:
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(_lead(process, term))
        status = process.driver.status
        while status.is_leader and status.term == term:
            status = await process.driver.wait_change(status)
        await end(leading)


async def _lead(process: Process, term: int) -> None:
    """Lead, and begin anew when writes are refused while the cluster still follows."""
    store = store_of(process)
    while True:
        with contextlib.suppress(Unavailable):
            await process.driver.read_barrier()
            store.lead(Lead(process.driver, term))
            try:
                await store.wait_refused()
            finally:
                await store.close()
        await asyncio.sleep(RETRY_S)
