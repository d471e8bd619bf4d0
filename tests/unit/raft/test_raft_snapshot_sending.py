"""Sending snapshots: when one is taken, how it gets to a follower, how long it is kept for it."""

import zlib
from collections.abc import Callable

import pytest

from manager.raft.config import RaftConfig
from manager.raft.message import (
    AnyMessage,
    Configuration,
    Heartbeat,
    SnapshotChunk,
    SnapshotMeta,
)
from manager.raft.progress import Mode, Progress
from manager.raft.trigger import is_due
from tests.support.raft_cores import Cores, core, without

MIB = 1 << 20
META = SnapshotMeta(9, 2, Configuration(), 100, 0)
DUE = RaftConfig(snapshot_entries=1000, snapshot_log_bytes=32 * MIB, snapshot_stretch_max=4)


@pytest.mark.parametrize(
    ("last_size", "entries", "size"),
    [
        pytest.param(0, 1000, 0, id="the first, by entries"),
        pytest.param(0, 1, 32 * MIB, id="the first, by bytes"),
        pytest.param(64 * MIB, 1000, 0, id="a state that is cheap to write"),
        pytest.param(128 * MIB, 2000, 0, id="twice as many after a larger one"),
        pytest.param(200 * MIB, 1, 100 * MIB, id="half the size of the last"),
        pytest.param(4096 * MIB, 1, 128 * MIB, id="no more than four times"),
        pytest.param(4096 * MIB, 4000, 0, id="nor entries"),
    ],
)
def test_the_larger_the_last_snapshot_the_later_the_next(
    last_size: int, entries: int, size: int
) -> None:
    assert is_due(DUE, entries, size, last_size)
    assert not is_due(DUE, max(entries - 1, 0), max(size - 1, 0), last_size)


def sending() -> Progress:
    """A snapshot of 100 bytes, at most 30 of them on their way."""
    progress = Progress(10, 0, window=4, window_bytes=100, chunks_bytes=30)
    progress.send_snapshot(META, 0)
    return progress


def sent(progress: Progress, now: int = 0) -> list[int]:
    """The offsets of the chunks of ten bytes that may leave now."""
    offsets = []
    while progress.ready:
        offsets.append(progress.offset)
        progress.sent_chunk(min(10, META.size - progress.offset), now)
    return offsets


def test_a_window_of_chunks_is_on_its_way() -> None:
    progress = sending()
    assert sent(progress) == [0, 10, 20]
    assert not sent(progress)
    progress.chunk_wanted(9, 10, 1)
    assert sent(progress) == [30]
    progress.chunk_wanted(9, 40, 1)
    assert sent(progress) == [40, 50, 60]
    progress.chunk_wanted(8, 70, 1)  # of another snapshot
    assert not sent(progress)
    progress.chunk_wanted(9, 70, 1)
    progress.chunk_wanted(9, 100, 1)
    assert not sent(progress)
    progress.accepted(9)
    assert progress.mode is Mode.REPLICATE


def test_after_a_lost_chunk_the_window_is_sent_again_once() -> None:
    progress = sending()
    sent(progress)
    progress.chunk_wanted(9, 10, 1)
    sent(progress)
    for _ in range(3):  # what came behind the lost one
        progress.chunk_wanted(9, 10, 2)
    assert sent(progress) == [10, 20, 30]
    progress.chunk_wanted(9, 10, 3)
    assert not sent(progress)


def test_without_an_answer_chunks_are_sent_again_from_where_the_follower_is() -> None:
    progress = sending()
    sent(progress)
    progress.chunk_wanted(9, 30, 1)
    assert sent(progress, 1) == [30, 40, 50]
    progress.chunk_late(10, 10)
    assert not sent(progress)
    progress.chunk_wanted(9, 0, 10)  # it was started again, or this is an old answer
    assert not sent(progress)
    progress.chunk_late(11, 10)
    assert sent(progress, 11) == [0, 10, 20]


Keep = Callable[[AnyMessage], bool]


def everything(message: AnyMessage) -> bool:
    return True


def no_chunks(message: AnyMessage) -> bool:
    return not isinstance(message, SnapshotChunk)


def take(cores: Cores) -> SnapshotMeta:
    """Let a take a snapshot of what it has applied."""
    raft = cores["a"]
    index = raft.log.applied
    content = b"the state after %d" % index
    meta = SnapshotMeta(
        index,
        raft.log.term(index) or 0,
        raft.log.configuration_at(index),
        len(content),
        zlib.crc32(content),
    )
    cores.snapshots["a"] = content
    raft.snapshot_saved(meta)
    return meta


def write(cores: Cores, count: int) -> None:
    for _ in range(count):
        cores["a"].propose(bytes(10))
        cores.settle(no_chunks)


def behind(**config: int) -> tuple[Cores, SnapshotMeta]:
    """c, which lacks what its leader a has compacted, is to get a snapshot; the chunks are lost."""
    settings = RaftConfig(keep_entries=0, chunk_bytes=4, chunk_window=2, **config)
    cores = Cores(*(core(name, config=settings) for name in "abc"))
    cores.elect("a", without("c"))
    for _ in range(5):
        cores["a"].propose(bytes(10))
    cores.settle(without("c"))
    meta = take(cores)
    cores.tick("c", settings.election_max_ticks)
    for _ in range(4):
        pass_time(cores, 2)
    assert cores["a"].pinned == (meta,)
    return cores, meta


def pass_time(cores: Cores, ticks: int, keep: Keep = no_chunks) -> None:
    for _ in range(ticks):
        cores.tick("a")
        cores.settle(keep)


def mode_of_c(cores: Cores) -> Mode:
    leadership = cores["a"].leadership
    assert leadership
    return leadership.progress["c"].mode


def test_a_slow_follower_does_not_begin_again_with_each_newer_snapshot() -> None:
    cores, meta = behind()
    content = cores.snapshots["a"]
    for _ in range(3):
        write(cores, 5)
        take(cores)
        assert cores["a"].pinned == (meta,)
    cores.snapshots["a"] = content  # the disk has both; this one is asked for
    pass_time(cores, 30, everything)
    assert cores.snapshots["c"] == content
    assert mode_of_c(cores) is Mode.REPLICATE
    assert cores["c"].log.base_index == meta.index
    assert cores["c"].log.commit == cores["a"].log.commit
    assert cores["a"].pinned == ()
    write(cores, 1)
    assert take(cores).index == cores["a"].log.base_index


def test_what_is_kept_for_a_slow_follower_has_a_bound() -> None:
    cores, meta = behind(transfer_log_bytes=65)
    write(cores, 3)
    take(cores)
    assert cores["a"].log.base_index == meta.index
    write(cores, 20)
    last = take(cores)
    assert cores["a"].log.base_index == last.index - 6


def test_a_follower_that_takes_no_chunk_for_long_holds_nothing_back() -> None:
    cores, meta = behind(snapshot_stall_ms=3000)
    write(cores, 5)
    newer = take(cores)
    pass_time(cores, 40)
    assert cores["a"].pinned == (meta,)
    pass_time(cores, 40)
    assert cores["a"].pinned == (newer,)
    pass_time(cores, 30, everything)
    assert cores.snapshots["c"] == cores.snapshots["a"]


def test_who_no_longer_leads_holds_no_snapshot_for_others() -> None:
    cores, _ = behind()
    cores["a"].step(Heartbeat("b", "a", 9, 0, 0))
    assert cores["a"].pinned == ()
