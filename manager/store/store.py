"""All objects of the cluster, in memory, on every manager; the truth is the Raft log.

Committed entries arrive through `apply`, on every manager alike. Only the leader writes: a
transaction runs at once on the newest state *including* what is still on its way to the log (the
overlay), so that transactions pipeline instead of queuing behind round trips to the followers.
If one proposal fails, everything built upon it fails too, and the overlay is dropped.

    update(fn) ──► overlay ──► open batch ──► entry ──► proposer ──► log ──► apply ──► events
                               (shared by all that is ready)
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from common.clock import Clock
from common.model.base import Object
from manager.store import state
from manager.store.change import PROVISIONAL, Event, apply_change, decode_entry
from manager.store.pipeline import Pipeline, Proposer
from manager.store.tables import KINDS, Tables
from manager.store.view import Tx, View
from manager.store.watch import BYTES_MAX, COMMITS_MAX, EVENTS_MAX, Kinds, Resync, Ring, Watcher

__all__ = ["Event", "Proposer", "Resync", "Store", "Tx", "View", "Watcher"]

T = TypeVar("T")

_deterministic = msgspec.msgpack.Encoder(order="deterministic")


class Store:
    """The objects, as a state machine of the log and as a place to read, write and watch."""

    def __init__(
        self,
        clock: Clock,
        *,
        commits_max: int = COMMITS_MAX,
        events_max: int = EVENTS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._clock = clock
        self._tables = Tables()
        self._version = 0
        self._ring = Ring(commits_max, events_max, bytes_max)
        self._pipeline: Pipeline | None = None
        self._proposals: set[asyncio.Task[None]] = set()
        self._provisional = PROVISIONAL

    # Reading

    @property
    def version(self) -> int:
        """The Raft index of the last entry applied."""
        return self._version

    def view(self) -> View:
        """The committed state of this moment."""
        return View(self._tables, self._version)

    def watch(self, since: int | None = None, kinds: Kinds = None) -> Watcher:
        """What is committed from now on, or after version `since` (RAF 199), of objects of `kinds`.

        If that is not known, any more or yet, the first `next` raises Resync.
        """
        if since is not None and since > self._version:
            return self._ring.watch_lost(kinds)  # another manager was ahead; this one cannot tell
        return self._ring.watch(since, kinds)

    def view_and_watch(self) -> tuple[View, Watcher]:
        """A state and all that follows it, without a gap. Close the watcher (it is a context)."""
        return self.view(), self.watch()

    @property
    def history(self) -> tuple[int, int]:
        """How many commits are kept for those who watch, and the bytes of their entries."""
        return self._ring.size

    def digest(self) -> str:
        """The same on two managers if, and only if, they hold the same objects."""
        hashed = hashlib.sha256()
        for name, object in self._objects():
            hashed.update(_deterministic.encode((name, object)))
        return hashed.hexdigest()

    # Writing

    def lead(self, proposer: Proposer) -> None:
        """Accept writes and hand them to `proposer`, which must fence them by its term."""
        self.follow()
        self._pipeline = Pipeline(proposer, lambda: self._tables, self._proposals)

    def follow(self) -> None:
        """Refuse writes from now on. Those on their way get the answer of their proposer."""
        if self._pipeline is not None:
            self._pipeline.stop()
        self._pipeline = None

    async def wait_refused(self) -> None:
        """Until the writes that `lead` has begun are refused, so that only `lead` helps."""
        if self._pipeline is not None:
            await self._pipeline.wait_stopped()

    async def close(self) -> None:
        """Stop writing; what is under way ends with ProposalUncertain."""
        self.follow()
        for task in self._proposals:
            task.cancel()
        await asyncio.gather(*self._proposals, return_exceptions=True)

    async def update(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on the newest state, commit what it puts and deletes, return its result.

        `fn` is called once, at once, and must not wait. If it raises, or changes nothing,
        nothing is written. Returns, or raises what `fn` raised, when the changes, and those it
        built upon, are committed and applied here: nobody hears of what may never happen.
        Raises NotLeader (nothing was written) or ProposalUncertain.
        """
        if self._pipeline is None or self._pipeline.stopped:
            raise Pipeline.not_leader()
        pipeline = self._pipeline
        self._provisional += 1
        provisional = self._provisional
        tables = pipeline.newest().fork()
        tx = Tx(tables, self._version, self._clock.now(), provisional)
        try:
            result = fn(tx)
        except Exception:
            await pipeline.settled()
            raise
        await pipeline.commit(tx, tables, provisional)
        return result

    # The state machine of the log

    def apply(self, index: int, data: bytes) -> None:
        """Make the changes of the committed entry `index`. Raises BadEntry."""
        if index <= self._version:
            raise ValueError(f"entry {index} after entry {self._version}")
        own = None if self._pipeline is None else self._pipeline.changes_of(data)
        tables = self._tables.fork()
        events = [
            event
            for change in (decode_entry(data) if own is None else own)
            if (event := apply_change(tables, change, index)) is not None
        ]
        self._commit(index, tables, events, len(data))

    def snapshot(self) -> Iterator[bytes]:
        """The state of this moment, made piece by piece, in any thread, while writing goes on."""
        return state.pieces(self._tables)

    def restoring(self, index: int) -> "Restoring":
        """Begin to become a state that `snapshot` gave, here or on another manager."""
        before = self._tables if self._ring.watched else None
        return Restoring(before, lambda *state: self._become(index, *state))

    def _become(self, index: int, tables: Tables, events: list[Event] | None, size: int) -> None:
        if events is None and self._ring.watched:
            self._ring.restart()
        self._commit(index, tables, events or [], size)
        self._ring.begin(index)

    def _commit(self, index: int, tables: Tables, events: list[Event], size: int) -> None:
        self._tables = tables
        self._version = index
        if events:
            self._ring.push(index, events, size)

    def _objects(self) -> list[tuple[str, Object]]:
        return [
            (kind.name, object)
            for kind in KINDS
            for object in sorted(self._tables.table(kind.type).all(), key=_id)
        ]


class Restoring:
    """A state on its way into the store. `add` and `end` may run beside the loop."""

    def __init__(
        self,
        before: Tables | None,
        become: Callable[[Tables, list[Event] | None, int], None],
    ) -> None:
        """`before`: what the store holds until then, if somebody watches it."""
        self._before = before
        self._become = become
        self._decoder = state.Decoder()
        self._size = 0
        self._tables: Tables | None = None
        self._events: list[Event] | None = None

    def add(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes of the state. Raises BadEntry."""
        self._decoder.add(piece)
        self._size += len(piece)

    def end(self) -> Iterator[None]:
        """There is no more: make the tables, step by step. Raises BadEntry if more should come."""
        self._tables = yield from self._decoder.end()
        if self._before is not None:
            self._events = yield from state.difference(self._before, self._tables)

    def become(self) -> None:
        """Make it the state of the store.

        Watchers get exactly the differences to what was here before (RAF 198). If nobody watched
        at the beginning they were not looked for, and a watcher that came since has to
        resynchronise.
        """
        assert self._tables is not None, "`end` comes before"
        self._become(self._tables, self._events, self._size)


def _id(object: Object) -> str:
    return object.id
