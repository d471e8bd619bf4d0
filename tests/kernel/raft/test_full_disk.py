"""The log on real file systems that fill up: nothing half is taken for an entry, and with room
made a restart goes on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager.raft.disk import FileDisk
from manager.raft.errors import DiskFailed
from manager.raft.message import Entry, HardState
from tests.support.raft_files import entries, save, snapshot

pytestmark = pytest.mark.root
SEGMENT = 64 << 10


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Room for a few segments, with a file to remove that makes more."""
    at = tmp_path / "disk"
    at.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)]
    else:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("ext4 needs e2fsprogs")
        image = tmp_path / "image"
        image.write_bytes(b"")
        os.truncate(image, 2 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(at)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine cannot mount: {mounted.stderr.strip()}")
    try:
        (at / "filler").write_bytes(bytes(256 << 10))
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


async def fill(disk: FileDisk, written: list[Entry]) -> None:
    """Until it is full."""
    while True:
        first = len(written) + 1
        more = entries(first, first + 2, size=900)
        await disk.write(HardState(1, "m1", len(written)), more)
        written += more


async def test_a_full_disk_keeps_what_was_acknowledged(small_disk: Path) -> None:
    folder = small_disk / "raft"
    written: list[Entry] = []
    disk = FileDisk(folder, "m1", segment_bytes=SEGMENT)
    await disk.load()
    with pytest.raises(DiskFailed, match="No space left on device"):
        await fill(disk, written)
    await disk.close()
    assert len(written) > 100
    for _ in range(3):  # it can be read, and ends again, as long as there is no room
        disk = FileDisk(folder, "m1", segment_bytes=SEGMENT)
        stored = await disk.load()
        assert stored.entries == tuple(written)
        with pytest.raises(DiskFailed, match="No space left on device"):
            await fill(disk, written)
        await disk.close()
    (small_disk / "filler").unlink()
    disk = FileDisk(folder, "m1", segment_bytes=SEGMENT)
    assert (await disk.load()).entries == tuple(written)
    more = entries(len(written) + 1, len(written) + 60, size=900)
    await disk.write(None, more)
    await disk.close()
    disk = FileDisk(folder, "m1", segment_bytes=SEGMENT)
    assert (await disk.load()).entries == (*written, *more)
    await disk.close()


async def test_a_snapshot_without_room_leaves_the_log_whole(small_disk: Path) -> None:
    folder = small_disk / "raft"
    disk = FileDisk(folder, "m1", segment_bytes=SEGMENT)
    await disk.load()
    await disk.write(HardState(1, "m1", 0), entries(1, 9))
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(DiskFailed, match="No space left on device"):
        await save(disk, snapshot(9, data=os.urandom(3 << 20)))
    await disk.close()
    assert sorted(path.name for path in folder.iterdir()) == before
    disk = FileDisk(folder, "m1", segment_bytes=SEGMENT)
    assert (await disk.load()).entries == tuple(entries(1, 9))
    await disk.close()
