"""Snapshots that come from the leader, chunk by chunk, one at a time. Holds no more than what
waits for the disk: `take` hands it on, to be written to a file before it is answered.
"""

import zlib

import msgspec

from manager.raft.message import ProtocolError, SnapshotChunk, SnapshotMeta


class Part(msgspec.Struct, frozen=True):
    """To be written at `offset` of the file of a snapshot; 0 starts a new file."""

    meta: SnapshotMeta
    offset: int
    data: bytes


class Incoming:
    """Takes the chunks of a snapshot in order; what comes out of order is asked for again."""

    def __init__(self, size_max: int, waiting_max: int) -> None:
        """Sizes in bytes: of a snapshot, and of what may wait for the disk."""
        self.meta: SnapshotMeta | None = None
        self.wanted = 0  # the offset of the next chunk
        self.complete = False
        self._size_max = size_max
        self._waiting_max = waiting_max
        self._crc = 0
        self._parts: list[Part] = []
        self._waiting = 0
        self._discard = False

    def add(self, chunk: SnapshotChunk) -> None:
        """Take in `chunk` if it is the next one. A snapshot other than the last begins anew.

        Raises ProtocolError if it is not what the leader announced; then nothing of it is left.
        """
        meta, size = chunk.meta, len(chunk.data)
        if meta.size > self._size_max:
            raise ProtocolError(f"a snapshot of {meta.size} bytes is larger than we take")
        if meta != self.meta:
            self.drop()
            self.meta = meta
        if chunk.offset != self.wanted or self.complete or self._is_held_up(size):
            return
        if self.wanted + size > meta.size:
            self.drop()
            raise ProtocolError(f"snapshot {meta.index} is longer than announced")
        if size or not meta.size:
            self._take(Part(meta, chunk.offset, chunk.data))

    def _is_held_up(self, size: int) -> bool:
        return bool(self._parts) and self._waiting + size > self._waiting_max

    def _take(self, part: Part) -> None:
        self._parts.append(part)
        self._waiting += len(part.data)
        self._crc = zlib.crc32(part.data, self._crc)
        self.wanted += len(part.data)
        self.complete = self.wanted == part.meta.size
        if self.complete and self._crc != part.meta.crc:
            self.drop()
            raise ProtocolError(f"snapshot {part.meta.index} arrived damaged")

    def drop(self) -> None:
        """Forget the snapshot that is coming, if any; what is on disk of it is to be removed.

        One that was complete is not coming any more: what waits of it still has to be written.
        """
        if self.meta is None:
            return
        self._discard = self._discard or self.wanted > 0
        self._parts.clear()
        self._waiting = 0
        self.done()

    def done(self) -> None:
        """The snapshot has come: the next chunk begins another."""
        self.meta = None
        self.wanted = self._crc = 0
        self.complete = False

    @property
    def has_work(self) -> bool:
        return self._discard or bool(self._parts)

    def take(self) -> tuple[bool, tuple[Part, ...]]:
        """Whether to remove what was written so far, and what then is to be written."""
        taken = (self._discard, tuple(self._parts))
        self._discard = False
        self._parts.clear()
        self._waiting = 0
        return taken
