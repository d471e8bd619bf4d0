"""The segment files of the write-ahead log. Blocking; used from one thread.

A segment is filled with zeros and synced before its first record is written, so that a sync
writes data only, and a file that is shorter than its header says was cut by somebody. The next
segment is filled ahead, and old ones are used again (spares.py).

A write that fails ends it: after a failed sync nobody knows what is on the disk, so no sync is
tried twice, and nothing more is written before the next start has read back what is there.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from manager.raft import files
from manager.raft.errors import LogDamaged, SealBroken
from manager.raft.keyring import Keyring
from manager.raft.message import HardState
from manager.raft.sealing import NotOpened, Sealer, new_salt
from manager.raft.spares import Spares
from manager.raft.wal import (
    PLAIN_VERSION,
    VERSION,
    Header,
    Record,
    RecordKind,
    Replay,
    Scan,
    Tail,
    Writer,
    header_record,
    read_header,
    scan,
    size_bound,
    state_record,
    unsealed,
)

_HEADER_BYTES = 1024  # more than the first records of a segment take


class _Segment(msgspec.Struct):
    number: int
    path: Path
    last_index: int  # of the entries in it; what it holds is in a snapshot once that is as new
    key_id: str  # "": not sealed
    spare_asked: bool = False  # for the segment after it


class Segments:
    """All segments of one member, oldest first; the last one is written."""

    def __init__(self, folder: Path, member_id: str, segment_bytes: int, keyring: Keyring) -> None:
        self._folder = folder
        self._member_id = member_id
        self._segment_bytes = segment_bytes
        self._keyring = keyring
        self._spares = Spares(folder, segment_bytes)
        self._segments: list[_Segment] = []
        self._handle = -1
        self._size = 0
        self._broken = False
        self._writer = Writer()
        self._hard_state = HardState()

    def load(self, replay: Replay, covered: int = 0) -> Path:
        """Feed all records to `replay` and open the last segment for writing; its path.

        `covered`: the entry up to which a snapshot holds all. Cuts off a torn tail. Raises
        LogDamaged, KeyMissing or SealBroken; then nothing was changed.
        """
        self._let_go()
        self._segments.clear()
        chain = 0
        tail = Scan([], [], 0, 0, Tail.CLEAN)
        sealer: Sealer | None = None
        paths = sorted(self._folder.glob("log-*.wal"))
        rests: list[Path] = []
        for path in paths:
            is_last = path is paths[-1]
            data = files.read_back(path) if is_last else path.read_bytes()
            tail = scan(data)
            if self._is_beyond_gap(path, covered):
                replay.restart()
                rests += self._forget_all()
                chain = 0
            header = self._check(path, data, tail, chain, is_last=is_last)
            sealer = self._sealer_of(path, header)
            segment = _Segment(header.number, path, 0, header.key_id)
            self._feed(replay, segment, tail, sealer)
            self._segments.append(segment)
            chain, self._size = tail.chain, header.size
        if not paths:
            return self._folder
        self._hard_state = replay.hard_state
        self._writer = Writer(tail.end, tail.chain, sealer)
        self._handle = os.open(paths[-1], os.O_RDWR | os.O_CLOEXEC)
        if tail.tail is Tail.TORN:
            # What is left of the torn write must not be mistaken for a later one.
            files.write_at(self._handle, bytes(self._size - tail.end), tail.end)
            os.fdatasync(self._handle)
        for path in rests:
            path.unlink()
        return paths[-1]

    def append(self, records: Sequence[Record]) -> None:
        """Write `records` and sync them. Raises OSError, and from then on always."""
        if not records:
            return
        with self._writing():
            self._room_for(sum(size_bound(len(record.payload)) for record in records))
            self._write(self._writer.position, self._writer.encode(records))
            os.fdatasync(self._handle)
        segment = self._segments[-1]
        for record in records:
            self._note(segment, record)
        if self._writer.position > self._size // 2 and not segment.spare_asked:
            segment.spare_asked = True
            self._spares.want()

    def follow_key(self) -> None:
        """Go to the next segment now if the data key was changed since the present one."""
        if self._segments and self._segments[-1].key_id != self._keyring.current_id:
            with self._writing():
                self._next_segment(self._segment_bytes)

    def prune(self, index: int) -> None:
        """Let go of the segments that hold nothing beyond entry `index`."""
        gone: list[Path] = []
        while len(self._segments) > 1 and self._segments[0].last_index <= index:
            gone.append(self._segments.pop(0).path)
        self._spares.recycle(gone)
        for path in gone:
            self._keyring.forget(path.name)

    def close(self) -> None:
        self._spares.close()
        self._let_go()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What fails in here must not be followed by another write."""
        if self._broken:
            raise OSError(errno.EIO, "an earlier write has failed")
        self._broken = True
        yield
        self._broken = False

    def _let_go(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _write(self, offset: int, data: bytes) -> None:
        try:
            files.write_at(self._handle, data, offset)
        except OSError:
            # A part of a record may be there, cut within a sector as no power failure does, so
            # that it would look like damage. Best effort: the error itself is what counts.
            with contextlib.suppress(OSError):
                files.write_at(self._handle, bytes(len(data)), offset)
                os.fdatasync(self._handle)
            raise

    def _room_for(self, size: int) -> None:
        """Go to the next segment unless `size` bytes fit in the present one, and may go there.

        What is not sealed, or with an older key, gets no new records.
        """
        if self._handle >= 0 and self._writer.position + size <= self._size:
            key_id = self._segments[-1].key_id
            if key_id and key_id == self._keyring.current_id:
                return
        self._next_segment(max(self._segment_bytes, size + _HEADER_BYTES))

    def _next_segment(self, size: int) -> None:
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self._folder / _name(number)
        key = self._keyring.for_new_file(path.name)
        chain = self._writer.chain
        header = Header(VERSION, self._member_id, number, size, chain, key.id, new_salt())
        writer = Writer()
        first = writer.encode([header_record(header)])
        writer.sealer = header.sealer(key)
        first += writer.encode([state_record(self._hard_state)])
        handle = self._make_file(path, size, first)
        self._let_go()
        self._handle, self._size, self._writer = handle, size, writer
        self._segments.append(_Segment(number, path, 0, key.id))

    def _make_file(self, path: Path, size: int, first: bytes) -> int:
        """A file of `size` bytes that begins with `first`, on disk under its name; its handle."""
        spare = self._spares.take() if size == self._segment_bytes else None
        if spare is None:
            files.create(path, (first, bytes(size - len(first))))
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        handle = os.open(spare, os.O_RDWR | os.O_CLOEXEC)
        try:
            files.write_at(handle, first, 0)
            os.fdatasync(handle)
            spare.rename(path)
            files.sync_folder(self._folder)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _sealer_of(self, path: Path, header: Header) -> Sealer | None:
        if header.version == PLAIN_VERSION:
            return None
        self._keyring.found(path.name, header.key_id)
        return header.sealer(self._keyring.for_file(path, header.key_id))

    def _feed(self, replay: Replay, segment: _Segment, found: Scan, sealer: Sealer | None) -> None:
        places = zip(found.offsets[1:], found.records[1:], strict=True)
        for offset, stored in places:
            try:
                record = unsealed(stored, offset, sealer)
                replay.add(record)
                self._note(segment, record)
            except NotOpened as error:
                raise SealBroken(segment.path, offset, segment.key_id) from error
            except (ValueError, IndexError, msgspec.MsgspecError) as error:
                raise LogDamaged(segment.path, offset, str(error)) from error

    def _note(self, segment: _Segment, record: Record) -> None:
        if record.kind is RecordKind.ENTRY:
            segment.last_index = max(segment.last_index, record.index)
        elif record.kind is RecordKind.STATE:
            self._hard_state = msgspec.msgpack.decode(record.payload, type=HardState)

    def _is_beyond_gap(self, path: Path, covered: int) -> bool:
        """Whether `path` does not follow because a power failure came while older were removed.

        Any of them may have come back then. All hold only what the snapshot has.
        """
        return bool(
            self._segments
            and path.name > _name(self._segments[-1].number + 1)
            and all(segment.last_index <= covered for segment in self._segments)
        )

    def _forget_all(self) -> list[Path]:
        paths = [segment.path for segment in self._segments]
        self._segments.clear()
        for path in paths:
            self._keyring.forget(path.name)
        return paths

    def _check(self, path: Path, data: bytes, found: Scan, chain: int, *, is_last: bool) -> Header:
        """The header of the segment `path` if it may follow the one before."""
        if not found.records:
            raise LogDamaged(path, 0, "the header of the file cannot be read")
        try:
            header = read_header(found.records[0])
        except (ValueError, msgspec.MsgspecError) as error:
            raise LogDamaged(path, 0, str(error)) from error
        before = self._segments[-1] if self._segments else None
        if header.version not in (PLAIN_VERSION, VERSION):
            raise LogDamaged(path, 0, f"version {header.version}; this program writes {VERSION}")
        if header.member_id != self._member_id:
            raise LogDamaged(path, 0, f"it belongs to member {header.member_id}")
        if path.name != _name(header.number):
            raise LogDamaged(path, 0, f"it was written as segment {header.number}")
        if before and (header.number != before.number + 1 or header.previous_chain != chain):
            raise LogDamaged(path, 0, f"it does not follow {before.path.name}")
        if len(data) != header.size:
            raise LogDamaged(path, len(data), f"the file was {header.size} bytes long")
        if found.tail is Tail.DAMAGED or (found.tail is Tail.TORN and not is_last):
            raise LogDamaged(path, found.end, "a record is not what was written")
        return header


def _name(number: int) -> str:
    return f"log-{number:016d}.wal"
