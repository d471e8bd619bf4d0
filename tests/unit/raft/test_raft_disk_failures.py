"""Disks that fill up, fail to sync, or stop at any step: what was acknowledged is there at the
next start, nothing half is, and no failed sync is tried again.
"""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from manager.raft import files
from manager.raft.disk import FileDisk
from manager.raft.errors import DiskFailed, LogDamaged
from manager.raft.keyring import Keyring
from manager.raft.message import Entry, EntryKind, HardState
from manager.raft.segments import Segments
from manager.raft.spares import SPARES_MAX, Spares
from manager.raft.wal import Replay, entry_record
from tests.support.raft_files import SMALL, entries, opened, reopened, save, segments, snapshot


class FailingFiles:
    """Lets so many bytes and so many syncs through, then fails."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self.syncs_left: int | None = None
        self.syncs_failed = 0
        self._pwrite, self._write = os.pwrite, os.write
        self._fdatasync, self._fsync = os.fdatasync, os.fsync
        patch.setattr("os.pwrite", self.pwrite)
        patch.setattr("os.write", self.write)
        patch.setattr("os.fdatasync", lambda handle: self.sync(handle, self._fdatasync))
        patch.setattr("os.fsync", lambda handle: self.sync(handle, self._fsync))

    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> int:
        if not any(data):  # zeros over what is there need no room
            return self._pwrite(handle, data, offset)
        return self._pwrite(handle, data[: self._take(len(data))], offset)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        return self._write(handle, data[: self._take(len(data))])

    def sync(self, handle: int, real: Callable[[int], None]) -> None:
        if self.syncs_left is not None:
            if self.syncs_left == 0:
                self.syncs_failed += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.syncs_left -= 1
        real(handle)

    def _take(self, wanted: int) -> int:
        if self.room is None:
            return wanted
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(wanted, self.room)
        self.room -= taken
        return taken


async def write_on(
    disk: FileDisk, acknowledged: list[Entry], before: Callable[[int], None] = lambda index: None
) -> None:
    """Two entries at a time, until it fails; noted when acknowledged."""
    while True:
        index = len(acknowledged) + 1
        before(index)
        more = entries(index, index + 1, size=800)
        await disk.write(None, more)
        acknowledged += more


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingFiles:
    return FailingFiles(monkeypatch)


async def test_a_disk_that_fills_up_at_any_byte_leaves_no_half_entry(
    tmp_path: Path, failing: FailingFiles
) -> None:
    """Also at byte boundaries, where a power failure cannot cut."""
    for room in (*range(1, 2600, 61), *range(2600, 14_000, 701)):
        folder = tmp_path / f"{room}"
        acknowledged: list[Entry] = []
        failing.room = None
        async with opened(folder) as (disk, _):
            await disk.write(HardState(1, "m1", 0), entries(1, 1))
            acknowledged += entries(1, 1)
            failing.room = room
            with pytest.raises(DiskFailed, match=r"No space left.* Make room"):
                await write_on(disk, acknowledged)
        failing.room = None
        async with opened(folder) as (disk, stored):
            assert stored.entries == tuple(acknowledged), room
            more = entries(len(acknowledged) + 1, len(acknowledged) + 1, term=2)
            await disk.write(None, more)
        assert (await reopened(folder)).entries == (*acknowledged, *more)


async def test_a_sync_that_failed_is_never_tried_again(
    tmp_path: Path, failing: FailingFiles
) -> None:
    """The kernel forgets what it could not write; a second sync would succeed, and lie."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
        failing.syncs_left = 0
        with pytest.raises(DiskFailed, match="Input/output error"):
            await disk.write(None, entries(4, 4))
        failing.syncs_left = None
        assert failing.syncs_failed == 1
        before = segments(tmp_path)[0].read_bytes()
        for _ in range(2):
            with pytest.raises(DiskFailed, match="an earlier write has failed"):
                await disk.write(None, entries(5, 5))
        with pytest.raises(DiskFailed):
            await disk.rotate_key()
        assert segments(tmp_path)[0].read_bytes() == before
    found = (await reopened(tmp_path)).entries
    assert found in (tuple(entries(1, 3)), tuple(entries(1, 4)))


async def test_what_is_found_at_the_start_is_synced_before_it_counts(
    tmp_path: Path, failing: FailingFiles
) -> None:
    """Killed before its sync, a write is in memory only; it must not be told to the leader."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
    failing.syncs_left = 0
    with pytest.raises(DiskFailed):
        await reopened(tmp_path)
    failing.syncs_left = None
    assert len((await reopened(tmp_path)).entries) == 3


@pytest.mark.parametrize("budget", range(6))
async def test_going_to_the_next_segment_survives_a_failure_at_every_sync(
    tmp_path: Path, failing: FailingFiles, budget: int
) -> None:
    acknowledged = entries(1, 1)

    def full_at(index: int) -> None:
        if index == 8:  # the next entries do not fit into the first segment
            failing.syncs_left = budget

    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), acknowledged)
        with pytest.raises(DiskFailed):
            await write_on(disk, acknowledged, full_at)
    failing.syncs_left = None
    found = (await reopened(tmp_path)).entries
    assert list(found[: len(acknowledged)]) == acknowledged
    assert list(found[1:]) == entries(2, len(found), size=800)


async def test_any_of_the_removed_segments_may_come_back(tmp_path: Path) -> None:
    """A power failure undoes any of several removals; what came back holds nothing of use."""
    rng = random.Random(2)
    async with opened(tmp_path) as (disk, _):
        for index in range(1, 80):
            await disk.write(HardState(1, "m1", index - 1), entries(index, index, size=900))
        old = {path: path.read_bytes() for path in segments(tmp_path)}
        await save(disk, snapshot(60))
        kept = segments(tmp_path)
    whole = await reopened(tmp_path)
    assert len(whole.entries) == 19
    gone = [path for path in old if path not in kept]
    assert len(gone) > 5
    for _ in range(40):
        for path in gone:
            if rng.random() < 0.5:
                path.write_bytes(old[path])
        assert await reopened(tmp_path) == whole
        assert segments(tmp_path)[-len(kept) :] == kept
        async with opened(tmp_path) as (disk, _):
            await save(disk, snapshot(60))
        assert segments(tmp_path) == kept
    kept[0].unlink()
    gone[0].write_bytes(old[gone[0]])
    with pytest.raises(LogDamaged, match="it goes on at entry"):
        await reopened(tmp_path)


# Spares


def test_spares_are_zeros_and_at_most_two(tmp_path: Path) -> None:
    spares = Spares(tmp_path, SMALL)
    old = []
    for number in range(5):
        old.append(tmp_path / f"old-{number}")
        old[-1].write_bytes(b"\xff" * SMALL)
    spares.recycle(old)
    spares._thread.shutdown()
    taken = [spares.take() for _ in range(SPARES_MAX + 1)]
    assert taken[SPARES_MAX] is None
    for path in taken[:SPARES_MAX]:
        assert path is not None
        assert path.read_bytes() == bytes(SMALL)
        assert path.suffix == ".tmp"
    assert len(list(tmp_path.iterdir())) == SPARES_MAX
    spares.close()


def test_an_old_segment_is_not_touched_before_its_name_is_gone_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure brings back the name, with zeros in it."""
    steps: list[str] = []
    real_sync, real_write = files.sync_folder, files.write_at
    monkeypatch.setattr(files, "sync_folder", lambda at: (steps.append("names"), real_sync(at)))
    monkeypatch.setattr(files, "write_at", lambda *args: (steps.append("zeros"), real_write(*args)))
    old = tmp_path / "old"
    old.write_bytes(b"\xff" * SMALL)
    spares = Spares(tmp_path, SMALL)
    spares.recycle([old])
    spares._thread.shutdown()
    assert steps == ["names", "zeros"]
    spares.close()


def test_a_full_disk_costs_the_spare_and_nothing_else(
    tmp_path: Path, failing: FailingFiles, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spares = Spares(tmp_path, SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        spares.want()
        spares._thread.shutdown()
    assert spares.take() is None
    assert not list(tmp_path.iterdir())
    assert "make room on its disk" in caplog.text
    spares.close()


def test_the_next_segment_is_made_from_a_spare_and_old_ones_return(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    log = Segments(tmp_path, "m1", SMALL, keyring)
    used: set[int] = set()
    index = 0
    for _ in range(30):
        for _ in range(6):
            index += 1
            log.append([entry_record(entries(index, index, size=900)[0])])
        log.prune(index - 5)
        log._spares._thread.submit(lambda: None).result()  # behind all filling
        used |= {path.stat().st_ino for path in segments(tmp_path)}
        assert len(list(tmp_path.iterdir())) <= 3 + SPARES_MAX
    log.close()
    found = Replay()
    again = Segments(tmp_path, "m1", SMALL, keyring)
    again.load(found)
    again.close()
    assert [entry.index for entry in found.entries][-5:] == list(range(index - 4, index + 1))
    assert len(used) < 12


async def test_a_spare_half_made_into_a_segment_is_no_segment(tmp_path: Path) -> None:
    """The crash comes between the header in it and its name."""
    async with opened(tmp_path) as (disk, _):
        await disk.write(HardState(1, "m1", 0), entries(1, 3))
    [path] = segments(tmp_path)
    (tmp_path / "spare-1.tmp").write_bytes(path.read_bytes())
    assert len((await reopened(tmp_path)).entries) == 3
    assert not (tmp_path / "spare-1.tmp").exists()


async def test_random_work_over_recycled_segments_comes_back(tmp_path: Path) -> None:
    rng = random.Random(11)
    last = kept = 0
    log: dict[int, Entry] = {}
    for _ in range(8):
        async with opened(tmp_path) as (disk, stored):
            assert stored.entries == tuple(log[index] for index in range(kept + 1, last + 1))
            for _ in range(40):
                last += 1
                log[last] = Entry(last, 1, EntryKind.DATA, rng.randbytes(rng.randrange(1500)))
                await disk.write(HardState(1, "m1", last - 1), [log[last]])
                if rng.random() < 0.2:
                    kept = rng.randrange(kept, last) + 1
                    await save(disk, snapshot(kept))
