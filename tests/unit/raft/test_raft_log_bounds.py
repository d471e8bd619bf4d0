"""How much of the log is kept after a snapshot: bounded in entries and in bytes."""

import pytest

from manager.raft.log import Log
from manager.raft.message import Entry, EntryKind


def log_of(*sizes: int) -> Log:
    """A log whose entries 1, 2 … have these sizes, all of them applied."""
    entries = [
        Entry(index, 1, EntryKind.DATA, b"x" * size) for index, size in enumerate(sizes, start=1)
    ]
    log = Log(0, 0, None, entries)
    log.commit = log.applied = len(entries)
    return log


@pytest.mark.parametrize(
    ("entries_max", "bytes_max", "base"),
    [
        pytest.param(10, 1000, 0, id="all of a small log"),
        pytest.param(2, 1000, 3, id="so many entries"),
        pytest.param(10, 25, 3, id="so many bytes"),
        pytest.param(10, 5, 5, id="nothing, when one entry is too large"),
        pytest.param(0, 1000, 5, id="nothing, when none is wanted"),
    ],
)
def test_what_is_kept(entries_max: int, bytes_max: int, base: int) -> None:
    log = log_of(10, 10, 10, 10, 10)
    log.compact(log.tail(5, entries_max, bytes_max))
    assert log.base_index == base
    assert log.bytes == 10 * (5 - base)


def test_large_entries_cannot_pile_up() -> None:
    """A leader's batches may be megabytes: a thousand of them must not stay in memory."""
    log = log_of(*[1_000] * 50)
    log.compact(log.tail(50, 1_000, 8_000))
    assert log.bytes == 8_000
