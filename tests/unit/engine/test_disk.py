"""Containers on disk: what a crash leaves while one is made."""

from pathlib import Path

import pytest

from worker.engine import disk
from worker.engine.disk import RECORD, Disk


def test_half_a_record_is_cleared_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "containers" / ("a" * 64)
    folder.mkdir(parents=True)
    disk.create(folder / RECORD, b'{"id":"aaaa', sync=True)
    assert Disk(tmp_path / "containers").load() == []
    assert not folder.exists()


def test_a_new_file_takes_nobodys_place(tmp_path: Path) -> None:
    disk.create(tmp_path / RECORD, b"one", sync=False)
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / RECORD, b"two", sync=False)
    assert (tmp_path / RECORD).read_bytes() == b"one"
