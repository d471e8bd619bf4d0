"""The log and snapshots on real files: what was acknowledged comes back, or damage is named.

Behaviours 183, 188 and 190.
"""

import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import Conflict
from manager.raft.disk import Disk, FileDisk, Stored
from manager.raft.errors import DiskFailed, LogDamaged, SnapshotGone
from manager.raft.keyring import Keyring
from manager.raft.message import Entry, EntryKind, HardState
from manager.raft.wal import SECTOR, scan
from tests.support.raft_disk import FakeDisk, Kept, Platter
from tests.support.raft_files import (
    SMALL,
    entries,
    install,
    opened,
    reopened,
    save,
    segments,
    snapshot,
    snapshots,
    state_in,
    write_plain_log,
)

TINY = 4096  # bytes of a segment, where every byte of a log is tried


# One suite for the real disk and the fake one of the simulation

Reopen = Callable[[], Disk]


@pytest.fixture(params=["files", "fake"])
def open_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    platter = Platter()

    def reopen() -> Disk:
        if request.param == "files":
            return FileDisk(tmp_path, "m1", segment_bytes=SMALL)
        return FakeDisk(platter, random.Random(1))

    return reopen


async def stored_after(open_disk: Reopen, *steps: object) -> Stored:
    """What the next start finds after `steps`: writes (state, entries) and snapshots."""
    disk = open_disk()
    assert (await disk.load()).is_empty
    for step in steps:
        match step:
            case ("install", Kept() as received):
                await install(disk, received)
            case (state, new):
                await disk.write(state, new)  # type: ignore[arg-type]
            case Kept():
                await save(disk, step)
    await disk.close()
    disk = open_disk()
    stored = await disk.load()
    if stored.snapshot:
        assert await state_in(disk, stored.snapshot) == b"the state"
    await disk.close()
    return stored


async def test_what_was_written_comes_back(open_disk: Reopen) -> None:
    stored = await stored_after(
        open_disk, (HardState(1, "m1", 0), entries(1, 3)), (HardState(2, "m2", 3), ())
    )
    assert stored == Stored(HardState(2, "m2", 3), tuple(entries(1, 3)))


async def test_a_later_write_replaces_the_entries_from_its_first_on(open_disk: Reopen) -> None:
    stored = await stored_after(open_disk, (None, entries(1, 9)), (None, entries(4, 5, term=2)))
    assert stored.entries == (*entries(1, 3), *entries(4, 5, term=2))


async def test_entries_before_a_snapshot_are_not_needed(open_disk: Reopen) -> None:
    stored = await stored_after(open_disk, (None, entries(1, 9)), snapshot(6))
    assert stored.snapshot == snapshot(6).meta
    assert stored.entries == tuple(entries(7, 9))


async def test_a_received_snapshot_replaces_a_log_that_differs(open_disk: Reopen) -> None:
    received = snapshot(6, term=3)
    stored = await stored_after(
        open_disk, (None, entries(1, 9)), ("install", received), (None, entries(7, 8, term=3))
    )
    assert stored.snapshot == received.meta
    assert stored.entries == tuple(entries(7, 8, term=3))


async def test_parts_of_a_snapshot_can_be_read_until_it_is_replaced(open_disk: Reopen) -> None:
    disk = open_disk()
    await disk.load()
    await save(disk, snapshot(5, data=b"0123456789"))
    meta = snapshot(5, data=b"0123456789").meta
    assert await disk.read_snapshot(meta, 3, 4) == b"3456"
    await save(disk, snapshot(6))
    assert await disk.read_snapshot(meta, 8, 4) == b"89"  # the one before is kept
    await save(disk, snapshot(7))
    with pytest.raises(SnapshotGone):
        await disk.read_snapshot(meta, 0, 4)
    await disk.close()


# Files


async def test_a_log_over_many_segments_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        for index in range(1, 101):
            await disk.write(HardState(1, "m1", index - 1), entries(index, index, size=700))
    names = segments(tmp_path)
    assert len(names) > 8
    async with opened(tmp_path) as (disk, stored):
        assert stored == Stored(HardState(1, "m1", 99), tuple(entries(1, 100, size=700)))
        await save(disk, snapshot(95))
        await disk.write(None, entries(101, 101))
    left = segments(tmp_path)
    assert left
    assert left == names[-len(left) :]
    assert len(left) < 3
    stored = await reopened(tmp_path)
    assert stored.hard_state == HardState(1, "m1", 99)
    assert [entry.index for entry in stored.entries] == [96, 97, 98, 99, 100, 101]


async def test_an_entry_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    big = [Entry(1, 1, EntryKind.DATA, random.Random(1).randbytes(5 * SMALL))]
    zeros = [Entry(2, 1, EntryKind.DATA, bytes(5 * SMALL))]
    async with opened(tmp_path) as (disk, _):
        await disk.write(None, big)
        await disk.write(None, zeros)
    assert (await reopened(tmp_path)).entries == (*big, *zeros)


async def test_files_are_for_their_owner_only_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / "log-0000000000000009.wal.tmp").write_bytes(b"half")
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 1))
        await save(disk, snapshot(1))
    modes = modes_in(tmp_path)
    assert set(modes.values()) == {0o600}
    assert not [name for name in modes if name.endswith(".tmp")]


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_a_folder_serves_one_daemon_at_a_time(tmp_path: Path) -> None:
    async with opened(tmp_path):
        other = FileDisk(tmp_path, "m1")
        with pytest.raises(Conflict, match="in use"):
            await other.load()
        await other.close()


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as (disk, _):
        await disk.write(None, entries(1, 1))

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fdatasync", full)
        with pytest.raises(DiskFailed, match="No space left on device"):
            await disk.write(None, entries(2, 2))


# Damage


async def small_log(folder: Path, *, plain: bool = False) -> Stored:
    """Records that cross sectors, a long run of zeros, one that ends with them.

    Sealed, or of version 1 with two sealed entries after it.
    """
    written = [
        *entries(1, 3, size=300),
        Entry(4, 1, EntryKind.DATA, b"z" * 700 + bytes(600)),
        *entries(5, 6, term=2, size=1000),
        Entry(7, 2, EntryKind.DATA, b"end" + bytes(150)),
    ]
    if plain:
        write_plain_log(folder, HardState(2, "m1", 4), written[:-2], TINY)
        written = written[-2:]
    async with opened(folder, segment_bytes=TINY) as (disk, _):
        for entry in written:
            await disk.write(HardState(entry.term, "", entry.index - 1), [entry])
    return await reopened(folder)


@pytest.fixture(params=["sealed", "plain"])
async def small(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    return await small_log(tmp_path, plain=request.param == "plain")


async def is_refused(folder: Path, whole: Stored, where: str) -> bool:
    """Whether the log in `folder` is refused; if not, it is `whole`."""
    try:
        found = await reopened(folder)
    except LogDamaged as error:
        return str(folder) in str(error) and "at byte" in str(error)
    assert found == whole, where
    return False


async def test_one_changed_byte_never_shortens_the_log(tmp_path: Path, small: Stored) -> None:
    assert len(small.entries) == 7
    paths = segments(tmp_path)
    assert len(paths) in (2, 3)
    rng = random.Random(7)
    refused = 0
    for path in paths:
        content = path.read_bytes()
        end = scan(content).end
        for position in range(min(end + SECTOR, len(content))):
            damaged = bytearray(content)
            damaged[position] ^= rng.randrange(1, 256)
            path.write_bytes(damaged)
            refused += await is_refused(tmp_path, small, f"{path.name} at {position}")
        path.write_bytes(content)
    assert refused > 4500


async def test_a_byte_that_became_zero_never_shortens_the_log(
    tmp_path: Path, small: Stored
) -> None:
    for path in segments(tmp_path):
        content = path.read_bytes()
        for position in range(scan(content).end):
            damaged = bytearray(content)
            damaged[position] = 0
            path.write_bytes(damaged)
            await is_refused(tmp_path, small, f"{path.name} at {position}")
        path.write_bytes(content)


@pytest.mark.usefixtures("small")
async def test_a_shortened_file_is_refused(tmp_path: Path) -> None:
    for path in segments(tmp_path):
        content = path.read_bytes()
        end = scan(content).end + 2
        for length in (*range(min(end, len(content))), *range(end, len(content), 97)):
            path.write_bytes(content[:length])
            with pytest.raises(LogDamaged):
                await reopened(tmp_path)
        path.write_bytes(content)


async def test_a_write_torn_by_a_power_failure_is_cut_off(tmp_path: Path) -> None:
    """RAF 190: any of its sectors may be missing; what was synced before is all there."""
    rng = random.Random(3)
    for round_number in range(300):
        folder = tmp_path / f"{round_number}"
        acknowledged = entries(1, rng.randint(1, 4), size=rng.randrange(900))
        count, size = rng.randint(1, 4), rng.randrange(900)
        unsynced = entries(len(acknowledged) + 1, len(acknowledged) + count, size=size)
        async with opened(folder) as (disk, _):
            await disk.write(HardState(1, "m1", 0), acknowledged)
            [path] = segments(folder)
            before = path.read_bytes()
            await disk.write(None, unsynced)
        after = bytearray(path.read_bytes())
        for sector in range(0, len(after), SECTOR):
            if rng.random() < 0.4:
                after[sector : sector + SECTOR] = before[sector : sector + SECTOR]
        path.write_bytes(after)
        found = (await reopened(folder)).entries
        possible = (*acknowledged, *unsynced)
        assert len(found) >= len(acknowledged)
        assert found == possible[: len(found)]
        # And it can go on from there.
        async with opened(folder) as (disk, _):
            await disk.write(None, entries(len(found) + 1, len(found) + 1, term=2))
        assert len((await reopened(folder)).entries) == len(found) + 1


async def test_every_subset_of_the_last_writes_sectors_may_be_missing(tmp_path: Path) -> None:
    acknowledged = entries(1, 2, size=300)
    unsynced = [*entries(3, 5, size=700), Entry(6, 1, EntryKind.DATA, bytes(900))]
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), acknowledged)
        [path] = segments(tmp_path)
        before = path.read_bytes()
        await disk.write(HardState(2, "m1", 2), unsynced)
    after = path.read_bytes()
    changed = [
        at for at in range(0, SMALL, SECTOR) if after[at : at + SECTOR] != before[at : at + SECTOR]
    ]
    assert 7 <= len(changed) <= 10
    whole = (*acknowledged, *unsynced)
    lengths = set()
    for subset in range(1 << len(changed)):
        torn = bytearray(after)
        for bit, at in enumerate(changed):
            if subset >> bit & 1:
                torn[at : at + SECTOR] = before[at : at + SECTOR]
        path.write_bytes(torn)
        found = (await reopened(tmp_path)).entries
        assert len(found) >= len(acknowledged)
        assert found == whole[: len(found)]
        lengths.add(len(found))
    assert lengths == set(range(2, 7))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(lambda paths: paths[0].unlink(), "starts at entry", id="first segment gone"),
        pytest.param(lambda paths: paths[1].unlink(), "does not follow", id="middle segment gone"),
        pytest.param(lambda paths: paths[0].rename(paths[0].with_name("log-0000000000000000.wal")),
                     "written as segment 1", id="segment renamed"),
    ],
)  # fmt: skip
async def test_missing_segments_are_noticed(
    tmp_path: Path, harm: Callable[[list[Path]], object], message: str
) -> None:
    async with opened(tmp_path) as (disk, _):
        for index in range(1, 40):
            await disk.write(None, entries(index, index, size=700))
    harm(segments(tmp_path))
    with pytest.raises(LogDamaged, match=message):
        await reopened(tmp_path)


async def test_a_damaged_or_missing_snapshot_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (disk, _):
        await disk.write(None, entries(1, 9))
        await install(disk, snapshot(20, term=2))
        await disk.write(None, entries(21, 22, term=2))
    path = snapshots(tmp_path)[0]
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(LogDamaged):
            await reopened(tmp_path)
    path.unlink()
    with pytest.raises(LogDamaged, match="snapshot of entry 20 is missing"):
        await reopened(tmp_path)


async def test_losing_segments_and_the_newest_snapshot_is_noticed(tmp_path: Path) -> None:
    """What is left fits together, and would be a shorter log: the commit index tells."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 5))
        await save(disk, snapshot(5))
        # As after entries to 20 in segments that are lost with the snapshot of 20.
        await disk.write(HardState(2, "m1", 20), [])
    with pytest.raises(LogDamaged, match="entries 6 to 20 are missing"):
        await reopened(tmp_path)


async def test_another_members_log_is_refused(tmp_path: Path) -> None:
    await small_log(tmp_path)
    with pytest.raises(LogDamaged, match="belongs to member m1"):
        async with opened(tmp_path, "m2"):
            pass


@pytest.mark.parametrize("index", [6, 9, 15])
async def test_a_crash_between_snapshot_and_log_is_survived(tmp_path: Path, index: int) -> None:
    """A received snapshot is on disk, but the log does not know yet that it was replaced."""
    received = snapshot(index, term=3)
    after = entries(index + 1, index + 2, term=3)
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 9))
    keyring = Keyring(tmp_path / "keyring")
    async with opened(tmp_path / "other", keyring=keyring) as (other, _):
        await save(other, received)
    [path] = snapshots(tmp_path / "other")
    path.rename(tmp_path / path.name)
    async with opened(tmp_path) as (disk, stored):
        assert stored == Stored(HardState(1, "m1", 0), (), received.meta)
        await disk.write(None, after)
    assert (await reopened(tmp_path)).entries == tuple(after)
