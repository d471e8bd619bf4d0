"""What only a leader has: its followers' progress, reads waiting for a quorum, a hand-over.

Made when an election is won and dropped when leadership is lost, so that nothing of one term
can leak into another.
"""

from collections.abc import Callable

import msgspec

from common.errors import Conflict
from manager.raft import quorum
from manager.raft.config import RaftConfig
from manager.raft.log import Log
from manager.raft.message import (
    AnyMessage,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
)
from manager.raft.progress import Mode, Progress

PINNED_MAX = 4  # snapshots kept for followers, beyond the newest two; each may be a gigabyte


class ChunkRequest(msgspec.Struct, frozen=True):
    """Read this part of the snapshot from disk and send it to `target`."""

    target: str
    term: int
    meta: SnapshotMeta
    offset: int
    length: int


class Transfer(msgspec.Struct):
    """Leadership on its way to another member."""

    target: str
    deadline: int  # in ticks; then we go on leading


class Leadership:
    """One term at the head of the cluster."""

    def __init__(
        self,
        member_id: str,
        term: int,
        config: RaftConfig,
        log: Log,
        send: Callable[[AnyMessage], None],
        now: int,
    ) -> None:
        """`now` is in ticks, as all moments here."""
        self.progress: dict[str, Progress] = {}
        self.transfer: Transfer | None = None
        self.chunks: list[ChunkRequest] = []
        self.reads_done: list[tuple[int, int]] = []  # token, index
        self.uncommitted_bytes = 0
        self._id = member_id
        self._term = term
        self._config = config
        self._log = log
        self._send = send
        self._now = now
        self._round = 0
        self._reads_wanted: list[int] = []
        self._reads_asked: list[tuple[int, int, int]] = []  # round, token, index
        self._announce = False
        self.follow_configuration()

    def follow_configuration(self) -> None:
        """Track the members of the newest configuration, and no others."""
        members = [m.id for m in self._log.configuration.members if m.id != self._id]
        kept = self.progress
        self.progress = {member: kept.get(member) or self._new_progress() for member in members}
        if self.transfer and self.transfer.target not in self.progress:
            self.transfer = None

    def _new_progress(self) -> Progress:
        config = self._config
        next_index = self._log.last_index + 1
        chunks_bytes = config.chunk_window * config.chunk_bytes
        return Progress(next_index, self._now, config.window, config.window_bytes, chunks_bytes)

    # Time

    def tick(self, now: int) -> bool:
        """Do what is due; False if no majority has been heard for an election time-out."""
        self._now = now
        if not quorum.reached(self._voters, self.is_active):
            return False
        if self.transfer and now >= self.transfer.deadline:
            self.transfer = None
        if now % self._config.heartbeat_ticks == 0:
            self._send_heartbeats()
            self._hand_over()
        for progress in self.progress.values():
            progress.chunk_late(now, self._config.election_max_ticks)
            if progress.is_stalled(now, self._config.snapshot_stall_ticks):
                progress.probe()
        return True

    def is_active(self, member_id: str) -> bool:
        """Whether the member was heard within an election time-out."""
        if member_id == self._id:
            return True
        progress = self.progress.get(member_id)
        return progress is not None and (
            self._now - progress.heard_at <= self._config.election_max_ticks
        )

    @property
    def _voters(self) -> tuple[str, ...]:
        return self._log.configuration.voters

    def _send_heartbeats(self) -> None:
        for target, progress in self.progress.items():
            commit = min(progress.match, self._log.commit)
            self._send(Heartbeat(self._id, target, self._term, commit, self._round))

    # Answers

    def on_append_reply(self, reply: AppendReply, snapshot: SnapshotMeta | None) -> None:
        progress = self.progress.get(reply.source)
        if progress is None or reply.index > self._log.last_index:
            return
        progress.heard(self._now)
        if reply.rejected:
            hint, _ = self._log.conflict_hint(reply.hint_index, reply.hint_term)
            progress.rejected(reply.index, hint)
        elif progress.accepted(reply.index):
            self.advance_commit()
            self._hand_over()

    def on_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        progress = self.progress.get(reply.source)
        if progress is None:
            return
        progress.heard(self._now)
        progress.answered_round = max(progress.answered_round, min(reply.round, self._round))
        progress.unstick()
        if progress.mode is Mode.REPLICATE and progress.match < self._log.last_index:
            # Appends may have been lost with nothing after them: ask whether it has them.
            self._send_append(reply.source, progress, ask=True)
        self._release_reads()

    def on_snapshot_reply(self, reply: SnapshotReply) -> None:
        if progress := self.progress.get(reply.source):
            progress.heard(self._now)
            progress.chunk_wanted(reply.index, reply.offset, self._now)

    # The log

    def advance_commit(self) -> None:
        """Commit what a majority has on disk; the leader itself counts only what it has synced.

        Only entries of this term are committed by counting (thesis 3.6.2, figure 3.7).
        """
        log = self._log
        index = quorum.highest(self._voters, self._matched)
        before = log.commit
        if log.term(index) == self._term and log.commit_to(index):
            self._announce = True
            committed = log.slice(max(before, log.base_index) + 1, log.commit)
            self.uncommitted_bytes -= sum(len(entry.data) for entry in committed)
            self.uncommitted_bytes = max(self.uncommitted_bytes, 0)

    def _matched(self, member_id: str) -> int:
        if member_id == self._id:
            return self._log.stable
        progress = self.progress.get(member_id)
        return progress.match if progress else 0

    @property
    def has_committed(self) -> bool:
        """Whether an entry of this term is committed; before, the commit index may be behind."""
        return self._log.term(self._log.commit) == self._term

    @property
    def has_news(self) -> bool:
        """Whether followers have not been told yet how far the log is committed."""
        return self._announce

    def replicate(self, snapshot: SnapshotMeta | None, *, announce: bool) -> None:
        """Send each follower what it lacks, as far as its window allows.

        What was committed is told with that, or with `announce` even if nothing else is to be sent.
        """
        sent = [
            self._replicate(target, progress, snapshot, self._announce and announce)
            for target, progress in self.progress.items()
        ]
        if announce or all(sent):
            self._announce = False

    def _replicate(
        self, target: str, progress: Progress, snapshot: SnapshotMeta | None, announce: bool
    ) -> bool:
        """Whether an append has left."""
        announced = False
        while progress.ready:
            if progress.mode is Mode.SNAPSHOT:
                self._request_chunk(target, progress)
                continue
            if self._log.term(progress.next - 1) is None:
                if snapshot is None or not self.is_active(target):
                    return announced
                progress.send_snapshot(snapshot, self._now)
                continue
            pending = progress.next <= self._log.last_index
            if not pending and progress.mode is Mode.REPLICATE and not announce:
                return announced
            if not pending and announced:
                return announced
            self._send_append(target, progress)
            announced = True
        return announced

    def _send_append(self, target: str, progress: Progress, *, ask: bool = False) -> None:
        log = self._log
        previous = progress.next - 1
        previous_term = log.term(previous)
        if previous_term is None:
            # Compacted while it was on its way and got lost; it will take a snapshot.
            progress.probe()
            return
        last = previous if ask else log.last_index
        entries = log.slice(progress.next, last, self._config.append_bytes)
        message = Append(self._id, target, self._term, previous, previous_term, log.commit, entries)
        self._send(message)
        size = sum(len(entry.data) for entry in entries)
        progress.sent_append(entries[-1].index if entries else previous, size)

    def _request_chunk(self, target: str, progress: Progress) -> None:
        meta = progress.snapshot
        assert meta is not None
        length = min(self._config.chunk_bytes, meta.size - progress.offset)
        self.chunks.append(ChunkRequest(target, self._term, meta, progress.offset, length))
        progress.sent_chunk(length, self._now)

    @property
    def pinned(self) -> tuple[SnapshotMeta, ...]:
        """Snapshots on their way to followers; of many, those that are longest under way."""
        sent = {p.snapshot.index: p.snapshot for p in self.progress.values() if p.snapshot}
        return tuple(sent[index] for index in sorted(sent)[:PINNED_MAX])

    # Reads (thesis 6.4)

    def read(self, token: int) -> None:
        """Find an index so that a state with it applied holds all writes acknowledged so far."""
        self._reads_wanted.append(token)

    def ask_for_reads(self) -> None:
        """Start one round for all reads that wait."""
        if not self._reads_wanted or not self.has_committed:
            return
        self._round += 1
        index = self._log.commit
        self._reads_asked.extend((self._round, token, index) for token in self._reads_wanted)
        self._reads_wanted.clear()
        self._send_heartbeats()
        self._release_reads()

    def _release_reads(self) -> None:
        if not self._reads_asked:
            return
        answered = quorum.highest(self._voters, self._answered)
        while self._reads_asked and self._reads_asked[0][0] <= answered:
            _, token, index = self._reads_asked.pop(0)
            self.reads_done.append((token, index))

    def _answered(self, member_id: str) -> int:
        if member_id == self._id:
            return self._round
        progress = self.progress.get(member_id)
        return progress.answered_round if progress else 0

    # Handing over (thesis 3.10)

    def start_transfer(self, target: str) -> str:
        """Hand over to `target`, or to the best voter if empty; who it is.

        Raises Conflict if nobody can take over.
        """
        voters = [voter for voter in self._voters if voter != self._id and self.is_active(voter)]
        if target and target not in voters:
            raise Conflict(f"manager {target} cannot lead: it has no vote or cannot be reached")
        if not voters:
            raise Conflict("no other manager can be reached that could lead")
        target = target or max(voters, key=self._matched)
        self.transfer = Transfer(target, self._now + self._config.election_max_ticks)
        self._hand_over()
        return target

    def _hand_over(self) -> None:
        if self.transfer and self._matched(self.transfer.target) == self._log.last_index:
            self._send(TimeoutNow(self._id, self.transfer.target, self._term))
