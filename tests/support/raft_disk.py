"""A disk in memory that takes time, loses what was not synced, and can break."""

import asyncio
import random
import zlib
from collections.abc import Collection, Iterator, Sequence

import msgspec

from manager.raft.disk import Stored
from manager.raft.errors import DiskFailed, SnapshotGone
from manager.raft.machine import Restoring
from manager.raft.message import Entry, HardState, SnapshotMeta
from manager.raft.wal import after_snapshot

FED = 64  # bytes of a state that a machine gets at once


class Kept(msgspec.Struct, frozen=True):
    """A snapshot on a platter."""

    meta: SnapshotMeta
    data: bytes


class Platter:
    """What survives a crash."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.entries: list[Entry] = []
        self.snapshots: list[Kept] = []

    def put(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        self.hard_state = hard_state or self.hard_state
        for entry in entries:
            if self.entries and entry.index <= self.entries[-1].index:
                del self.entries[max(entry.index - self.entries[0].index, 0) :]
            last = self.entries[-1].index if self.entries else 0
            assert not last or entry.index == last + 1, f"a gap on disk: {last}, {entry.index}"
            self.entries.append(entry)

    def keep(self, snapshot: Kept, pinned: Collection[SnapshotMeta] = ()) -> None:
        self.snapshots = [*self.snapshots, snapshot]
        self.snapshots.sort(key=lambda kept: kept.meta.index)
        self.snapshots[:-2] = [kept for kept in self.snapshots[:-2] if kept.meta in pinned]

    def drop_before(self, meta: SnapshotMeta) -> None:
        self.entries = after_snapshot(self.entries, meta.index, meta.term)

    def stored(self) -> Stored:
        newest = self.snapshots[-1].meta if self.snapshots else None
        entries = self.entries
        if newest:
            entries = after_snapshot(entries, newest.index, newest.term)
            assert not entries or entries[0].index == newest.index + 1, "a gap on disk"
        return Stored(self.hard_state, tuple(entries), newest)


class FakeDisk:
    """One run of a member on its platter; `crash` ends it.

    `syncs_votes=False` is a disk that answers for a vote it has only cached: a crash before
    the next entries are written loses it.
    """

    def __init__(self, platter: Platter, rng: random.Random, *, syncs_votes: bool = True) -> None:
        self.platter = platter
        self.slowness_s = 0.0
        self.broken = False
        self.running = asyncio.Event()  # clear while the process is paused
        self.running.set()
        self.written: list[Entry] = []  # drained by the checker
        self._rng = rng
        self._syncs_votes = syncs_votes
        self._cached: HardState | None = None
        self._flying: tuple[HardState | None, Sequence[Entry]] | None = None
        self._crashed = False
        self._receiving: tuple[SnapshotMeta, bytearray] | None = None

    async def load(self) -> Stored:
        if self.platter.snapshots:
            self.platter.drop_before(self.platter.snapshots[-1].meta)
        return self.platter.stored()

    async def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        self._flying = (hard_state, entries)
        await self._sync()
        self._flying = None
        if hard_state and not entries and not self._syncs_votes:
            self._cached = hard_state
            return
        self.platter.put(hard_state or self._cached, entries)
        self._cached = None
        self.written.extend(entries)

    async def save_snapshot(
        self, meta: SnapshotMeta, pieces: Iterator[bytes], pinned: Collection[SnapshotMeta] = ()
    ) -> SnapshotMeta:
        data = bytearray()
        for piece in pieces:
            data += piece
            await asyncio.sleep(0 if data else 0.002)  # more is applied meanwhile
        meta = msgspec.structs.replace(meta, size=len(data), crc=zlib.crc32(data))
        await self._sync()
        self.platter.keep(Kept(meta, bytes(data)), pinned)
        if self._rng.getrandbits(1):
            self.platter.drop_before(meta)
        return meta

    async def feed_snapshot(self, meta: SnapshotMeta, restoring: Restoring) -> None:
        data = self._kept(meta)
        for begin in range(0, len(data), FED):
            await self._take_time(0.0005)
            restoring.add(data[begin : begin + FED])
        for _ in restoring.end():
            await self._take_time(0.0005)

    async def read_snapshot(self, meta: SnapshotMeta, offset: int, length: int) -> bytes:
        await self._sync()
        return self._kept(meta)[offset : offset + length]

    def _kept(self, meta: SnapshotMeta) -> bytes:
        for kept in self.platter.snapshots:
            if kept.meta == meta:
                return kept.data
        raise SnapshotGone("replaced")

    async def receive(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        await self._take_time(0.001)
        if offset == 0:
            self._receiving = (meta, bytearray())
        assert self._receiving
        known, received = self._receiving
        assert (known, len(received)) == (meta, offset), "a part out of place"
        received += data

    async def discard_received(self) -> None:
        self._receiving = None

    async def install(self, meta: SnapshotMeta) -> None:
        assert self._receiving
        known, received = self._receiving
        assert known == meta
        assert (len(received), zlib.crc32(received)) == (meta.size, meta.crc), "not what was sent"
        self._receiving = None
        await self._sync()
        self.platter.keep(Kept(meta, bytes(received)))
        await self._sync()
        self.platter.drop_before(meta)

    async def close(self) -> None:
        pass

    def crash(self) -> None:
        """Power fails: of the write on its way any first part may have reached the platter."""
        self._crashed = True
        if self._flying:
            hard_state, entries = self._flying
            kept = self._rng.randrange(len(entries) + 2)
            if kept and (entries or self._syncs_votes):
                self.platter.put(hard_state, entries[: kept - 1])

    async def _take_time(self, most_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(0, most_s))
        await self.running.wait()

    async def _sync(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0005, 0.01) + self.slowness_s)
        await self.running.wait()
        if self._crashed:
            await asyncio.Event().wait()  # the process is gone; nothing of it goes on
        if self.broken:
            raise DiskFailed("no space left on device")
