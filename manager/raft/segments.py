"""The segment files of the write-ahead log. Blocking; used from one thread.

A segment is filled with zeros and synced before its first record is written, so that a sync
writes data only, and a file that is shorter than its header says was cut by somebody.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from manager.raft import files
from manager.raft.errors import LogDamaged
from manager.raft.message import HardState
from manager.raft.wal import (
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
)

_HEADER_BYTES = 1024  # more than the first records of a segment take


class _Segment(msgspec.Struct):
    number: int
    path: Path
    last_index: int  # of the entries in it; what it holds is in a snapshot once that is as new


class Segments:
    """All segments of one member, oldest first; the last one is written."""

    def __init__(self, folder: Path, member_id: str, segment_bytes: int) -> None:
        self._folder = folder
        self._member_id = member_id
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._handle = -1
        self._size = 0
        self._writer = Writer()
        self._hard_state = HardState()

    def load(self, replay: Replay) -> Path:
        """Feed all records to `replay` and open the last segment for writing; its path.

        Cuts off a torn tail. Raises LogDamaged; then nothing was changed.
        """
        self.close()
        self._segments.clear()
        chain = 0
        tail = Scan([], 0, 0, Tail.CLEAN)
        paths = sorted(self._folder.glob("log-*.wal"))
        for path in paths:
            data = path.read_bytes()
            tail = scan(data)
            header = self._check(path, data, tail, chain, is_last=path is paths[-1])
            segment = _Segment(header.number, path, 0)
            self._feed(replay, segment, tail)
            self._segments.append(segment)
            chain, self._size = tail.chain, header.size
        if not paths:
            return self._folder
        self._hard_state = replay.hard_state
        self._writer = Writer(tail.end, tail.chain)
        self._handle = os.open(paths[-1], os.O_RDWR | os.O_CLOEXEC)
        if tail.tail is Tail.TORN:
            # What is left of the torn write must not be mistaken for a later one.
            files.write_at(self._handle, bytes(self._size - tail.end), tail.end)
            os.fdatasync(self._handle)
        return paths[-1]

    def append(self, records: Sequence[Record]) -> None:
        """Write `records` and sync them."""
        if not records:
            return
        self._room_for(sum(size_bound(len(record.payload)) for record in records))
        offset = self._writer.position
        files.write_at(self._handle, self._writer.encode(records), offset)
        os.fdatasync(self._handle)
        self._note(self._segments[-1], records)

    def prune(self, index: int) -> None:
        """Remove the segments that hold nothing beyond entry `index`."""
        gone = 0
        while len(self._segments) > 1 and self._segments[0].last_index <= index:
            self._segments.pop(0).path.unlink()
            gone += 1
        if gone:
            files.sync_folder(self._folder)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _room_for(self, size: int) -> None:
        """Go to the next segment unless `size` bytes fit in the present one."""
        if self._handle >= 0 and self._writer.position + size <= self._size:
            return
        number = self._segments[-1].number + 1 if self._segments else 1
        self._size = max(self._segment_bytes, size + _HEADER_BYTES)
        header = Header(VERSION, self._member_id, number, self._size, self._writer.chain)
        writer = Writer()
        first = writer.encode([header_record(header), state_record(self._hard_state)])
        path = self._folder / f"log-{number:016d}.wal"
        files.create(path, (first, bytes(self._size - len(first))))
        self.close()
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._writer = writer
        self._segments.append(_Segment(number, path, 0))

    def _feed(self, replay: Replay, segment: _Segment, found: Scan) -> None:
        for record in found.records[1:]:
            try:
                replay.add(record)
            except (ValueError, IndexError, msgspec.MsgspecError) as error:
                raise LogDamaged(segment.path, 0, str(error)) from error
        self._note(segment, found.records)

    def _note(self, segment: _Segment, records: Sequence[Record]) -> None:
        for record in records:
            if record.kind is RecordKind.ENTRY:
                segment.last_index = max(segment.last_index, record.index)
            elif record.kind is RecordKind.STATE:
                self._hard_state = msgspec.msgpack.decode(record.payload, type=HardState)

    def _check(self, path: Path, data: bytes, found: Scan, chain: int, *, is_last: bool) -> Header:
        """The header of the segment `path` if it may follow the one before."""
        if not found.records:
            raise LogDamaged(path, 0, "the header of the file cannot be read")
        try:
            header = read_header(found.records[0])
        except (ValueError, msgspec.MsgspecError) as error:
            raise LogDamaged(path, 0, str(error)) from error
        before = self._segments[-1] if self._segments else None
        if header.version != VERSION:
            raise LogDamaged(path, 0, f"version {header.version}; this program writes {VERSION}")
        if header.member_id != self._member_id:
            raise LogDamaged(path, 0, f"it belongs to member {header.member_id}")
        if path.name != f"log-{header.number:016d}.wal":
            raise LogDamaged(path, 0, f"it was written as segment {header.number}")
        if before and (header.number != before.number + 1 or header.previous_chain != chain):
            raise LogDamaged(path, 0, f"it does not follow {before.path.name}")
        if len(data) != header.size:
            raise LogDamaged(path, len(data), f"the file was {header.size} bytes long")
        if found.tail is Tail.DAMAGED or (found.tail is Tail.TORN and not is_last):
            raise LogDamaged(path, found.end, "a record is not what was written")
        return header
