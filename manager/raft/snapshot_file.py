"""Snapshot files. Blocking; used from one thread.

magic · length and CRC-32 of the meta data · meta data (MessagePack) · the state's bytes
"""

import contextlib
import os
import struct
import zlib
from pathlib import Path

import msgspec

from manager.raft import files
from manager.raft.errors import LogDamaged
from manager.raft.message import SnapshotMeta
from manager.raft.work import Install

_MAGIC = b"SHOALSNAPSHOT 1\n"
_HEAD = struct.Struct(">II")
_KEPT = 2  # the one before the newest may still be on its way to a follower


class Snapshots:
    """The snapshot files of one member."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> Install | None:
        """The newest snapshot. Raises LogDamaged."""
        paths = self._paths()
        return _load(paths[-1]) if paths else None

    def save(self, meta: SnapshotMeta, data: bytes) -> None:
        """Keep a snapshot, and remove all but the newest two."""
        encoded = msgspec.msgpack.encode(meta)
        head = _HEAD.pack(len(encoded), zlib.crc32(encoded))
        files.create(self._path(meta), (_MAGIC, head, encoded, data))
        for path in self._paths()[:-_KEPT]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def read(self, meta: SnapshotMeta, offset: int, length: int) -> bytes:
        """Part of the state's bytes. Raises FileNotFoundError."""
        handle = os.open(self._path(meta), os.O_RDONLY | os.O_CLOEXEC)
        try:
            begin = os.fstat(handle).st_size - meta.size
            return os.pread(handle, length, begin + offset)
        finally:
            os.close(handle)

    def _path(self, meta: SnapshotMeta) -> Path:
        return self._folder / f"snapshot-{meta.index:016x}-{meta.term:016x}"

    def _paths(self) -> list[Path]:
        found = self._folder.glob("snapshot-*")
        return sorted(path for path in found if path.suffix != ".tmp")


def _load(path: Path) -> Install:
    content = path.read_bytes()
    begin = len(_MAGIC) + _HEAD.size
    if content[: len(_MAGIC)] != _MAGIC or len(content) < begin:
        raise LogDamaged(path, 0, "not a snapshot, or of another version")
    size, crc = _HEAD.unpack_from(content, len(_MAGIC))
    encoded = content[begin : begin + size]
    if zlib.crc32(encoded) != crc:
        raise LogDamaged(path, begin, "the snapshot's description is not what was written")
    meta = msgspec.msgpack.decode(encoded, type=SnapshotMeta)
    data = content[begin + size :]
    if len(data) != meta.size or zlib.crc32(data) != meta.crc:
        raise LogDamaged(path, begin + size, "the state is not what was written")
    return Install(meta, data)
