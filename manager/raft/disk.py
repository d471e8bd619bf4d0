"""What the driver asks of a disk, and the real one: log segments and snapshot files in a folder.

    log-0000000000000001.wal  log-0000000000000002.wal …     wal.py says what is in them
    snapshot-<index>-<term>                                  snapshot_file.py says what is in them
    keyring                                                  keyring.py; or elsewhere
    *.tmp                                  spare segments, or never finished; removed at start
    lock                                                     held while the folder is in use

Files are made under another name, synced, renamed, and the folder synced; so a file with its
right name is complete. Files are readable by their owner only.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from common.errors import Conflict, Unavailable
from manager.raft.errors import DiskFailed, LogDamaged, SnapshotGone
from manager.raft.keyring import Keyring
from manager.raft.lane import Lane
from manager.raft.machine import Restoring
from manager.raft.message import Entry, HardState, SnapshotMeta
from manager.raft.segments import Segments
from manager.raft.snapshot_folder import SnapshotFolder
from manager.raft.wal import (
    Record,
    Replay,
    after_snapshot,
    entry_record,
    snapshot_record,
    state_record,
)

SEGMENT_BYTES = 4 << 20
_PIECE_BYTES = 16 << 10  # of a state, taken in at once
_WORK_S = 0.001
_PAUSE_S = 0.0002

_T = TypeVar("_T")


class Stored(msgspec.Struct, frozen=True):
    """What a disk holds: a snapshot perhaps, the entries after it, and the hard state."""

    hard_state: HardState = HardState()
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None

    @property
    def is_empty(self) -> bool:
        return self.snapshot is None and not self.entries and self.hard_state == HardState()


class Disk(Protocol):
    """Where one member keeps its log. All but `receive` is durable on return; DiskFailed ends it.

    Calls to `write`, `receive`, `discard_received` and `install` do not overlap; the others may
    come at any time.
    """

    async def load(self) -> Stored:
        """What was stored. Raises LogDamaged."""
        ...

    async def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Append. The first of `entries` replaces any of its index, and all behind it."""
        ...

    async def save_snapshot(
        self, meta: SnapshotMeta, pieces: Iterator[bytes], pinned: Collection[SnapshotMeta] = ()
    ) -> SnapshotMeta:
        """Keep our own snapshot, whose state is `pieces`; `meta` with their size and CRC.

        Entries up to its index may be forgotten, and snapshots but the newest and those `pinned`.
        `pieces` may be asked for in another thread.
        """
        ...

    async def feed_snapshot(self, meta: SnapshotMeta, restoring: Restoring) -> None:
        """Give the state of a snapshot to `restoring`, perhaps in another thread, and end it.

        Raises LogDamaged, and what `restoring` raises.
        """
        ...

    async def read_snapshot(self, meta: SnapshotMeta, offset: int, length: int) -> bytes:
        """A part of a kept snapshot. Raises SnapshotGone if it was replaced, or LogDamaged."""
        ...

    async def receive(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Write the next part of a snapshot from the leader; one at offset 0 begins another."""
        ...

    async def discard_received(self) -> None:
        """Remove what was received since, if it was not installed."""
        ...

    async def install(self, meta: SnapshotMeta) -> None:
        """Keep the snapshot that was received; it replaces the log up to its index."""
        ...

    async def close(self) -> None: ...


class FileDisk:
    """A folder of a real disk."""

    def __init__(
        self,
        folder: Path,
        member_id: str,
        *,
        keyring: Keyring | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Without a `keyring` there is one in the folder, not locked."""
        self._folder = folder
        self.keyring = keyring or Keyring(folder / "keyring")
        self._segments = Segments(folder, member_id, segment_bytes, self.keyring)
        self._snapshots = SnapshotFolder(folder, self.keyring)
        self._lock = -1
        self._closing = False
        # Threads of our own: a sync must not queue behind the daemon's other blocking work, nor a
        # chunk for a follower behind a snapshot that takes seconds.
        self._log_thread = Lane("raft-log")
        self._state_thread = ThreadPoolExecutor(1, "raft-state")
        self._chunk_thread = ThreadPoolExecutor(1, "raft-chunks")

    async def load(self) -> Stored:
        return await self._run(self._log_thread, self._load)

    async def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        await self._run(self._log_thread, lambda: self._write(hard_state, entries))

    async def save_snapshot(
        self, meta: SnapshotMeta, pieces: Iterator[bytes], pinned: Collection[SnapshotMeta] = ()
    ) -> SnapshotMeta:
        breathe = self._breather()
        saved = await self._run(
            self._state_thread, lambda: self._snapshots.save(meta, pieces, breathe)
        )
        await self._prune(meta, pinned)
        return saved

    async def feed_snapshot(self, meta: SnapshotMeta, restoring: Restoring) -> None:
        def feed() -> None:
            breathe = self._breather()
            self._snapshots.feed(meta, restoring.add, breathe, _PIECE_BYTES)
            for _ in restoring.end():
                breathe()

        await self._run(self._state_thread, feed)

    async def read_snapshot(self, meta: SnapshotMeta, offset: int, length: int) -> bytes:
        part = await self._run(
            self._chunk_thread, lambda: self._snapshots.read(meta, offset, length)
        )
        if part is None:
            raise SnapshotGone(f"the snapshot of entry {meta.index} was replaced")
        return part

    async def receive(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        await self._run(self._chunk_thread, lambda: self._snapshots.receive(meta, offset, data))

    async def discard_received(self) -> None:
        await self._run(self._chunk_thread, self._snapshots.discard_received)

    async def install(self, meta: SnapshotMeta) -> None:
        await self._run(self._chunk_thread, lambda: self._snapshots.install(meta))
        record = snapshot_record(meta.index, meta.term)
        await self._run(self._log_thread, lambda: self._segments.append([record]))
        await self._prune(meta, ())

    async def rotate_key(self) -> None:
        """Seal with another data key from now on; the one before goes when no file needs it.

        May be called at any time. Raises Unavailable once the log is closed.
        """
        if self._closing:
            raise Unavailable("this manager has stopped")
        await self._run(self._log_thread, self._rotate_key)

    async def close(self) -> None:
        self._closing = True
        await asyncio.to_thread(self._close)

    async def _prune(self, meta: SnapshotMeta, pinned: Collection[SnapshotMeta]) -> None:
        def prune() -> None:
            self._snapshots.prune(pinned)
            self._segments.follow_key()  # a segment is removed only when there is a later one
            self._segments.prune(meta.index)
            self.keyring.drop_unused()

        await self._run(self._log_thread, prune)

    def _breather(self) -> Callable[[], None]:
        """To be called often by what takes long: lets the loop have its turn, and ends with us.

        The interpreter runs one thread at a time and takes it away from one that computes only
        after 5 ms; so whoever computes for seconds must pause by itself.
        """
        began = time.monotonic()

        def breathe() -> None:
            nonlocal began
            if self._closing:
                raise DiskFailed("the Raft log is being closed")
            if time.monotonic() - began > _WORK_S:
                time.sleep(_PAUSE_S)
                began = time.monotonic()

        return breathe

    async def _run(self, thread: Executor, function: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, function)
        except OSError as error:
            # Not tried again: after a failed sync nobody knows what is on the disk.
            raise DiskFailed(
                f"the Raft log in {self._folder} cannot be used: {error.strerror or error}; this "
                "manager stops. Make room or replace the disk, then start it again"
            ) from error

    def _load(self) -> Stored:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        for leftover in self._folder.glob("*.tmp"):
            leftover.unlink()
        self.keyring.load()
        snapshot = self._snapshots.newest()
        replay = Replay()
        path = self._segments.load(replay, snapshot.index if snapshot else 0)
        if snapshot is None:
            stored = self._from_log(path, replay)
        else:
            stored = self._after_snapshot(path, replay, snapshot)
        self._check_commit(path, stored)
        return stored

    def _check_commit(self, path: Path, stored: Stored) -> None:
        """What was committed when the hard state was written was on this disk, and must still be.

        So also the loss of several files is noticed: of segments and the snapshot that held all
        that was in them.
        """
        last = stored.entries[-1].index if stored.entries else 0
        last = max(last, stored.snapshot.index if stored.snapshot else 0)
        if stored.hard_state.commit > last:
            what = f"entries {last + 1} to {stored.hard_state.commit} are missing"
            raise LogDamaged(path, 0, what)

    def _from_log(self, path: Path, replay: Replay) -> Stored:
        if replay.floor[0]:
            raise LogDamaged(path, 0, f"the snapshot of entry {replay.floor[0]} is missing")
        if replay.entries and replay.entries[0].index != 1:
            first = replay.entries[0].index
            raise LogDamaged(path, 0, f"it starts at entry {first} and there is no snapshot")
        return Stored(replay.hard_state, tuple(replay.entries))

    def _after_snapshot(self, path: Path, replay: Replay, meta: SnapshotMeta) -> Stored:
        if replay.floor[0] > meta.index:
            raise LogDamaged(path, 0, f"the snapshot of entry {replay.floor[0]} is missing")
        entries = after_snapshot(replay.entries, meta.index, meta.term)
        if entries and entries[0].index != meta.index + 1:
            what = f"it goes on at entry {entries[0].index} after the snapshot of {meta.index}"
            raise LogDamaged(path, 0, what)
        last = (
            (replay.entries[-1].index, replay.entries[-1].term) if replay.entries else replay.floor
        )
        if last[0] and not entries and last != (meta.index, meta.term):
            # A crash came between `install`'s two steps: finish it, for what follows must fit.
            self._segments.append([snapshot_record(meta.index, meta.term)])
        return Stored(replay.hard_state, tuple(entries), meta)

    def _write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        records: list[Record] = [state_record(hard_state)] if hard_state else []
        records += map(entry_record, entries)
        self._segments.append(records)

    def _rotate_key(self) -> None:
        self.keyring.rotate()
        self._segments.follow_key()

    def _take_lock(self) -> None:
        if self._lock >= 0:
            return
        self._lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"{self._folder} is in use by another daemon; stop that first"
            ) from error

    def _close(self) -> None:
        self._log_thread.shutdown()
        self._state_thread.shutdown(cancel_futures=True)
        self._chunk_thread.shutdown(cancel_futures=True)
        self._snapshots.discard_received()
        self._segments.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
