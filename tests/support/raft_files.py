"""Logs on real files, for tests: what to write, how to open, and the format of before."""

import contextlib
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import msgspec

from manager.raft.disk import Disk, FileDisk, Stored
from manager.raft.keyring import Keyring
from manager.raft.message import Configuration, Entry, EntryKind, HardState, SnapshotMeta
from manager.raft.wal import (
    PLAIN_VERSION,
    Record,
    RecordKind,
    Writer,
    entry_record,
    state_record,
)
from tests.support.raft_disk import Kept
from tests.support.raft_world import member

SMALL = 8192  # bytes of a segment
CONFIGURATION = Configuration((member("m1"),))


def entries(first: int, last: int, term: int = 1, size: int = 20) -> list[Entry]:
    return [
        Entry(index, term, EntryKind.DATA, b"%d:" % index + b"x" * size)
        for index in range(first, last + 1)
    ]


def snapshot(index: int, term: int = 1, data: bytes = b"the state") -> Kept:
    meta = SnapshotMeta(index, term, CONFIGURATION, len(data), zlib.crc32(data))
    return Kept(meta, data)


async def save(disk: Disk, taken: Kept, *pinned: SnapshotMeta) -> None:
    """Save with a description that lacks size and CRC, in pieces of two bytes."""
    described = msgspec.structs.replace(taken.meta, size=0, crc=0)
    data = taken.data
    pieces = (data[begin : begin + 2] for begin in range(0, len(data), 2))
    assert await disk.save_snapshot(described, pieces, pinned) == taken.meta


async def install(disk: Disk, received: Kept) -> None:
    """Receive a snapshot in parts of four bytes, and install it."""
    for begin in range(0, max(len(received.data), 1), 4):
        await disk.receive(received.meta, begin, received.data[begin : begin + 4])
    await disk.install(received.meta)


class Fed:
    """A machine's state in the making that only looks."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False

    def add(self, piece: bytes | memoryview) -> None:
        self.data += piece

    def end(self) -> Iterator[None]:
        yield
        self.ended = True

    def become(self) -> None: ...


async def state_in(disk: Disk, meta: SnapshotMeta) -> bytes:
    """What a machine would get."""
    fed = Fed()
    await disk.feed_snapshot(meta, fed)
    assert fed.ended
    return fed.data


@contextlib.asynccontextmanager
async def opened(
    folder: Path,
    member_id: str = "m1",
    *,
    keyring: Keyring | None = None,
    segment_bytes: int = SMALL,
) -> AsyncIterator[tuple[FileDisk, Stored]]:
    disk = FileDisk(folder, member_id, keyring=keyring, segment_bytes=segment_bytes)
    try:
        yield disk, await disk.load()
    finally:
        await disk.close()


async def reopened(folder: Path, keyring: Keyring | None = None) -> Stored:
    """What is in the folder, with all of the snapshot looked at."""
    async with opened(folder, keyring=keyring) as (disk, stored):
        if stored.snapshot:
            await state_in(disk, stored.snapshot)
        return stored


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("log-*"))


def snapshots(folder: Path) -> list[Path]:
    return sorted(folder.glob("snapshot-*"))


def write_plain_log(
    folder: Path, state: HardState, written: Iterable[Entry], segment_bytes: int = SMALL
) -> None:
    """Segments of version 1, as they were before sealing."""
    folder.mkdir(exist_ok=True)
    waiting = [entry_record(entry) for entry in written]
    number, chain = 1, 0
    while True:
        writer = Writer()
        header = msgspec.msgpack.encode((PLAIN_VERSION, "m1", number, segment_bytes, chain))
        first = Record(RecordKind.HEADER, 0, number, header)
        content = writer.encode([first, state_record(state)])
        while waiting and writer.position + _bound(waiting[0]) <= segment_bytes:
            content += writer.encode([waiting.pop(0)])
        path = folder / f"log-{number:016d}.wal"
        path.write_bytes(content.ljust(segment_bytes, b"\0"))
        number, chain = number + 1, writer.chain
        if not waiting:
            return


def _bound(record: Record) -> int:
    return 60 + len(record.payload) * 3 // 2
