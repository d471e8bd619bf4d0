"""A snapshot that is being received, chunk by chunk."""

import zlib

from manager.raft.message import ProtocolError, SnapshotChunk, SnapshotMeta


class Incoming:
    """Puts the chunks of one snapshot together; a chunk out of place is asked for again."""

    def __init__(self, meta: SnapshotMeta) -> None:
        self.meta = meta
        self._data = bytearray()

    @property
    def wanted(self) -> int:
        """The offset of the next chunk."""
        return len(self._data)

    @property
    def complete(self) -> bool:
        return len(self._data) == self.meta.size

    def add(self, chunk: SnapshotChunk) -> None:
        """Take in `chunk` if it is the next one. Raises ProtocolError if it overruns the end."""
        if chunk.offset != self.wanted:
            return
        if self.wanted + len(chunk.data) > self.meta.size:
            raise ProtocolError(f"snapshot {self.meta.index} is longer than announced")
        self._data += chunk.data

    def data(self) -> bytes:
        """The whole. Raises ProtocolError if it is not what the leader announced."""
        if zlib.crc32(self._data) != self.meta.crc:
            raise ProtocolError(f"snapshot {self.meta.index} arrived damaged")
        return bytes(self._data)
