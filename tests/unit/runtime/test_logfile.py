"""Frames on disk: rotation, torn ends, full disks."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.runtime import logfile, record


def read(path: Path) -> list[tuple[int, int, bytes]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [(frame.time_ns, frame.stream, frame.data) for frame in logfile.frames(fd)]
    finally:
        os.close(fd)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = logfile.Writer(str(path), 0, 1)
    writer.write(1, b"out", 10)
    writer.write(2, b"", 11)
    writer.close()
    writer = logfile.Writer(str(path), 0, 1)
    writer.write(2, b"err\n", 12)
    writer.close()
    assert read(path) == [(10, 1, b"out"), (11, 2, b""), (12, 2, b"err\n")]


@pytest.mark.parametrize("files", [1, 3])
def test_rotation_keeps_the_newest(tmp_path: Path, files: int) -> None:
    path = tmp_path / "log"
    writer = logfile.Writer(str(path), 100, files)
    for number in range(20):
        writer.write(1, b"%03d" % number * 10, number)
    writer.close()
    names = sorted(os.listdir(tmp_path))
    assert len(names) == files
    found = [time for name in sorted(names, reverse=True) for time, _, _ in read(tmp_path / name)]
    assert found == list(range(20 - len(found), 20))
    assert all((tmp_path / name).stat().st_size <= 120 for name in names)


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 300))
def test_a_torn_end_is_cut_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], keep: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    writer = logfile.Writer(str(path), 0, 1)
    ends = [0]
    for number, chunk in enumerate(chunks):
        writer.write(1, chunk, number)
        ends.append(path.stat().st_size)
    writer.close()
    os.truncate(path, min(keep, ends[-1]))
    logfile.repair(str(path))
    whole = max(index for index, end in enumerate(ends) if end <= keep)
    assert [data for _, _, data in read(path)] == chunks[:whole]
    assert path.stat().st_size == ends[whole]


def test_records(tmp_path: Path) -> None:
    own = record.Record(os.getpid(), record.start_time(os.getpid()), record.boot_id(), 5)
    record.save(str(tmp_path), own)
    assert record.load(str(tmp_path)) == own
    assert record.lives(own)
    assert not record.lives(own._replace(start_time=own.start_time + 1))
    assert not record.lives(own._replace(boot_id="another"))
    assert not record.lives(own._replace(finished_ns=1))
    (tmp_path / record.NAME).write_text("{")
    assert record.load(str(tmp_path)) is None
    record.forget(str(tmp_path))
    record.forget(str(tmp_path))
