"""Mistakes that an implementation of Raft can make, each to be put in by a test.

Nothing of the kind can be switched on in the product: a test puts a wrong method in the place of
the right one, for as long as it runs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from manager.raft import core, membership, quorum
from manager.raft.core import Raft
from manager.raft.leadership import Leadership
from manager.raft.log import Log
from manager.raft.message import (
    AnyMessage,
    Append,
    AppendReply,
    Configuration,
    Entry,
    SnapshotMeta,
    Vote,
    VoteReply,
)
from manager.raft.snapshots import SnapshotWork
from tests.support.raft_disk import FakeDisk
from tests.support.raft_world import Machine

Patch = pytest.MonkeyPatch


def votes_unsynced(patch: Patch) -> None:
    """The disk answers for a vote that it has only cached."""
    right = FakeDisk.__init__

    def wrong(self: FakeDisk, *args: Any, syncs_votes: bool = True) -> None:
        right(self, *args, syncs_votes=False)

    patch.setattr(FakeDisk, "__init__", wrong)


def _sent_at_once(patch: Patch, kind: type) -> None:
    right = Raft._send

    def wrong(self: Raft, message: AnyMessage) -> None:
        if isinstance(message, kind):
            self._messages.append(message)
        else:
            right(self, message)

    patch.setattr(Raft, "_send", wrong)


def vote_sent_before_sync(patch: Patch) -> None:
    _sent_at_once(patch, VoteReply)


def acknowledged_before_sync(patch: Patch) -> None:
    _sent_at_once(patch, AppendReply)


def leader_counts_itself_before_sync(patch: Patch) -> None:
    right = Leadership._matched

    def wrong(self: Leadership, member_id: str) -> int:
        return self._log.last_index if member_id == self._id else right(self, member_id)

    patch.setattr(Leadership, "_matched", wrong)


def old_terms_entry_committed(patch: Patch) -> None:
    """Figure 8 of the paper: a majority having an entry is taken for enough."""

    def wrong(self: Leadership) -> None:
        if self._log.commit_to(quorum.highest(self._voters, self._matched)):
            self._announce = True

    patch.setattr(Leadership, "advance_commit", wrong)


def no_pre_vote(patch: Patch) -> None:
    right = Raft._campaign

    def wrong(self: Raft, *, pre: bool, transfer: bool = False) -> None:
        right(self, pre=False, transfer=transfer)

    patch.setattr(Raft, "_campaign", wrong)


def removed_id_used_again(patch: Patch) -> None:
    right = membership.next_configuration

    def wrong(
        configuration: Configuration, change: membership.Change, standing: membership.Standing
    ) -> Configuration:
        if isinstance(change, membership.AddLearner):
            removed = tuple(gone for gone in configuration.removed if gone != change.member.id)
            configuration = msgspec.structs.replace(configuration, removed=removed)
        return right(configuration, change, standing)

    patch.setattr(core, "next_configuration", wrong)


def applied_before_commit(patch: Patch) -> None:
    """What is on our own disk is applied at once."""

    def wrong(self: Log, count_max: int, bytes_max: int) -> tuple[Entry, ...]:
        last = min(self.stable, self.applied + count_max)
        entries = self.slice(self.applied + 1, last) if last > self.applied else ()
        self.applied = max(self.applied, last)
        return entries

    patch.setattr(Log, "take_committed", wrong)


def no_conflict_check(patch: Patch) -> None:
    """An append is taken whatever the term of the entry before it."""
    right = Raft._on_append

    def wrong(self: Raft, append: Append) -> None:
        if (term := self.log.term(append.previous_index)) is not None:
            append = msgspec.structs.replace(append, previous_term=term)
        right(self, append)

    patch.setattr(Raft, "_on_append", wrong)


def old_append_cuts_off_newer_entries(patch: Patch) -> None:
    right = Log.merge

    def wrong(self: Log, entries: Sequence[Entry]) -> None:
        if entries and entries[-1].index < self.last_index and entries[-1].index >= self.commit:
            self._truncate(entries[-1].index + 1)
        right(self, entries)

    patch.setattr(Log, "merge", wrong)


def read_without_quorum(patch: Patch) -> None:
    def wrong(self: Leadership) -> None:
        self.reads_done.extend((token, self._log.commit) for token in self._reads_wanted)
        self._reads_wanted.clear()

    patch.setattr(Leadership, "ask_for_reads", wrong)


def read_before_own_entry(patch: Patch) -> None:
    """A new leader answers reads before it knows what is committed."""
    right = Leadership.ask_for_reads

    def wrong(self: Leadership) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Leadership, "has_committed", True)
            right(self)

    patch.setattr(Leadership, "ask_for_reads", wrong)


def two_changes_at_once(patch: Patch) -> None:
    patch.setattr(Raft, "can_change", property(lambda self: self.leadership is not None))


def two_votes_in_a_term(patch: Patch) -> None:
    right = Raft._on_vote

    def wrong(self: Raft, vote: Vote) -> None:
        if not vote.pre and not self.leadership:
            self.voted_for = self.leader_id = ""
        right(self, vote)

    patch.setattr(Raft, "_on_vote", wrong)


def vote_for_a_shorter_log(patch: Patch) -> None:
    patch.setattr(Log, "is_current", lambda self, last_index, last_term: True)


def snapshot_lacks_its_last_entry(patch: Patch) -> None:
    """The snapshot says that it holds one entry more than it does."""
    right = SnapshotWork._describe

    def wrong(self: SnapshotWork) -> SnapshotMeta:
        meta = right(self)
        log = self._raft.log
        term = log.term(meta.index + 1)
        if term is None or meta.index >= log.commit:
            return meta
        return msgspec.structs.replace(meta, index=meta.index + 1, term=term)

    patch.setattr(SnapshotWork, "_describe", wrong)


def applied_while_restoring(patch: Patch) -> None:
    """What follows a snapshot is applied before the machine has become its state."""
    patch.setattr(Raft, "installing", property(lambda self: self._install is not None))


def snapshot_encoded_late(patch: Patch) -> None:
    """The pieces are made of what the machine holds when they are asked for."""

    def wrong(self: Machine) -> Iterator[bytes]:
        yield b""
        yield msgspec.msgpack.encode((self.digest, self.values))

    patch.setattr(Machine, "snapshot", wrong)
