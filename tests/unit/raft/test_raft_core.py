"""The algorithm, case by case; section and figure numbers are those of Ongaro's thesis.

Behaviours 173, 175, 176, 179, 187, 191 and 192.
"""

import random
import zlib

import msgspec
import pytest

from common.errors import Conflict, Invalid, NotFound, NotLeader, Unavailable
from manager.raft.config import RaftConfig
from manager.raft.membership import AddLearner, Promote, Remove, UpdateAddress
from manager.raft.message import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Member,
    ProtocolError,
    Removed,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from manager.raft.progress import Mode
from manager.raft.work import Role
from tests.support.raft_cores import CONFIG, Cores, core, without
from tests.support.raft_world import member


def three(**logs: list[int]) -> Cores:
    return Cores(*(core(name, terms=logs.get(name, [])) for name in "abc"))


def led(**logs: list[int]) -> Cores:
    """Three members, a leading."""
    cores = three(**logs)
    cores.elect("a")
    assert cores["a"].role is Role.LEADER
    return cores


def data(cores: Cores, member_id: str) -> list[bytes]:
    return [entry.data for entry in cores.applied[member_id] if entry.kind is EntryKind.DATA]


# Elections


def test_a_time_out_elects_a_leader_that_all_follow() -> None:
    cores = led()
    assert [raft.leader_id for raft in cores.rafts.values()] == ["a", "a", "a"]
    assert {raft.term for raft in cores.rafts.values()} == {2}


def test_a_vote_is_on_disk_before_it_is_heard_of() -> None:
    voter = core("b")
    voter.step(Vote("a", "b", 2, False, 1, 1))
    ready = voter.ready()
    assert not ready.messages
    assert ready.write is not None
    assert ready.write.hard_state == HardState(2, "a", 1)
    assert ready.write.messages == (VoteReply("b", "a", 2, False, True),)


def test_a_candidate_votes_for_itself_on_disk_before_it_asks() -> None:
    candidate = core("a")
    candidate.leader_id = "b"
    candidate.step(TimeoutNow("b", "a", 1))
    ready = candidate.ready()
    assert ready.write is not None
    assert ready.write.hard_state == HardState(2, "a", 1)
    assert not ready.messages
    assert all(isinstance(message, Vote) for message in ready.write.messages)


def test_one_vote_in_a_term() -> None:
    cores = Cores(core("c", hard_state=HardState(2, "a", 1)))
    cores["c"].step(Vote("b", "c", 2, False, 9, 2))
    cores["c"].step(Vote("a", "c", 2, False, 1, 1))
    cores.work()
    assert [(m.target, m.granted) for m in cores.messages if isinstance(m, VoteReply)] == [
        ("b", False),
        ("a", True),
    ]


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [
        pytest.param(2, 3, False, id="an older last term"),
        pytest.param(1, 4, False, id="the same last term, a shorter log"),
        pytest.param(3, 4, True, id="the same log"),
        pytest.param(2, 5, True, id="a newer last term, a shorter log"),
    ],
)
def test_a_vote_goes_to_logs_as_complete_as_ones_own(
    last_index: int, last_term: int, granted: bool
) -> None:
    """3.6.1."""
    cores = Cores(core("b", terms=[2, 4]))
    cores["b"].step(Vote("a", "b", 9, False, last_index, last_term))
    cores.work()
    assert cores.messages == [VoteReply("b", "a", 9, False, granted)]


def test_asking_for_votes_in_vain_raises_no_term() -> None:
    """9.6: a member that cannot win disturbs nobody when it is back."""
    cores = led()
    for _ in range(10):
        cores.tick("c", CONFIG.election_max_ticks)
        cores.settle(without("c"))
        cores.tick("a", 2)
        cores.settle(without("c"))
    assert cores["c"].term == cores["a"].term == 2
    cores.tick("a", 2)
    cores.settle()
    assert cores["c"].leader_id == "a"
    assert cores["a"].role is Role.LEADER


def test_whoever_hears_a_leader_helps_nobody_else() -> None:
    """4.2.3."""
    cores = led()
    cores["b"].step(Vote("c", "b", 7, False, 99, 7))
    cores["a"].step(Vote("c", "a", 7, False, 99, 7))
    cores.settle()
    assert cores["a"].role is Role.LEADER
    assert cores["b"].term == 2


def test_a_leader_without_a_majority_steps_down() -> None:
    cores = led()
    for _ in range(CONFIG.election_max_ticks + 1):
        cores.tick("a")
        cores.settle(without("b", "c"))
    assert cores["a"].role is Role.FOLLOWER
    assert cores["a"].leader_id == ""


def test_an_old_leader_learns_of_the_new_term() -> None:
    cores = led()
    cores.elect("b", without("a"))
    assert cores["b"].role is Role.LEADER
    cores.tick("a", 2)
    cores.settle()
    assert cores["a"].role is Role.FOLLOWER
    cores.tick("b", 2)
    cores.settle()
    assert cores["a"].leader_id == "b"


def test_a_member_alone_leads_at_its_first_tick_and_commits_at_once() -> None:
    cores = Cores(core("a", "a"))
    cores.tick("a")
    cores.work()
    assert cores["a"].role is Role.LEADER
    index = cores["a"].propose(b"x")
    cores.work()
    assert cores["a"].log.applied == index
    assert data(cores, "a") == [b"x"]


def test_a_learner_and_a_stranger_never_stand() -> None:
    learner = core("c", learners="c")
    stranger = core("d")
    for raft in (learner, stranger):
        for _ in range(100):
            raft.tick()
        assert raft.role is Role.FOLLOWER


# The log


def test_an_entry_is_committed_when_a_majority_has_it_on_disk() -> None:
    cores = led()
    cores["a"].propose(b"x")
    cores.work("a")
    cores.settle(without("c"))
    assert data(cores, "a") == data(cores, "b") == [b"x"]
    assert data(cores, "c") == []


def test_the_leader_counts_itself_only_when_its_disk_has_it() -> None:
    cores = Cores(core("a", "ab"), core("b", "ab"))
    cores.elect("a")
    leader = cores["a"]
    index = leader.propose(b"x")
    ready = leader.ready()
    cores.messages.extend(ready.messages)
    for _ in range(3):
        for message in cores.messages:
            cores["b" if message.target == "b" else "a"].step(message)
        cores.messages.clear()
        cores.work("b")
    assert leader.leadership is not None
    assert leader.leadership.progress["b"].match == index
    assert leader.log.commit == index - 1
    assert ready.write is not None
    leader.written(ready.write)
    assert leader.log.commit == index


def test_an_entry_is_acknowledged_only_when_it_is_on_disk() -> None:
    follower = core("b")
    entry = Entry(2, 1, EntryKind.DATA, b"x")
    follower.step(Append("a", "b", 1, 1, 1, 1, (entry,)))
    ready = follower.ready()
    assert not ready.messages
    assert ready.write is not None
    assert ready.write.entries == (entry,)
    assert ready.write.messages == (AppendReply("b", "a", 1, 2),)


def test_what_comes_during_a_sync_shares_the_next_one() -> None:
    leader = led()["a"]
    leader.propose(b"1")
    first = leader.ready().write
    for number in range(50):
        leader.propose(b"%d" % number)
    assert leader.ready().write is None
    assert first is not None
    leader.written(first)
    second = leader.ready().write
    assert second is not None
    assert len(second.entries) == 50


def test_an_old_terms_entry_is_not_committed_by_counting() -> None:
    """Figure 3.7: an entry of term 2 on a majority can still be replaced by one of term 3."""
    cores = Cores(core("a", terms=[2]), core("b", terms=[2]), core("c", terms=[3]))
    cores["a"].term = 3
    cores.elect("a", without("c"))
    assert cores["a"].role is Role.LEADER
    leader = core("a", terms=[2], hard_state=HardState(4, "a", 1))
    leader.role = Role.CANDIDATE
    leader._votes = {"a": True}
    leader.step(VoteReply("b", "a", 4, False, True))
    write = leader.ready().write
    assert write is not None
    leader.written(write)
    leader.step(AppendReply("b", "a", 4, 2))
    assert leader.log.commit == 1
    leader.step(AppendReply("b", "a", 4, 3))
    assert leader.log.commit == 3


@pytest.mark.parametrize(
    "follower",
    [
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6], id="a: one missing"),
        pytest.param([1, 1, 1, 4], id="b: many missing"),
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6], id="c: one too many"),
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], id="d: a later term too many"),
        pytest.param([1, 1, 1, 4, 4, 4, 4], id="e: both"),
        pytest.param([1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], id="f: two terms nobody else has"),
    ],
)
def test_a_leader_repairs_every_kind_of_log(follower: list[int]) -> None:
    """Figure 3.6; a leader of term 8 and one follower of each kind."""
    good = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    state = HardState(7, "", 1)
    cores = Cores(
        core("a", terms=good, hard_state=state),
        core("b", terms=follower, hard_state=state),
        core("c", terms=good, hard_state=state),
    )
    cores.elect("a")
    assert cores["a"].role is Role.LEADER
    cores["a"].propose(b"x")
    cores.settle()
    terms = [cores["b"].log.term(index) for index in range(1, 14)]
    assert terms == [1, *good, 8, 8]
    assert data(cores, "b") == data(cores, "a")


def test_logs_that_differ_by_thousands_agree_after_a_few_messages() -> None:
    state = HardState(4, "", 1)
    cores = Cores(
        core("a", terms=[2] + [4] * 3000, hard_state=state),
        core("b", terms=[2] + [3] * 3000, hard_state=state),
        core("c", terms=[2] + [4] * 3000, hard_state=state),
    )
    rejections = []

    def count(message: object) -> bool:
        if isinstance(message, AppendReply) and message.rejected:
            rejections.append(message)
        return True

    cores.elect("a", count)
    assert cores["b"].log.last_term == cores["a"].term
    assert len(rejections) <= 3


def test_an_old_append_does_not_cut_off_newer_entries() -> None:
    cores = led()
    for number in range(5):
        cores["a"].propose(b"%d" % number)
    cores.settle()
    log = cores["a"].log
    late = Append("a", "b", 2, 2, 2, 0, log.slice(3, 4))
    cores["b"].step(late)
    cores.work()
    assert cores["b"].log.last_index == log.last_index


def test_lost_appends_are_sent_again_after_a_heartbeat() -> None:
    cores = led()
    for number in range(5):
        cores["a"].propose(b"%d" % number)
    cores.settle(without("b"))
    assert cores["b"].log.last_index < cores["a"].log.last_index
    cores.tick("a", 2)
    cores.settle()
    assert data(cores, "b") == data(cores, "a")


def test_appends_on_their_way_are_bounded() -> None:
    config = RaftConfig(window=3, append_bytes=10)
    cores = Cores(*(core(name, config=config) for name in "abc"))
    cores.elect("a")
    for _ in range(20):
        cores["a"].propose(b"0123456789")
    cores.work("a")
    appends = [m for m in cores.messages if isinstance(m, Append) and m.target == "b"]
    assert len(appends) == 3
    cores.settle()
    assert len(data(cores, "b")) == 20


def test_proposals_are_refused_where_they_cannot_be_written() -> None:
    config = RaftConfig(entry_bytes_max=100, uncommitted_bytes_max=150)
    cores = Cores(*(core(name, config=config) for name in "abc"))
    with pytest.raises(NotLeader, match="no leader"):
        cores["a"].propose(b"x")
    cores.elect("a")
    with pytest.raises(NotLeader) as refused:
        cores["b"].propose(b"x")
    assert refused.value.leader_address == "a.example:2377"
    with pytest.raises(Invalid, match="larger than 100"):
        cores["a"].propose(bytes(101))
    with pytest.raises(Invalid, match="never empty"):
        cores["a"].propose(b"")
    cores["a"].propose(bytes(100))
    with pytest.raises(Unavailable, match="too many writes"):
        cores["a"].propose(bytes(100))
    cores.settle()
    cores["a"].propose(bytes(100))


# Snapshots


def snapshotted(cores: Cores, member_id: str, content: bytes) -> SnapshotMeta:
    """Let `member_id` take a snapshot and forget all entries before it."""
    raft = cores[member_id]
    index = raft.log.applied
    meta = SnapshotMeta(
        index, raft.log.term(index) or 0, raft.log.configuration_at(index),
        len(content), zlib.crc32(content),
    )  # fmt: skip
    cores.snapshots[member_id] = content
    raft.snapshot_saved(meta)
    return meta


def far_behind(chunk_bytes: int = 7, content: bytes = b"state of the cluster") -> Cores:
    """c lacks entries that a, the leader, has compacted."""
    config = RaftConfig(keep_entries=0, chunk_bytes=chunk_bytes)
    cores = Cores(*(core(name, config=config) for name in "abc"))
    cores.elect("a", without("c"))
    for number in range(10):
        cores["a"].propose(b"%d" % number)
    cores.settle(without("c"))
    snapshotted(cores, "a", content)
    return cores


def reconnect(cores: Cores) -> None:
    cores.tick("c", CONFIG.election_max_ticks)
    for _ in range(4):
        cores.tick("a", 2)
        cores.settle()


def test_a_follower_that_is_far_behind_gets_a_snapshot_in_chunks_then_entries() -> None:
    cores = far_behind()
    reconnect(cores)
    assert cores.snapshots["c"] == b"state of the cluster"
    assert cores["c"].log.commit == cores["a"].log.commit
    cores["a"].propose(b"after")
    cores.settle()
    assert data(cores, "c") == [b"after"]
    leadership = cores["a"].leadership
    assert leadership is not None
    assert leadership.progress["c"].mode is Mode.REPLICATE


def test_an_empty_snapshot_is_one_chunk() -> None:
    cores = far_behind(content=b"")
    reconnect(cores)
    assert cores.snapshots["c"] == b""
    assert cores["c"].log.commit == cores["a"].log.commit


def test_chunks_out_of_order_are_asked_for_again() -> None:
    """Behaviour 187."""
    follower = core("c")
    content = b"0123456789"
    meta = SnapshotMeta(9, 2, follower.log.configuration, 10, zlib.crc32(content))
    cores = Cores(follower)
    offsets = [0, 8, 4, 0, 4, 8]
    for offset in offsets:
        follower.step(SnapshotChunk("a", "c", 2, meta, offset, content[offset : offset + 4]))
    cores.work()
    assert [m.offset for m in cores.messages if isinstance(m, SnapshotReply)] == [4, 4, 8, 8, 8]
    assert cores.snapshots["c"] == content
    assert isinstance(cores.messages[-1], AppendReply)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"crc": 1}, "damaged", id="other bytes than announced"),
        pytest.param({"size": 5}, "longer", id="more bytes than announced"),
        pytest.param({"size": 1 << 40}, "larger than we take", id="too many bytes"),
    ],
)
def test_a_snapshot_that_is_not_what_it_says_is_refused(
    change: dict[str, int], message: str
) -> None:
    follower = core("c")
    content = b"0123456789"
    good = SnapshotMeta(9, 2, follower.log.configuration, 10, zlib.crc32(content))
    meta = msgspec.structs.replace(good, **change)
    with pytest.raises(ProtocolError, match=message):
        follower.step(SnapshotChunk("a", "c", 2, meta, 0, content))
    assert follower.log.last_index == 1
    follower.step(SnapshotChunk("a", "c", 2, good, 0, content))
    assert follower.log.last_index == 9


def test_nothing_is_applied_or_promised_while_a_snapshot_is_not_on_disk() -> None:
    follower = core("c")
    content = b"state"
    meta = SnapshotMeta(9, 2, follower.log.configuration, 5, zlib.crc32(content))
    follower.step(SnapshotChunk("a", "c", 2, meta, 0, content))
    ready = follower.ready()
    assert ready.write is not None
    assert ready.write.install is not None
    follower.step(Append("a", "c", 2, 9, 2, 10, (Entry(10, 2, EntryKind.DATA, b"x"),)))
    during = follower.ready()
    assert not during.committed
    assert not any(isinstance(m, AppendReply) for m in (*ready.messages, *during.messages))
    follower.written(ready.write)
    cores = Cores(follower)
    cores.work()
    assert data(cores, "c") == []  # the machine is still on its way there
    assert cores.messages  # but what is on disk is promised
    follower.restored()
    cores.work()
    assert data(cores, "c") == [b"x"]


def test_a_snapshot_that_is_complete_survives_its_leader() -> None:
    """Found by simulation: its last chunk waited for the disk, and was dropped with the leader."""
    follower = core("c")
    content = b"0123456789"
    meta = SnapshotMeta(9, 2, follower.log.configuration, 10, zlib.crc32(content))
    follower.step(SnapshotChunk("a", "c", 2, meta, 0, content[:5]))
    first = follower.ready().write
    assert first
    follower.step(SnapshotChunk("a", "c", 2, meta, 5, content[5:]))
    follower.step(Heartbeat("b", "c", 3, 0, 0))
    follower.written(first)
    second = follower.ready().write
    assert second
    assert second.install == meta
    assert not second.discard
    assert [part.data for part in (*first.parts, *second.parts)] == [b"01234", b"56789"]


@pytest.mark.parametrize("why", ["another leader", "a newer snapshot", "a damaged chunk"])
def test_what_came_of_a_snapshot_that_will_not_be_complete_is_removed(why: str) -> None:
    follower = core("c")
    meta = SnapshotMeta(9, 2, follower.log.configuration, 10, zlib.crc32(b"0123456789"))
    newer = msgspec.structs.replace(meta, index=12)
    follower.step(SnapshotChunk("a", "c", 2, meta, 0, b"01234"))
    first = follower.ready().write
    assert first
    follower.written(first)
    match why:
        case "another leader":
            follower.step(Heartbeat("b", "c", 3, 0, 0))
        case "a newer snapshot":
            follower.step(SnapshotChunk("a", "c", 2, newer, 0, b"abc"))
        case _:
            with pytest.raises(ProtocolError):
                follower.step(SnapshotChunk("a", "c", 2, meta, 5, b"99999"))
    write = follower.ready().write
    assert write
    assert write.discard
    assert write.install is None
    assert [part.meta for part in write.parts] == [newer] * (why == "a newer snapshot")


def test_no_more_waits_for_the_disk_than_is_allowed() -> None:
    """A peer cannot fill the memory, whatever it sends."""
    follower = core("c", config=RaftConfig(receive_bytes_max=10))
    meta = SnapshotMeta(9, 2, follower.log.configuration, 100, 0)
    for offset in range(0, 100, 5):
        follower.step(SnapshotChunk("a", "c", 2, meta, offset, bytes(5)))
    follower.step(SnapshotChunk("a", "c", 2, meta, 10, b""))
    write = follower.ready().write
    assert write
    assert [part.offset for part in write.parts] == [0, 5]
    assert write.messages[-1] == SnapshotReply("c", "a", 2, 9, 10)


def test_a_snapshot_that_was_replaced_on_its_way_starts_again() -> None:
    cores = far_behind()
    cores.tick("c", CONFIG.election_max_ticks)
    cores.tick("a", 2)
    cores.work()
    while not any(isinstance(message, SnapshotChunk) for message in cores.messages):
        cores.deliver()
    cores.messages.clear()
    old = cores["a"].snapshot
    assert old
    cores["a"].propose(b"more")
    cores.settle(without("c"))
    snapshotted(cores, "a", b"a newer state")
    cores["a"].snapshot_missing("c", old)
    reconnect(cores)
    assert cores.snapshots["c"] == b"a newer state"


# Reading


def test_a_read_waits_for_a_majority_that_still_follows() -> None:
    """6.4."""
    cores = led()
    cores["a"].propose(b"x")
    cores.settle()
    cores["a"].read_index(1)
    cores.work()
    assert cores.reads == []
    cores.settle(without("c"))
    assert cores.reads == [(1, cores["a"].log.commit)]


def test_a_deposed_leader_answers_no_read() -> None:
    cores = led()
    cores.elect("b", without("a"))
    cores["b"].propose(b"newer")
    cores.settle(without("a"))
    assert cores["a"].role is Role.LEADER  # it does not know
    cores["a"].read_index(1)
    cores.settle()
    assert cores.reads == []


def test_an_answer_from_before_the_read_does_not_count() -> None:
    leader = led()["a"]
    leader.read_index(1)
    leader.ready()
    leader.step(HeartbeatReply("b", "a", 2, 0))
    assert leader.ready().reads == ()
    leader.step(HeartbeatReply("b", "a", 2, 1))
    assert leader.ready().reads == ((1, 2),)


def test_a_new_leader_reads_only_after_its_first_commit() -> None:
    cores = three()
    cores.elect("a", lambda message: not isinstance(message, Append))
    assert cores["a"].role is Role.LEADER
    cores["a"].read_index(1)
    cores.tick("a", 2)
    cores.settle(lambda message: not isinstance(message, Append))
    assert cores.reads == []
    cores.tick("a", 2)
    cores.settle()
    assert cores.reads == [(1, 2)]


# Membership


def test_a_member_with_an_empty_log_learns_then_votes() -> None:
    """4.2.1; behaviour 180."""
    cores = led(a=[1] * 5, b=[1] * 5, c=[1] * 5)
    cores.rafts["d"] = core("d", "")
    cores.applied["d"] = []
    cores["a"].propose_change(AddLearner(member("d")))
    cores.settle()
    assert data(cores, "d") == data(cores, "a")
    assert "d" not in cores["a"].log.configuration.voters
    cores["a"].propose_change(Promote("d"))
    cores.settle()
    assert cores["d"].log.configuration.voters == ("a", "b", "c", "d")


def test_a_learner_that_lags_or_is_away_gets_no_vote() -> None:
    cores = led()
    cores["a"].propose_change(AddLearner(member("d")))
    cores.settle()
    for _ in range(CONFIG.promote_lag_max + 1):
        cores["a"].propose(b"x")
    cores.settle()
    with pytest.raises(Conflict, match="not caught up"):
        cores["a"].propose_change(Promote("d"))


def test_a_learner_that_lacks_megabytes_gets_no_vote() -> None:
    """Few entries, but of a size that takes long to send."""
    cores = led()
    cores["a"].propose_change(AddLearner(member("d")))
    cores.settle()
    for _ in range(2):
        cores["a"].propose(bytes(CONFIG.promote_lag_bytes // 2 + 1))
    cores.settle()
    with pytest.raises(Conflict, match="not caught up"):
        cores["a"].propose_change(Promote("d"))


def test_a_learner_that_was_never_heard_gets_no_vote() -> None:
    cores = led()
    cores["a"].propose_change(AddLearner(member("d")))
    cores.settle()
    assert cores["a"].log.last_index < CONFIG.promote_lag_max
    with pytest.raises(Conflict, match="not caught up"):
        cores["a"].propose_change(Promote("d"))


def test_one_change_at_a_time() -> None:
    cores = led()
    cores["a"].propose_change(AddLearner(member("d")))
    with pytest.raises(Conflict, match="under way"):
        cores["a"].propose_change(AddLearner(member("e")))


def test_no_change_before_the_first_commit_of_the_term() -> None:
    cores = three()
    cores.elect("a", lambda message: not isinstance(message, Append))
    with pytest.raises(Conflict, match="under way"):
        cores["a"].propose_change(Remove("c"))


def test_a_change_that_is_replaced_goes_out_of_force() -> None:
    """4.1: a configuration is in force while it is in the log, committed or not."""
    cores = led()
    cores["a"].propose_change(Remove("c"))
    cores.work("a")
    assert cores["a"].log.configuration.voters == ("a", "b")
    cores.messages.clear()
    cores.elect("b", without("a"))
    cores.settle()
    cores.tick("b", 2)
    cores.settle()
    assert list(cores["a"].log.configuration.voters) == ["a", "b", "c"]
    assert cores["b"].role is Role.LEADER


def test_the_last_but_one_of_two_can_be_removed_even_if_it_is_dead() -> None:
    cores = Cores(core("a", "ab"), core("b", "ab"))
    cores.elect("a")
    cores["a"].propose_change(Remove("b"))
    cores.settle(without("b"))
    assert cores["a"].log.configuration.voters == ("a",)
    cores["a"].propose(b"x")
    cores.work()
    assert data(cores, "a") == [b"x"]


def silent(cores: Cores, *member_ids: str) -> None:
    """Let an election time-out pass in which `member_ids` are not heard."""
    for _ in range(CONFIG.election_max_ticks + 1):
        cores.tick("a")
        cores.settle(without(*member_ids))


def test_a_removal_that_would_leave_no_majority_is_refused() -> None:
    """Behaviour 191."""
    cores = led()
    silent(cores, "c")
    with pytest.raises(Conflict, match="no majority"):
        cores["a"].propose_change(Remove("b"))
    cores["a"].propose_change(Remove("c"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(Remove("a"), Conflict, id="the leader itself"),
        pytest.param(Remove("x"), NotFound, id="an unknown member"),
        pytest.param(Promote("x"), NotFound, id="promoting an unknown member"),
        pytest.param(AddLearner(Member("x", "node-b", "x:1")), Conflict, id="a node twice"),
        pytest.param(AddLearner(Member("x", "n", "c.example:2377")), Conflict, id="one address"),
        pytest.param(AddLearner(Member("", "n", "x:1")), Invalid, id="no raft id"),
        pytest.param(AddLearner(Member("x", "n", "x")), Invalid, id="no port"),
        pytest.param(UpdateAddress("b", "b:0"), Invalid, id="port 0"),
        pytest.param(UpdateAddress("b", ":2377"), Invalid, id="no host"),
        pytest.param(UpdateAddress("b", "a:b:c:1"), Invalid, id="not an IPv6 address"),
    ],
)  # fmt: skip
def test_changes_that_make_no_sense_are_refused(change: object, error: type[Exception]) -> None:
    cores = led()
    before = cores["a"].log.last_index
    with pytest.raises(error):
        cores["a"].propose_change(change)  # type: ignore[arg-type]
    assert cores["a"].log.last_index == before


def test_joining_again_with_another_address_updates_it_and_keeps_the_vote() -> None:
    """Behaviours 174 and 193."""
    cores = led()
    cores["a"].propose_change(AddLearner(Member("b", "node-b", "[fd00::2]:2377")))
    cores.settle()
    assert cores["c"].log.configuration.find("b") == Member("b", "node-b", "[fd00::2]:2377")
    assert cores["a"].propose_change(UpdateAddress("b", "[fd00::2]:2377")) == 0


def test_a_removed_member_is_told_and_stays_out() -> None:
    """Behaviour 192."""
    cores = led()
    cores["a"].propose_change(Remove("c"))
    cores.settle()
    assert cores["c"].removed
    for _ in range(100):
        cores["c"].tick()
    assert cores["c"].role is Role.FOLLOWER
    with pytest.raises(Conflict, match="cannot come back"):
        cores["a"].propose_change(AddLearner(member("c")))


def test_a_removed_member_that_missed_it_disturbs_nobody() -> None:
    cores = led()
    cores["a"].propose_change(Remove("c"))
    cores.settle(without("c"))
    assert not cores["c"].removed
    cores.tick("c", CONFIG.election_max_ticks)
    cores.settle()
    assert cores["c"].removed
    assert cores["a"].role is Role.LEADER
    assert cores["a"].term == cores["b"].term == 2


def test_a_stranger_cannot_remove_anybody() -> None:
    raft = core("b")
    raft.step(Removed("x", "b", 1))
    assert not raft.removed


# Handing over


def test_leadership_is_handed_over_at_once_and_loses_nothing() -> None:
    """3.10."""
    cores = led()
    cores["a"].propose(b"x")
    cores["a"].transfer("b")
    with pytest.raises(NotLeader, match="handing leadership over"):
        cores["a"].propose(b"y")
    cores.settle()
    assert cores["b"].role is Role.LEADER
    assert data(cores, "b") == [b"x"]


def test_a_hand_over_to_the_dead_is_given_up() -> None:
    cores = led()
    cores["a"].transfer("c")
    silent(cores, "c")
    assert cores["a"].role is Role.LEADER
    cores["a"].propose(b"x")
    with pytest.raises(Conflict, match="cannot lead"):
        cores["a"].transfer("c")


def test_the_best_is_chosen_and_nobody_is_an_answer() -> None:
    cores = led()
    silent(cores, "b")
    assert cores["a"].transfer() == "c"
    alone = Cores(core("a", "a"))
    alone.tick("a")
    alone.work()
    with pytest.raises(Conflict, match="no other manager"):
        alone["a"].transfer()


def test_only_the_leader_may_hand_over() -> None:
    cores = led()
    cores["b"].step(TimeoutNow("c", "b", 2))
    assert cores["b"].role is Role.FOLLOWER


# What no correct peer sends


def test_a_second_leader_of_a_term_is_not_believed() -> None:
    cores = led()
    with pytest.raises(ProtocolError, match="also claims to lead"):
        cores["a"].step(Heartbeat("b", "a", 2, 0, 0))
    assert cores["a"].role is Role.LEADER


def test_committed_entries_are_never_replaced() -> None:
    cores = led()
    cores["a"].propose(b"x")
    cores.settle()
    follower = cores["b"]
    before = follower.log.last_index
    evil = Append("a", "b", 2, 1, 1, 0, (Entry(2, 1, EntryKind.DATA, b"evil"),))
    follower.step(evil)  # everything up to the commit index is taken as equal
    assert follower.log.last_index == before
    assert follower.log.term(2) == 2


def test_a_commit_index_beyond_the_log_is_cut() -> None:
    """Behaviour 183: a member whose disk was wiped does not crash."""
    empty = core("c", "")
    empty.step(Heartbeat("a", "c", 2, 1_000_000, 0))
    cores = Cores(empty)
    cores.work()
    assert empty.log.commit == 0


def test_a_wiped_member_crashes_nobody() -> None:
    """Behaviour 183."""
    cores = led(a=[1] * 9, b=[1] * 9, c=[1] * 9)
    cores.rafts["c"] = core("c", "")
    for _ in range(5):
        cores["a"].propose(b"x")
        cores.tick("a", 2)
        cores.settle()
    assert data(cores, "b") == data(cores, "a")


def test_messages_to_others_and_from_oneself_are_ignored() -> None:
    raft = core("a")
    raft.step(Vote("b", "c", 9, False, 9, 9))
    raft.step(Vote("a", "a", 9, False, 9, 9))
    assert raft.term == 1
    assert raft.ready().messages == ()


def test_the_same_inputs_give_the_same_outputs() -> None:
    def run() -> list[object]:
        cores = three()
        rng = random.Random(5)
        seen: list[object] = []
        for _ in range(300):
            cores.tick(rng.choice("abc"), rng.randrange(4))
            cores.work()
            seen.extend(cores.messages)
            cores.deliver(lambda message: rng.random() < 0.9)
        return seen

    assert run() == run()
