"""The format of a snapshot's file: written as a stream, read from any place. Blocking.

    magic
    length and CRC-32 of the description · the description (MessagePack)
    frames: length and CRC-32 of what is stored · what is stored
    size and CRC-32 of the state · a seal · CRC-32 of all that

Every frame holds `frame_bytes` of the state, but the last, which holds the rest; so the place of
a frame follows from its number. The CRCs of frames and end also cover the description, and a
frame's its number: nothing can be exchanged for a part of another file, or be missing at the end.

What is stored of a frame is sealed (sealing.py) with a key of the file's own, in which the frame
opens under its number only. The seal at the end holds nothing, and covers description, size and
CRC: so a file that was altered, or the keyring of another, is known before any frame is read.

Version 2 with an empty key id is not sealed, and has no seal at the end. Version 1 had the state's
bytes behind the description, in one piece. Both are still read.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from manager.raft import files
from manager.raft.errors import LogDamaged, SealBroken
from manager.raft.keyring import Keyring
from manager.raft.message import Configuration, SnapshotMeta
from manager.raft.sealing import OVERHEAD, DataKey, NotOpened, Sealer, new_salt

FRAME_BYTES = 256 << 10
_MAGIC = b"SHOALSNAPSHOT 2\n"
_MAGIC_1 = b"SHOALSNAPSHOT 1\n"
_HEAD = struct.Struct(">II")
_END = struct.Struct(">QI")
_CRC = struct.Struct(">I")
_NUMBER = struct.Struct(">QI")
_FRAME_CONTEXT = struct.Struct(">cQ")
_END_CONTEXT = b"E"
_DESCRIPTION_MAX = 1 << 20
_SYNC_BYTES = 8 << 20  # written between syncs, so that the log's own never wait for much


class _Description(msgspec.Struct, frozen=True, array_like=True):
    index: int
    term: int
    configuration: Configuration
    frame_bytes: int
    key_id: str = ""  # of the data key; "": not sealed
    salt: bytes = b""

    def sealer(self, key: DataKey) -> Sealer:
        return Sealer.of(key, self.salt, f"shoal snapshot {self.index} {self.term}")


class SnapshotWriter:
    """A snapshot's file in the making, under a temporary name until `finish`."""

    def __init__(
        self,
        temporary: Path,
        meta: SnapshotMeta,
        keyring: Keyring,
        *,
        frame_bytes: int = FRAME_BYTES,
    ) -> None:
        """Of `meta`, size and CRC need not be known yet."""
        self.size = 0
        self.crc = 0
        self._meta = meta
        self._path = temporary
        self._keyring = keyring
        self._frame_bytes = frame_bytes
        self._frame = bytearray()
        self._number = 0
        key = keyring.for_new_file(temporary.name)
        described = _Description(
            meta.index, meta.term, meta.configuration, frame_bytes, key.id, new_salt()
        )
        self._sealer = described.sealer(key)
        self._description = description = msgspec.msgpack.encode(described)
        self._seed = zlib.crc32(description)
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
        self._handle = os.open(temporary, flags, 0o600)
        self._position = self._synced = 0
        self._put(_MAGIC + _HEAD.pack(len(description), self._seed) + description)

    def add(self, piece: bytes | memoryview) -> None:
        """The next bytes of the state."""
        self.size += len(piece)
        self.crc = zlib.crc32(piece, self.crc)
        self._frame += piece
        while len(self._frame) >= self._frame_bytes:
            self._put_frame(bytes(memoryview(self._frame)[: self._frame_bytes]))
            del self._frame[: self._frame_bytes]

    def finish(self, path: Path) -> SnapshotMeta:
        """End the file, make it durable and give it its name; what it holds."""
        if self._frame:
            self._put_frame(bytes(self._frame))
        end = _END.pack(self.size, self.crc)
        end += self._sealer.seal(b"", _END_CONTEXT + end + self._description)
        self._put(end + _CRC.pack(zlib.crc32(end, self._seed)))
        os.fsync(self._handle)
        self._close()
        self._path.rename(path)
        files.sync_folder(path.parent)
        self._keyring.renamed(self._path.name, path.name)
        return msgspec.structs.replace(self._meta, size=self.size, crc=self.crc)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._close()
        self._path.unlink(missing_ok=True)
        self._keyring.forget(self._path.name)

    def _put_frame(self, payload: bytes) -> None:
        stored = self._sealer.seal(payload, _frame_context(self._number))
        crc = _frame_crc(self._seed, self._number, stored)
        self._put(_HEAD.pack(len(stored), crc) + stored)
        self._number += 1

    def _put(self, data: bytes) -> None:
        files.write_at(self._handle, data, self._position)
        self._position += len(data)
        if self._position - self._synced >= _SYNC_BYTES:
            os.fdatasync(self._handle)
            self._synced = self._position

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class SnapshotReader:
    """A finished file. A context: it is closed at the end. `key_id` is "" if it is not sealed."""

    def __init__(self, path: Path, keyring: Keyring) -> None:
        """Checks all but the frames.

        Raises LogDamaged, KeyMissing, SealBroken or FileNotFoundError.
        """
        self._path = path
        self._keyring = keyring
        self.key_id = ""
        self._sealer: Sealer | None = None
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._length = os.fstat(self._handle).st_size
            self._read_head()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "SnapshotReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._handle)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes of the state. Raises LogDamaged."""
        length = min(length, self.meta.size - offset)
        if length <= 0:
            return b""
        if not self._frame_bytes:
            return self._read_at(self._begin + offset, length)
        first, last = offset // self._frame_bytes, (offset + length - 1) // self._frame_bytes
        data = b"".join(self._frame(number) for number in range(first, last + 1))
        skipped = offset - first * self._frame_bytes
        return data if len(data) == length else data[skipped : skipped + length]

    def pieces(self) -> Iterator[bytes]:
        """All of the state. Raises LogDamaged, perhaps only at the end."""
        crc, step = 0, self._frame_bytes or FRAME_BYTES
        for offset in range(0, self.meta.size, step):
            piece = self.read(offset, step)
            crc = zlib.crc32(piece, crc)
            yield piece
        if crc != self.meta.crc:
            raise LogDamaged(self._path, self._begin, "the state is not what was written")

    def _read_head(self) -> None:
        head = self._read_at(0, len(_MAGIC) + _HEAD.size)
        magic = head[: len(_MAGIC)]
        if magic not in (_MAGIC, _MAGIC_1) or len(head) < len(_MAGIC) + _HEAD.size:
            raise LogDamaged(self._path, 0, "not a snapshot, or of another version")
        size, self._seed = _HEAD.unpack_from(head, len(_MAGIC))
        description = self._read_at(len(head), min(size, _DESCRIPTION_MAX))
        if len(description) != size or zlib.crc32(description) != self._seed:
            what = "the snapshot's description is not what was written"
            raise LogDamaged(self._path, len(head), what)
        self._begin = len(head) + size
        if magic == _MAGIC_1:
            self._read_version_1(description)
        else:
            self._read_version_2(description)

    def _read_version_1(self, description: bytes) -> None:
        self._frame_bytes = 0
        self.meta = msgspec.msgpack.decode(description, type=SnapshotMeta)
        self._check_length(self._begin + self.meta.size)

    def _read_version_2(self, description: bytes) -> None:
        described = msgspec.msgpack.decode(description, type=_Description)
        if described.key_id:
            self.key_id = described.key_id
            self._sealer = described.sealer(self._keyring.for_file(self._path, described.key_id))
        length = _END.size + self._overhead
        place = self._length - length - _CRC.size
        stored = self._read_at(place, length + _CRC.size) if place >= self._begin else b""
        end, seal = stored[: _END.size], stored[_END.size : length]
        if not end or stored[length:] != _CRC.pack(zlib.crc32(end + seal, self._seed)):
            what = "the end of the snapshot is missing, or not what was written"
            raise LogDamaged(self._path, max(place, 0), what)
        self._unseal(seal, _END_CONTEXT + end + description, place)
        size, crc = _END.unpack(end)
        self.meta = SnapshotMeta(
            described.index, described.term, described.configuration, size, crc
        )
        self._frame_bytes = described.frame_bytes
        count = -(-size // self._frame_bytes)
        self._check_length(
            self._begin + size + count * self._extra + length + _CRC.size,
        )

    def _check_length(self, expected: int) -> None:
        if self._length != expected:
            what = f"the file was {expected} bytes long"
            raise LogDamaged(self._path, min(self._length, expected), what)

    @property
    def _extra(self) -> int:
        """Bytes of the file for each frame, beyond the state's own."""
        return _HEAD.size + self._overhead

    @property
    def _overhead(self) -> int:
        """Bytes by which sealing makes a piece longer."""
        return OVERHEAD if self._sealer else 0

    def _unseal(self, stored: bytes, context: bytes, place: int) -> bytes:
        try:
            return self._sealer.open(stored, context) if self._sealer else stored
        except NotOpened as error:
            raise SealBroken(self._path, place, self.key_id) from error

    def _frame(self, number: int) -> bytes:
        place = self._begin + number * (self._frame_bytes + self._extra)
        length = min(self._frame_bytes, self.meta.size - number * self._frame_bytes)
        data = self._read_at(place, length + self._extra)
        stored = data[_HEAD.size :]
        head = _HEAD.pack(len(stored), _frame_crc(self._seed, number, stored))
        if data[: _HEAD.size] != head or len(stored) != length + self._overhead:
            raise LogDamaged(self._path, place, f"frame {number} is not what was written")
        return self._unseal(stored, _frame_context(number), place)

    def _read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._handle, length, offset)


def _frame_context(number: int) -> bytes:
    return _FRAME_CONTEXT.pack(b"F", number)


def _frame_crc(seed: int, number: int, stored: bytes) -> int:
    return zlib.crc32(stored, zlib.crc32(_NUMBER.pack(number, seed)))
