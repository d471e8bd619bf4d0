"""Files of snapshots: written as a stream, read from any place, and never taken for another.

Behaviours 180, 187 and 188.
"""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from manager.raft.errors import LogDamaged
from manager.raft.keyring import Keyring
from manager.raft.message import SnapshotMeta
from manager.raft.snapshot_file import SnapshotReader, SnapshotWriter
from manager.raft.snapshot_folder import SnapshotFolder
from tests.support.raft_files import CONFIGURATION, opened, save, snapshot, snapshots, state_in

FRAME = 16
META = SnapshotMeta(7, 2, CONFIGURATION, 0, 0)
STATE = random.Random(1).randbytes(100)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)  # no power fails here
    monkeypatch.setattr("os.fdatasync", lambda handle: None)


def keyring(path: Path) -> Keyring:
    found = Keyring(path.parent / "keyring")
    found.load()
    return found


def written(path: Path, state: bytes = STATE) -> SnapshotMeta:
    temporary = path.with_suffix(".tmp")
    writer = SnapshotWriter(temporary, META, keyring(path), frame_bytes=FRAME)
    rng, place = random.Random(2), 0
    while place < len(state):
        size = rng.randint(0, 40)
        writer.add(state[place : place + size])
        place += size
    return writer.finish(path)


def opened_file(path: Path) -> SnapshotReader:
    return SnapshotReader(path, keyring(path))


def whole(path: Path) -> bytes:
    with opened_file(path) as reader:
        return b"".join(reader.pieces())


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 100, 10 * FRAME])
def test_any_part_of_a_state_can_be_read(tmp_path: Path, size: int) -> None:
    state = random.Random(size).randbytes(size)
    path = tmp_path / "s"
    meta = written(path, state)
    assert meta == msgspec.structs.replace(META, size=size, crc=zlib.crc32(state))
    assert not list(tmp_path.glob("*.tmp"))
    with opened_file(path) as reader:
        assert reader.meta == meta
        assert b"".join(reader.pieces()) == state
        for offset in range(0, size + 3, 5):
            for length in (0, 1, FRAME, FRAME + 7, size):
                assert reader.read(offset, length) == state[offset : offset + length]


def test_every_changed_byte_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s"
    written(path)
    content = path.read_bytes()
    for position in range(len(content)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(LogDamaged, match=r"at byte \d+.*Check the disk") as error:
                whole(path)
            assert str(path) in str(error.value)
    path.write_bytes(content)
    assert whole(path) == STATE


def test_every_shortened_or_longer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    written(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(LogDamaged, match="at byte"), opened_file(path):
            pass
    path.write_bytes(content + b"\0")
    with pytest.raises(LogDamaged), opened_file(path):
        pass


def version_1(meta: SnapshotMeta, state: bytes) -> bytes:
    described = msgspec.msgpack.encode(meta)
    head = len(described).to_bytes(4, "big") + zlib.crc32(described).to_bytes(4, "big")
    return b"SHOALSNAPSHOT 1\n" + head + described + state


async def test_a_file_of_an_earlier_release_is_read_and_its_damage_found(tmp_path: Path) -> None:
    taken = snapshot(7, data=STATE)
    path = tmp_path / f"snapshot-{7:016x}-{1:016x}"
    content = version_1(taken.meta, STATE)
    path.write_bytes(content)
    async with opened(tmp_path) as (disk, stored):
        assert stored.snapshot == taken.meta
        assert await state_in(disk, taken.meta) == STATE
        assert await disk.read_snapshot(taken.meta, 30, 40) == STATE[30:70]
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(LogDamaged):
            whole(path)
        path.write_bytes(content[:position])
        with pytest.raises(LogDamaged):
            whole(path)


# The folder


def pieces(state: bytes = STATE) -> Iterator[bytes]:
    yield state


def indexes(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1], 16) for path in folder.glob("snapshot-*"))


def folder_in(folder: Path) -> SnapshotFolder:
    return SnapshotFolder(folder, keyring(folder / "snapshot"))


def save_at(folder: SnapshotFolder, index: int, *pinned: SnapshotMeta) -> SnapshotMeta:
    meta = folder.save(msgspec.structs.replace(META, index=index), pieces(), lambda: None)
    folder.prune(pinned)
    return meta


def test_a_snapshot_stays_while_somebody_gets_it(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    first = save_at(folder, 1)
    for index in range(2, 9):
        save_at(folder, index, first)
    assert indexes(tmp_path) == [1, 7, 8]
    assert folder.read(first, 0, 1000) == STATE
    save_at(folder, 9)
    assert indexes(tmp_path) == [8, 9]
    assert folder.read(first, 0, 1000) is None


def test_another_snapshot_of_the_same_entry_is_not_taken_for_it(tmp_path: Path) -> None:
    """One that was received may differ from our own of that entry in how it is encoded."""
    folder = folder_in(tmp_path)
    mine = save_at(folder, 5)
    theirs = msgspec.structs.replace(mine, size=3, crc=zlib.crc32(b"abc"))
    folder.receive(theirs, 0, b"abc")
    folder.install(theirs)
    assert folder.read(mine, 0, 10) is None
    assert folder.read(theirs, 1, 10) == b"bc"


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(1000)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        folder_in(tmp_path).save(META, broken(), lambda: None)
    assert not list(tmp_path.glob("snapshot-*"))


def test_a_transfer_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    meta = msgspec.structs.replace(META, size=10, crc=zlib.crc32(b"0123456789"))
    folder.receive(meta, 0, b"01234")
    folder.receive(meta, 0, b"012")  # a newer one, or from another leader
    assert len(list(tmp_path.glob("snapshot-*"))) == 1
    folder.discard_received()
    assert not list(tmp_path.glob("snapshot-*"))


def received(folder: Path) -> list[Path]:
    return list(folder.glob("*received*"))


async def test_what_a_crash_left_of_a_transfer_is_removed_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (disk, _):
        await save(disk, snapshot(3))
        await disk.receive(snapshot(9).meta, 0, b"the")
        [left] = received(tmp_path)
        content = left.read_bytes()
    left.write_bytes(content)
    async with opened(tmp_path) as (disk, stored):
        assert not received(tmp_path)
        assert stored.snapshot == snapshot(3).meta


async def test_a_snapshot_under_another_name_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await save(disk, snapshot(3))
    [path] = snapshots(tmp_path)
    path.rename(path.with_name(f"snapshot-{4:016x}-{1:016x}"))
    with pytest.raises(LogDamaged, match="that of entry 3"):
        async with opened(tmp_path):
            pass
