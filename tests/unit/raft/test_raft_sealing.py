"""Encryption at rest: what is on disk tells nothing, opens only in its place, and only here.

Behaviours 189 and 190.
"""

import random
import shutil
import struct
import zlib
from pathlib import Path

import msgspec
import pytest

from manager.raft.errors import KeyMissing, LogDamaged, SealBroken
from manager.raft.keyring import Keyring, LockedGuard, new_unlock_key
from manager.raft.message import Entry, EntryKind, HardState
from manager.raft.sealing import NotOpened, Sealer, new_key, new_salt
from manager.raft.segments import Segments
from manager.raft.snapshot_file import SnapshotReader, SnapshotWriter
from manager.raft.wal import (
    PLAIN_VERSION,
    SECTOR,
    VERSION,
    Record,
    RecordKind,
    Replay,
    Writer,
    entry_record,
    read_header,
    scan,
)
from tests.support.raft_files import (
    SMALL,
    entries,
    opened,
    reopened,
    save,
    segments,
    snapshot,
    snapshots,
    write_plain_log,
)

# Pieces


def test_a_piece_opens_only_with_its_key_salt_purpose_and_context() -> None:
    key, salt = new_key(), new_salt()
    sealed = Sealer.of(key, salt, "log 1").seal(b"secret", b"here")
    assert b"secret" not in sealed
    assert Sealer.of(key, salt, "log 1").open(sealed, b"here") == b"secret"
    for other, context in (
        (Sealer.of(new_key(), salt, "log 1"), b"here"),
        (Sealer.of(key, new_salt(), "log 1"), b"here"),
        (Sealer.of(key, salt, "log 2"), b"here"),
        (Sealer.of(key, salt, "log 1"), b"there"),
    ):
        with pytest.raises(NotOpened):
            other.open(sealed, context)


def test_no_changed_or_shortened_piece_opens() -> None:
    sealer = Sealer.of(new_key(), new_salt(), "log 1")
    sealed = sealer.seal(b"secret", b"")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        for wrong in (bytes(changed), sealed[:position]):
            with pytest.raises(NotOpened):
                sealer.open(wrong, b"")


def test_the_same_record_at_the_same_place_is_never_sealed_alike() -> None:
    """A torn write is written again at the same offset; a nonce must not come twice."""
    sealer = Sealer.of(new_key(), new_salt(), "log 1")
    record = entry_record(Entry(1, 1, EntryKind.DATA, b"x" * 40))
    first, second = (Writer(600, 7, sealer).encode([record]) for _ in range(2))
    head = 41
    assert first[head:] != second[head:]
    assert first[head : head + 12] != second[head : head + 12]


def test_a_sealed_record_fills_each_sector_it_touches() -> None:
    """The rule by which a torn write is told from damage, for ciphertext with zeros in it too."""

    class ManyZeros(Sealer):
        def __init__(self) -> None:
            pass

        def seal(self, plain: bytes, context: bytes) -> bytes:
            return b"\0" * 12 + b"\0" * len(plain) + b"\0" * 16

    rng = random.Random(5)
    for sealer in (ManyZeros(), Sealer.of(new_key(), new_salt(), "log 1")):
        for _ in range(400):
            begin = rng.randrange(3 * SECTOR)
            body = bytes(rng.randrange(1800))
            writer = Writer(begin, 1, sealer)
            data = bytes(begin) + writer.encode([Record(RecordKind.ENTRY, 1, 1, body)])
            begin += 1 if begin % SECTOR == SECTOR - 1 else 0
            for sector in range(begin // SECTOR * SECTOR, len(data), SECTOR):
                part = data[max(sector, begin) : sector + SECTOR]
                assert len(part) - part.count(0) >= 2


# Files


async def test_nothing_of_an_entry_is_readable_on_disk(tmp_path: Path) -> None:
    secret = b"the very secret contents"
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), [Entry(1, 1, EntryKind.DATA, secret * 9)])
    for path in (*segments(tmp_path), tmp_path / "keyring"):
        assert secret not in path.read_bytes(), path
    assert (await reopened(tmp_path)).entries[0].data == secret * 9


async def test_another_members_keyring_is_named_as_the_wrong_one_not_as_damage(
    tmp_path: Path,
) -> None:
    """RAF 190."""
    for name in ("a", "b"):
        async with opened(tmp_path / name) as (disk, _):
            await disk.write(HardState(1, "m1", 0), entries(1, 3))
    shutil.copy(tmp_path / "b" / "keyring", tmp_path / "a" / "keyring")
    before = {path: path.read_bytes() for path in segments(tmp_path / "a")}
    with pytest.raises(KeyMissing, match=r"log-0+1\.wal is sealed with data key .* not damaged"):
        await reopened(tmp_path / "a")
    assert {path: path.read_bytes() for path in segments(tmp_path / "a")} == before


async def test_a_missing_keyring_is_said_and_not_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
    (tmp_path / "keyring").rename(tmp_path / "away")
    with pytest.raises(KeyMissing, match="Put back the keyring"):
        await reopened(tmp_path)
    assert not (tmp_path / "keyring").exists()
    (tmp_path / "away").rename(tmp_path / "keyring")
    assert len((await reopened(tmp_path)).entries) == 3


async def test_a_damaged_keyring_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
    path = tmp_path / "keyring"
    content = path.read_bytes()
    for position in range(len(content)):
        for damaged in (
            content[:position],
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(LogDamaged, match="keyring"):
                await reopened(tmp_path)


async def test_a_record_moved_or_made_without_the_key_is_not_taken(tmp_path: Path) -> None:
    """With all checks right: a CRC is no protection against somebody."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
    [path] = segments(tmp_path)
    content = path.read_bytes()
    found = scan(content)
    header, state, *others = found.records
    moved = [others[1], others[0], others[2]]
    forged = [entry_record(Entry(1, 1, EntryKind.DATA, b"forged")), *others[1:]]
    renumbered = [Record(RecordKind.ENTRY, 1, 2, others[0].payload), *others[1:]]
    for records in (moved, forged, renumbered):
        data = Writer().encode([header, state, *records])
        path.write_bytes(data.ljust(len(content), b"\0"))
        with pytest.raises(SealBroken, match=r"at byte \d+: the record is whole"):
            await reopened(tmp_path)
    path.write_bytes(content)
    assert len((await reopened(tmp_path)).entries) == 3


async def test_a_log_of_before_is_read_and_all_after_it_is_sealed(tmp_path: Path) -> None:
    """Also with a torn tail, which must be cut off before the next segment follows."""
    old = entries(1, 20, size=900)
    write_plain_log(tmp_path, HardState(3, "m1", 18), old)
    last = segments(tmp_path)[-1]
    content = last.read_bytes()
    found = scan(content)
    lost = Writer(found.end, found.chain).encode([entry_record(entries(21, 21, size=900)[0])])
    boundary = found.end // SECTOR * SECTOR + SECTOR
    torn = content[: found.end] + lost[: boundary - found.end]
    last.write_bytes(torn.ljust(len(content), b"\0"))
    count = len(segments(tmp_path))
    async with opened(tmp_path) as (disk, stored):
        assert stored.entries == tuple(old)
        await disk.write(HardState(4, "m1", 20), entries(21, 22, term=4))
    versions = [
        read_header(scan(path.read_bytes()).records[0]).version for path in segments(tmp_path)
    ]
    assert versions == [PLAIN_VERSION] * count + [VERSION]
    stored = await reopened(tmp_path)
    assert stored.hard_state == HardState(4, "m1", 20)
    assert stored.entries == (*old, *entries(21, 22, term=4))
    async with opened(tmp_path) as (disk, _):
        await save(disk, snapshot(20, term=3))
    assert len(segments(tmp_path)) == 1


# Rotation


async def test_rotation_under_load_loses_nothing_and_ends_the_old_key(tmp_path: Path) -> None:
    """RAF 189, with a restart between every two steps now and then."""
    rng = random.Random(189)
    written: list[Entry] = []
    kept = 0
    for _ in range(12):
        async with opened(tmp_path) as (disk, stored):
            assert stored.entries == tuple(written[kept:])
            for _ in range(rng.randrange(12)):
                match rng.randrange(6):
                    case 0:
                        before = disk.keyring.current_id
                        await disk.rotate_key()
                        assert disk.keyring.current_id != before
                    case 1 if len(written) > kept:
                        kept = rng.randrange(kept + 1, len(written) + 1)
                        await save(disk, snapshot(kept))
                    case _:
                        more = entries(len(written) + 1, len(written) + 3, size=900)
                        await disk.write(HardState(1, "m1", len(written)), more)
                        written += more
    assert (await reopened(tmp_path)).entries == tuple(written[kept:])


async def test_an_old_key_goes_with_the_last_file_under_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
        old = disk.keyring.current_id
        await disk.rotate_key()
        await disk.write(None, entries(4, 6))
        assert old in disk.keyring.key_ids
        await save(disk, snapshot(2))  # entry 3 is still in the segment under the old key
        assert old in disk.keyring.key_ids
        await save(disk, snapshot(3))
        assert disk.keyring.key_ids == (disk.keyring.current_id,)
    assert (await reopened(tmp_path)).entries == tuple(entries(4, 6))


async def test_the_old_key_is_needed_after_a_crash_between_new_key_and_new_segment(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
    keyring = Keyring(tmp_path / "keyring")
    keyring.load()
    keyring.rotate()
    async with opened(tmp_path) as (disk, stored):
        assert stored.entries == tuple(entries(1, 3))
        await disk.write(None, entries(4, 4))
    newest = read_header(scan(segments(tmp_path)[-1].read_bytes()).records[0])
    assert newest.key_id == keyring.current_id
    assert (await reopened(tmp_path)).entries == tuple(entries(1, 4))


def test_a_segment_by_itself_says_which_key_it_needs(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    log = Segments(tmp_path, "m1", SMALL, keyring)
    log.append([entry_record(entry) for entry in entries(1, 2)])
    log.close()
    header = read_header(scan(segments(tmp_path)[0].read_bytes()).records[0])
    assert (header.version, header.key_id) == (VERSION, keyring.current_id)
    again = Segments(tmp_path, "m1", SMALL, Keyring(tmp_path / "other"))
    with pytest.raises(KeyMissing):
        again.load(Replay())
    again.close()


# Snapshots


STATE = random.Random(4).randbytes(700)
FRAME = 256


def write_snapshot(folder: Path, keyring: Keyring, index: int = 5) -> Path:
    """Three frames."""
    meta = snapshot(index).meta
    path = folder / f"snapshot-{index:016x}-{1:016x}"
    writer = SnapshotWriter(folder / "snapshot.tmp", meta, keyring, frame_bytes=FRAME)
    writer.add(STATE)
    writer.finish(path)
    return path


def read_snapshot(path: Path, keyring: Keyring) -> bytes:
    with SnapshotReader(path, keyring) as reader:
        return b"".join(reader.pieces())


def test_a_snapshot_is_sealed_frame_by_frame_and_read_from_any_place(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    path = write_snapshot(tmp_path, keyring)
    content = path.read_bytes()
    assert not [at for at in range(0, 690, 10) if STATE[at : at + 10] in content]
    assert read_snapshot(path, keyring) == STATE
    with SnapshotReader(path, keyring) as reader:
        for offset, length in ((0, 700), (250, 20), (512, 188), (699, 5), (700, 1)):
            assert reader.read(offset, length) == STATE[offset : offset + length]


def test_every_changed_byte_and_every_truncation_of_a_snapshot_is_named(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    path = write_snapshot(tmp_path, keyring)
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0x20
        for damaged in (bytes(changed), content[:position]):
            path.write_bytes(damaged)
            with pytest.raises(LogDamaged, match=path.name):
                read_snapshot(path, keyring)


def test_a_snapshot_of_another_keyring_is_no_damage(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path, Keyring(tmp_path / "keyring"))
    other = Keyring(tmp_path / "other")
    other.rotate()
    with pytest.raises(KeyMissing, match=r"snapshot-0+5-0+1 is sealed with data key"):
        read_snapshot(path, other)


def test_frames_cannot_be_moved_left_out_or_taken_from_another_snapshot(tmp_path: Path) -> None:
    """With all CRCs right."""
    keyring = Keyring(tmp_path / "keyring")
    path = write_snapshot(tmp_path, keyring)
    other = write_snapshot(tmp_path, keyring, 6).read_bytes()
    content = path.read_bytes()
    size, seed = struct.unpack_from(">II", content, 16)
    begin, step = 24 + size, 8 + FRAME + 28
    frames = [content[begin + 8 + at : begin + step + at] for at in (0, step)]
    [other_size] = struct.unpack_from(">I", other, 16)
    foreign = other[24 + other_size + 8 : 24 + other_size + step]

    def with_frame(number: int, stored: bytes) -> bytes:
        crc = zlib.crc32(stored, zlib.crc32(struct.pack(">QI", number, seed)))
        at = begin + number * step
        return content[:at] + struct.pack(">II", len(stored), crc) + stored + content[at + step :]

    assert with_frame(1, frames[1]) == content
    end = struct.pack(">QI", FRAME, zlib.crc32(STATE[:FRAME])) + content[-32:-4]
    shorter = content[: begin + step] + end + struct.pack(">I", zlib.crc32(end, seed))
    for forged in (with_frame(1, frames[0]), with_frame(0, foreign), shorter):
        path.write_bytes(forged)
        with pytest.raises(SealBroken, match="at byte"):
            read_snapshot(path, keyring)


def test_snapshots_of_before_sealing_are_read(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    meta = snapshot(5, data=STATE).meta
    path = tmp_path / "snapshot"
    one = msgspec.msgpack.encode(meta)
    head = b"SHOALSNAPSHOT 1\n" + struct.pack(">II", len(one), zlib.crc32(one))
    path.write_bytes(head + one + STATE)
    assert read_snapshot(path, keyring) == STATE
    two = msgspec.msgpack.encode((meta.index, meta.term, meta.configuration, 1024))
    seed = zlib.crc32(two)
    frame = zlib.crc32(STATE, zlib.crc32(struct.pack(">QI", 0, seed)))
    end = struct.pack(">QI", len(STATE), zlib.crc32(STATE))
    path.write_bytes(
        b"SHOALSNAPSHOT 2\n" + struct.pack(">II", len(two), seed) + two
        + struct.pack(">II", len(STATE), frame) + STATE
        + end + struct.pack(">I", zlib.crc32(end, seed))
    )  # fmt: skip
    assert read_snapshot(path, keyring) == STATE


async def test_a_snapshot_written_again_over_itself_keeps_its_key(tmp_path: Path) -> None:
    """The same entry, sealed with a newer key: the older must not take the newer with it."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
        await save(disk, snapshot(3))
        await disk.rotate_key()
        await save(disk, snapshot(3))
        await disk.rotate_key()
        await disk.write(None, entries(4, 4))
        await save(disk, snapshot(3))
    assert (await reopened(tmp_path)).snapshot == snapshot(3).meta


async def test_a_key_that_lay_open_gets_a_successor_together_with_the_lock(tmp_path: Path) -> None:
    """RAF 189, SEC 216, 217: no crash leaves a locked keyring whose current key was seen."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
        open_key = disk.keyring.current_id
        guard = LockedGuard(new_unlock_key(random.Random(1)))
        assert disk.keyring.set_guard(guard)
        assert disk.keyring.current_id != open_key
        await disk.write(None, entries(4, 4))
    newest = read_header(scan(segments(tmp_path)[-1].read_bytes()).records[0])
    assert newest.key_id != open_key
    async with opened(tmp_path, keyring=Keyring(tmp_path / "keyring", guard)) as (disk, stored):
        assert stored.entries == tuple(entries(1, 4))
        await save(disk, snapshot(4))
        assert open_key not in disk.keyring.key_ids


async def test_the_first_snapshot_under_a_new_key_ends_the_old_one(tmp_path: Path) -> None:
    """RAF 189: old key removed only after a new snapshot, and with it."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
        for index in (2, 3):
            await save(disk, snapshot(index))
        old = disk.keyring.rotate() and disk.keyring.key_ids[0]
        assert old in disk.keyring.key_ids
        await save(disk, snapshot(3))
        assert disk.keyring.key_ids == (disk.keyring.current_id,)
        assert len(snapshots(tmp_path)) == 1
    assert (await reopened(tmp_path)).snapshot == snapshot(3).meta
