"""The tests of Raft find what they are for: each of a list of mistakes, put in on purpose.

Most are found by the checker of the simulation, within `BOUND` seeds (`SEEDS` allows more). What
random faults meet too seldom is found by a conversation of tests/data/raft that then goes
another way, or by a scenario made for it. Behaviours 175, 186, 191 and 192.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from manager.raft.core import Raft
from manager.raft.log import Log
from manager.raft.message import HardState, Vote, VoteReply
from manager.raft.work import Role
from tests.support import raft_defects as defects
from tests.support.raft_cores import CONFIG, Cores, core, without
from tests.support.raft_defects import Patch
from tests.support.raft_disk import FakeDisk, Platter
from tests.support.raft_runs import in_new_loop, run_in_new_loop
from tests.support.raft_script import rewrite
from tests.support.raft_world import Violation

BOUND = max(300, int(os.environ.get("SEEDS", "0")))
SCRIPTS = Path(__file__).resolve().parents[1] / "data" / "raft"

Defect = Callable[[Patch], None]


@pytest.mark.parametrize(
    ("defect", "rule"),
    [
        # A follower that lacks what it acknowledged stops the leader's progress, or elects another.
        (defects.acknowledged_before_sync, "leader completeness|no progress after healing"),
        (defects.applied_before_commit, "leader completeness|state machine safety"),
        (defects.no_conflict_check, "log matching"),
        (defects.old_append_cuts_off_newer_entries, "leader completeness|is lost"),
        (defects.read_without_quorum, "stale read"),
        (defects.read_before_own_entry, "stale read"),
        (defects.two_votes_in_a_term, "election safety"),
        (defects.vote_for_a_shorter_log, "leader completeness"),
        (defects.snapshot_lacks_its_last_entry, "state machine safety|restored another state"),
    ],
)
def test_the_simulation_finds(defect: Defect, rule: str, monkeypatch: Patch) -> None:
    defect(monkeypatch)
    with pytest.raises(Violation, match=f"^[^\n]*({rule})"):
        _run_seeds()


def _run_seeds() -> None:
    for seed in range(BOUND):
        run_in_new_loop(seed)


@pytest.mark.parametrize(
    ("defect", "script", "wrong"),
    [
        # Only in the hands of the leader of figure 8 does it do harm.
        pytest.param(
            defects.old_terms_entry_committed,
            "figure-8",
            "a leader, term 4, vote a, follows a, members abcde: 1/1m 2/2 | 3/4n",
            id="old_terms_entry_committed",
        ),
        # Disturbs, but breaks no rule of safety.
        pytest.param(
            defects.no_pre_vote, "election", "a candidate, term 2, vote a", id="no_pre_vote"
        ),
        pytest.param(
            defects.removed_id_used_again, "membership", "members ac(b)", id="removed_id_used_again"
        ),
        pytest.param(
            defects.two_changes_at_once,
            "membership",
            "members a(c): 1/1m 2/2n 3/2m 4/2m |",
            id="two_changes_at_once",
        ),
    ],
)
def test_a_conversation_finds(defect: Defect, script: str, wrong: str, monkeypatch: Patch) -> None:
    written = (SCRIPTS / f"{script}.txt").read_text()
    assert wrong not in rewrite(written)
    defect(monkeypatch)
    assert wrong in rewrite(written)


# Scenarios for what needs a crash within one sync


def _two_leaders_of_one_term() -> bool:
    """c votes for a and crashes in the sync of its vote; then b asks it for its vote."""
    cores = Cores(core("a"), core("b"))
    voter = core("c")
    voter.step(Vote("a", "c", 2, False, 1, 1))
    heard = voter.ready().messages
    voter = core("c", hard_state=HardState(1, "", 1))
    voter.step(Vote("b", "c", 2, False, 1, 1))
    ready = voter.ready()
    assert ready.write
    for candidate in "ab":
        cores.tick(candidate, CONFIG.election_max_ticks)
        cores.work()
        cores[candidate].step(VoteReply("c", candidate, 2, True, True))
        cores.work()
        for message in (*heard, *ready.messages, *ready.write.messages):
            cores[candidate].step(message)
    assert cores["b"].role is Role.LEADER
    return cores["a"].role is Role.LEADER and cores["a"].term == cores["b"].term


def _a_committed_entry_is_lost() -> bool:
    """a's entry reaches b; a crashes in its own sync of it, and votes for c, which lacks it."""
    cores = Cores(core("a"), core("b"), core("c"))
    cores.elect("a")
    index = cores["a"].propose(b"x")
    append = next(m for m in cores["a"].ready().messages if m.target == "b")
    cores["b"].step(append)
    cores.work("b")
    cores["a"].step(cores.messages.pop())
    committed = cores["a"].log.commit >= index
    kept = cores["a"].log.slice(1, index - 1)
    state = HardState(cores["a"].term, "a", 1)
    cores.rafts["a"] = Raft("a", CONFIG, random.Random("a"), Log(entries=kept), state)
    cores.tick("c", CONFIG.election_max_ticks)
    cores.settle(without("b"))
    assert cores["c"].role is Role.LEADER
    return committed


def _two_votes_of_one_term() -> bool:
    """c votes for a, answers, and crashes; it starts again, and b asks it for its vote."""
    return in_new_loop(_vote_crash_vote)


async def _vote_crash_vote() -> bool:
    platter = Platter()
    granted = 0
    for candidate in "ab":
        disk = FakeDisk(platter, random.Random(1))
        stored = await disk.load()
        voter = core("c", hard_state=stored.hard_state)
        voter.step(Vote(candidate, "c", 2, False, 1, 1))
        write = voter.ready().write
        if write and write.hard_state:
            await disk.write(write.hard_state, write.entries)
            granted += any(isinstance(m, VoteReply) and m.granted for m in write.messages)
        disk.crash()
    return granted == 2


@pytest.mark.parametrize(
    ("defect", "harm"),
    [
        # Chance needs hundreds of seeds for two candidates, and a crash, within one term.
        pytest.param(defects.votes_unsynced, _two_votes_of_one_term, id="votes_unsynced"),
        pytest.param(
            defects.vote_sent_before_sync, _two_leaders_of_one_term, id="vote_sent_before_sync"
        ),
        pytest.param(
            defects.leader_counts_itself_before_sync,
            _a_committed_entry_is_lost,
            id="leader_counts_itself_before_sync",
        ),
    ],
)
def test_a_crash_within_a_sync_finds(
    defect: Defect, harm: Callable[[], bool], monkeypatch: Patch
) -> None:
    assert not harm()
    defect(monkeypatch)
    assert harm()
