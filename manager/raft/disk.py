"""What the driver asks of a disk, and the real one: log segments and snapshot files in a folder.

    log-0000000000000001.wal  log-0000000000000002.wal …     wal.py says what is in them
    snapshot-<index>-<term>                                  snapshot_file.py
    keyring                                                  keyring.py; or elsewhere
    *.tmp                                  spare segments, or never finished; removed at start
    lock                                                     held while the folder is in use

Files are made under another name, synced, renamed, and the folder synced; so a file with its
right name is complete. Files are readable by their owner only.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from common.errors import Conflict
from manager.raft.errors import DiskFailed, LogDamaged, SnapshotGone
from manager.raft.keyring import Keyring
from manager.raft.message import Entry, HardState, SnapshotMeta
from manager.raft.segments import Segments
from manager.raft.snapshot_file import Snapshots
from manager.raft.wal import (
    Record,
    Replay,
    after_snapshot,
    entry_record,
    snapshot_record,
    state_record,
)
from manager.raft.work import Install

SEGMENT_BYTES = 4 << 20

_T = TypeVar("_T")


class Stored(msgspec.Struct, frozen=True):
    """What a disk holds: a snapshot perhaps, the entries after it, and the hard state."""

    hard_state: HardState = HardState()
    entries: tuple[Entry, ...] = ()
    snapshot: Install | None = None

    @property
    def is_empty(self) -> bool:
        return self.snapshot is None and not self.entries and self.hard_state == HardState()


class Disk(Protocol):
    """Where one member keeps its log. Everything is durable on return; DiskFailed ends it.

    Calls to `write` and `install` do not overlap; the others may come at any time.
    """

    async def load(self) -> Stored:
        """What was stored. Raises LogDamaged."""
        ...

    async def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Append. The first of `entries` replaces any of its index, and all behind it."""
        ...

    async def install(self, snapshot: Install) -> None:
        """Keep a snapshot from the leader; it replaces the log up to its index."""
        ...

    async def save_snapshot(self, snapshot: Install) -> None:
        """Keep our own snapshot; entries up to its index may be forgotten."""
        ...

    async def read_snapshot(self, meta: SnapshotMeta, offset: int, length: int) -> bytes:
        """A part of a kept snapshot. Raises SnapshotGone if it was replaced."""
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
        self._snapshots = Snapshots(folder)
        self._lock = -1
        # Threads of our own: a sync must not queue behind the daemon's other blocking work.
        self._log_thread = ThreadPoolExecutor(1, "raft-log")
        self._snapshot_thread = ThreadPoolExecutor(1, "raft-snapshot")

    async def load(self) -> Stored:
        return await self._run(self._log_thread, self._load)

    async def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        await self._run(self._log_thread, lambda: self._write(hard_state, entries))

    async def install(self, snapshot: Install) -> None:
        await self.save_snapshot(snapshot, prune=False)
        record = snapshot_record(snapshot.meta.index, snapshot.meta.term)
        await self._run(self._log_thread, lambda: self._segments.append([record]))
        await self._prune(snapshot.meta)

    async def save_snapshot(self, snapshot: Install, *, prune: bool = True) -> None:
        await self._run(
            self._snapshot_thread, lambda: self._snapshots.save(snapshot.meta, snapshot.data)
        )
        if prune:
            await self._prune(snapshot.meta)

    async def read_snapshot(self, meta: SnapshotMeta, offset: int, length: int) -> bytes:
        def read() -> bytes | None:
            try:
                return self._snapshots.read(meta, offset, length)
            except FileNotFoundError:
                return None

        part = await self._run(self._snapshot_thread, read)
        if part is None:
            raise SnapshotGone(f"the snapshot of entry {meta.index} was replaced")
        return part

    async def rotate_key(self) -> None:
        """Seal with another data key from now on; the one before goes when no file needs it."""
        await self._run(self._log_thread, self._rotate_key)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    async def _prune(self, meta: SnapshotMeta) -> None:
        await self._run(self._log_thread, lambda: self._forget(meta.index))

    async def _run(self, thread: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
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
        path = self._segments.load(replay)
        if snapshot is None:
            return self._from_log(path, replay)
        return self._after_snapshot(path, replay, snapshot)

    def _from_log(self, path: Path, replay: Replay) -> Stored:
        if replay.floor[0]:
            raise LogDamaged(path, 0, f"the snapshot of entry {replay.floor[0]} is missing")
        if replay.entries and replay.entries[0].index != 1:
            first = replay.entries[0].index
            raise LogDamaged(path, 0, f"it starts at entry {first} and there is no snapshot")
        return Stored(replay.hard_state, tuple(replay.entries))

    def _after_snapshot(self, path: Path, replay: Replay, snapshot: Install) -> Stored:
        meta = snapshot.meta
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
        return Stored(replay.hard_state, tuple(entries), snapshot)

    def _write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        records: list[Record] = [state_record(hard_state)] if hard_state else []
        records += map(entry_record, entries)
        self._segments.append(records)

    def _forget(self, index: int) -> None:
        self._segments.prune(index)
        self.keyring.drop_unused()

    def _rotate_key(self) -> None:
        self.keyring.rotate()
        self._segments.start_new()

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
        self._snapshot_thread.shutdown()
        self._segments.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
