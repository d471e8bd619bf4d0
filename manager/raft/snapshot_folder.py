"""The snapshot files of one member: own ones, and one that is being received. Blocking.

Saving, reading and receiving may each have a thread of its own.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from manager.raft.errors import KeyMissing, LogDamaged, SealBroken
from manager.raft.keyring import Keyring
from manager.raft.message import SnapshotMeta
from manager.raft.snapshot_file import SnapshotReader, SnapshotWriter

_KEPT = 2  # the one before the newest may still be asked for


class SnapshotFolder:
    """Files named after index and term; `*.tmp` while they are not complete."""

    def __init__(self, folder: Path, keyring: Keyring) -> None:
        self._folder = folder
        self._keyring = keyring
        self._receiving: SnapshotWriter | None = None

    def newest(self) -> SnapshotMeta | None:
        """The newest snapshot; of its state only the length is checked.

        Raises LogDamaged, KeyMissing or SealBroken. What is wrong with older ones does not matter.
        """
        paths = self._paths()
        if not paths:
            return None
        for path in paths[:-1]:
            with (
                contextlib.suppress(LogDamaged, KeyMissing, SealBroken),
                SnapshotReader(path, self._keyring) as reader,
            ):
                self._keyring.found(path.name, reader.key_id)
        with SnapshotReader(paths[-1], self._keyring) as reader:
            self._keyring.found(paths[-1].name, reader.key_id)
            if self._path(reader.meta) != paths[-1]:
                raise LogDamaged(paths[-1], 0, f"it is that of entry {reader.meta.index}")
            return reader.meta

    def save(
        self, meta: SnapshotMeta, pieces: Iterable[bytes], breathe: Callable[[], None]
    ) -> SnapshotMeta:
        """Keep a snapshot of `pieces`; it with size and CRC. Calls `breathe` between them."""
        path = self._path(meta)
        writer = SnapshotWriter(path.with_name(path.name + ".tmp"), meta, self._keyring)
        try:
            for piece in pieces:
                writer.add(piece)
                breathe()
            return writer.finish(path)
        except BaseException:
            with contextlib.suppress(OSError):
                writer.abandon()
            raise

    def prune(self, pinned: Collection[SnapshotMeta]) -> None:
        """Remove all but the newest two and those `pinned`.

        Of the two the older as well, if it is under an older key than the newest: that can go then.
        """
        kept = {self._path(meta) for meta in pinned}
        paths = self._paths()
        renewed = bool(paths) and self._keyring.is_current(paths[-1].name)
        for age, path in enumerate(reversed(paths[:-1]), 2):
            stays = age <= _KEPT and (self._keyring.is_current(path.name) or not renewed)
            if path not in kept and not stays:
                path.unlink(missing_ok=True)
                self._keyring.forget(path.name)

    def read(self, meta: SnapshotMeta, offset: int, length: int) -> bytes | None:
        """Part of the state's bytes; None if the snapshot is gone. Raises LogDamaged.

        So it does where the disk cannot read a sector: nothing else needs that one.
        """
        try:
            with self._open(meta) as reader:
                return reader.read(offset, length) if reader.meta == meta else None
        except FileNotFoundError:
            return None
        except OSError as error:
            what = f"it cannot be read: {error.strerror or error}"
            raise LogDamaged(self._path(meta), offset, what) from error

    def feed(
        self,
        meta: SnapshotMeta,
        take: Callable[[memoryview], None],
        breathe: Callable[[], None],
        piece_bytes: int,
    ) -> None:
        """Give all of the state to `take`. Raises LogDamaged."""
        with self._open(meta) as reader:
            for frame in reader.pieces():
                view = memoryview(frame)
                for begin in range(0, len(view), piece_bytes):
                    take(view[begin : begin + piece_bytes])
                    breathe()

    def receive(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Write the next part of a snapshot from the leader; at offset 0 begins another."""
        if offset == 0:
            self.discard_received()
            temporary = self._folder / "snapshot-received.tmp"
            self._receiving = SnapshotWriter(temporary, meta, self._keyring)
        assert self._receiving
        assert self._receiving.size == offset, "the core takes chunks in order"
        self._receiving.add(data)

    def discard_received(self) -> None:
        """Remove what was received, if it is not complete."""
        if self._receiving:
            self._receiving.abandon()
            self._receiving = None

    def install(self, meta: SnapshotMeta) -> None:
        """What was received is complete: keep it."""
        assert self._receiving
        done = self._receiving.finish(self._path(meta))
        self._receiving = None
        assert done == meta, "the core has checked size and CRC"

    def _open(self, meta: SnapshotMeta) -> SnapshotReader:
        return SnapshotReader(self._path(meta), self._keyring)

    def _path(self, meta: SnapshotMeta) -> Path:
        return self._folder / f"snapshot-{meta.index:016x}-{meta.term:016x}"

    def _paths(self) -> list[Path]:
        found = self._folder.glob("snapshot-*")
        return sorted(path for path in found if path.suffix != ".tmp")
