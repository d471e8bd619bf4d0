"""Raft, the algorithm, and nothing else (Ongaro's thesis; section numbers are its own).

No clock, disk, network or await: time arrives as `tick`, messages as `step`, and all that
must be done in the world leaves through `ready`. The same inputs always give the same
outputs, so the simulation can replay any run from its seed.

                  election time-out         would win            majority of votes
      Follower ----------------> PreCandidate ----> Candidate --------------------> Leader
         ^                            |                 |                             |
         +---- message of a higher term, a leader's message, or no majority heard ----+

A configuration is in force from the moment it is in the log, committed or not (4.1), and
goes out of force if its entry is replaced. Only one may be uncommitted at a time, and none
may start before an entry of the leader's own term is committed.

Messages that promise something (a vote, an acknowledgement) wait in `Write.messages` until
what they promise is on disk. One write is under way at a time; what comes meanwhile shares
the next one.
"""

import random

import msgspec

from common.errors import Conflict, Invalid, NotLeader, Unavailable
from manager.raft import quorum
from manager.raft.config import RaftConfig
from manager.raft.incoming import Incoming
from manager.raft.leadership import ChunkRequest, Leadership
from manager.raft.log import Log
from manager.raft.membership import Change, Standing, next_configuration
from manager.raft.message import (
    AnyMessage,
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
    decode_configuration,
    encode_configuration,
)
from manager.raft.progress import Mode
from manager.raft.quorum import Outcome
from manager.raft.work import Ready, Role, Write

# A member that was away never is so far behind, and nobody can use up all terms with one message:
# terms end at 2^62, and a cluster that has reached that can elect nobody any more.
TERMS_AHEAD_MAX = 1 << 32


class Raft:
    """One member. Not re-entrant; `ready` must be asked after every input."""

    def __init__(
        self,
        member_id: str,
        config: RaftConfig,
        rng: random.Random,
        log: Log,
        hard_state: HardState,
        snapshot: SnapshotMeta | None = None,
    ) -> None:
        """`log`, `hard_state` and `snapshot` as they were found on disk."""
        self.id = member_id
        self.log = log
        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.role = Role.FOLLOWER
        self.leader_id = ""
        self.leadership: Leadership | None = None
        self.snapshot = snapshot  # the newest on disk, for followers that are far behind
        self.removed = member_id in log.configuration_at(log.base_index).removed
        log.commit_to(hard_state.commit)
        self._config = config
        self._rng = rng
        self._now = 0
        self._elapsed = 0  # ticks since we heard a leader, voted or became a candidate
        self._timeout = 0
        self._votes: dict[str, bool] = {}
        self._incoming = Incoming(config.snapshot_bytes_max, config.receive_bytes_max)
        self._install: SnapshotMeta | None = None  # received whole; on its way to the disk
        self._restoring = False  # it is on disk, and the machine is becoming that state
        self._saved = hard_state  # as of the last write that was taken
        self._durable = (self.term, self.voted_for)
        self._messages: list[AnyMessage] = []
        self._promises: list[AnyMessage] = []
        self._writing: Write | None = None
        self._new_timeout()

    # Inputs

    def tick(self) -> None:
        """`tick_ms` have passed."""
        self._now += 1
        if self.leadership:
            if not self.leadership.tick(self._now):
                self._become_follower(self.term, "")
            return
        self._elapsed += 1
        alone = self.log.configuration.voters == (self.id,)
        if self._may_lead and (alone or self._elapsed >= self._timeout):
            self._campaign(pre=True)
        elif self._elapsed >= self._config.election_max_ticks:
            self.leader_id = ""

    def step(self, message: AnyMessage) -> None:
        """Take in a message from a peer. Raises ProtocolError; the state is then unharmed."""
        if message.target != self.id or message.source == self.id:
            return
        if message.term > self.term + TERMS_AHEAD_MAX:
            raise ProtocolError(f"term {message.term} is too far ahead of {self.term}")
        if isinstance(message, Removed):
            self._on_removed(message)
        elif message.source in self.log.configuration_at(self.log.applied).removed:
            self._send(Removed(self.id, message.source, self.term))
        elif message.term < self.term:
            self._on_old_term(message)
        elif message.term == self.term or self._enter_term(message):
            self._dispatch(message)

    def propose(self, data: bytes) -> int:
        """Append `data` to the log if we lead; the index it gets.

        Raises NotLeader, Invalid or Unavailable; then nothing was written.
        """
        leadership = self._leading()
        if not data:
            raise Invalid("an entry for the state machine is never empty")
        if len(data) > self._config.entry_bytes_max:
            raise Invalid(
                f"an entry of {len(data)} bytes is larger than {self._config.entry_bytes_max}; "
                "split the change"
            )
        if leadership.uncommitted_bytes + len(data) > self._config.uncommitted_bytes_max:
            raise Unavailable("too many writes wait for a majority of the managers; try again")
        leadership.uncommitted_bytes += len(data)
        return self._append(EntryKind.DATA, data)

    @property
    def can_change(self) -> bool:
        """Whether a membership change could start now, if it is a good one."""
        leadership = self.leadership
        return (
            leadership is not None
            and leadership.has_committed
            and self.log.configuration_index <= self.log.commit
        )

    def propose_change(self, change: Change) -> int:
        """Start a membership change; the index of its entry, or 0 if nothing has to change.

        Raises NotLeader, Conflict, NotFound or Invalid; then nothing was written.
        """
        leadership = self._leading()
        if not self.can_change:
            raise Conflict("another membership change is under way; try again")
        standing = Standing(self.id, leadership.is_active, self._caught_up)
        configuration = self.log.configuration
        changed = next_configuration(configuration, change, standing)
        if changed is configuration:
            return 0
        index = self._append(EntryKind.CONFIGURATION, encode_configuration(changed))
        leadership.follow_configuration()
        leadership.advance_commit()
        return index

    def read_index(self, token: int) -> None:
        """Ask for a linearizable read point; it comes with `ready`, unless leadership is lost."""
        if self.leadership is None:
            raise self._not_leader()
        self.leadership.read(token)

    def transfer(self, target: str = "") -> str:
        """Start to hand leadership over; to whom. Raises NotLeader or Conflict."""
        if self.leadership is None:
            raise self._not_leader()
        return self.leadership.start_transfer(target)

    def written(self, write: Write) -> None:
        """`write` is on disk: what it promised may be sent, and counts."""
        assert write is self._writing
        self._writing = None
        if write.hard_state:
            self._durable = (write.hard_state.term, write.hard_state.voted_for)
        if write.install:
            self.snapshot = write.install
            self._install = None
            self._restoring = True
        self.log.written(write.entries)
        if self.leadership:
            self.leadership.advance_commit()

    def restored(self) -> None:
        """The machine has become the state of the snapshot that was written last."""
        self._restoring = False

    def snapshot_saved(self, meta: SnapshotMeta) -> None:
        """Our own snapshot is on disk: forget the entries before it, but for the newest.

        Followers that are getting an older snapshot will need the entries that follow it: without
        them a slow one would have to start again and again. Those are kept up to a bound.
        """
        if self.snapshot is None or meta.index >= self.snapshot.index:
            self.snapshot = meta
            config = self._config
            last = self.log.tail(meta.index, config.keep_entries, config.keep_bytes)
            if pinned := self.pinned:
                wanted = min(snapshot.index for snapshot in pinned)
                held = self.log.tail(meta.index, meta.index, config.transfer_log_bytes)
                last = min(last, max(wanted, held))
            self.log.compact(last)

    @property
    def pinned(self) -> tuple[SnapshotMeta, ...]:
        """The snapshots that followers are getting from us, which should not be removed yet."""
        return self.leadership.pinned if self.leadership else ()

    def snapshot_missing(self, target: str, meta: SnapshotMeta) -> None:
        """The snapshot `meta` that was on its way to `target` is no longer on disk."""
        progress = self.leadership.progress.get(target) if self.leadership else None
        if progress and progress.snapshot == meta:
            progress.probe()

    def snapshot_damaged(self, meta: SnapshotMeta) -> None:
        """The snapshot `meta` on disk is of no use: followers wait for the next one."""
        if self.snapshot == meta:
            self.snapshot = None
        for target in self.leadership.progress if self.leadership else ():
            self.snapshot_missing(target, meta)

    # Output

    def ready(self, *, announce: bool = True) -> Ready:
        """Take out the work there is.

        Without `announce` followers are told what is committed only along with something else:
        see `has_news`.
        """
        reads: list[tuple[int, int]] = []
        chunks: list[ChunkRequest] = []
        if leadership := self.leadership:
            leadership.ask_for_reads()
            leadership.replicate(self.snapshot, announce=announce)
            chunks, leadership.chunks = leadership.chunks, []
            reads, leadership.reads_done = leadership.reads_done, []
        committed = () if self.installing else self._take_committed()
        for entry in committed:
            if entry.kind is EntryKind.CONFIGURATION:
                self._note_committed(entry)
        write = self._next_write()
        messages, self._messages = tuple(self._messages), []
        return Ready(messages, tuple(chunks), committed, tuple(reads), write)

    @property
    def installing(self) -> bool:
        """Whether the log is ahead of the state: a snapshot goes to the disk, or the machine."""
        return self._install is not None or self._restoring

    @property
    def has_news(self) -> bool:
        """Whether we lead and followers have not been told yet what is committed."""
        return self.leadership is not None and self.leadership.has_news

    @property
    def has_committed(self) -> bool:
        """Whether `ready` has more to apply."""
        log = self.log
        return not self.installing and log.applied < min(log.commit, log.stable)

    def _take_committed(self) -> tuple[Entry, ...]:
        return self.log.take_committed(self._config.apply_batch, self._config.apply_bytes)

    def _next_write(self) -> Write | None:
        if self._writing:
            return None
        # Only a commit index whose entries are on disk: it must never cover replaced ones.
        state = HardState(self.term, self.voted_for, min(self.log.commit, self.log.stable))
        changed = (state.term, state.voted_for) != (self._saved.term, self._saved.voted_for)
        if not (changed or self._incoming.has_work or self._install or self.log.has_unwritten):
            self._messages.extend(self._promises)
            self._promises.clear()
            return None
        entries = self.log.take_unwritten()
        discard, parts = self._incoming.take()
        self._writing = Write(
            discard=discard,
            parts=parts,
            install=self._install,
            hard_state=state if state != self._saved else None,
            entries=entries,
            messages=tuple(self._promises),
        )
        self._promises.clear()
        self._saved = state
        return self._writing

    def _note_committed(self, entry: Entry) -> None:
        """Tell those who were removed; they get no more entries, not even this one."""
        removed = decode_configuration(entry.data).removed
        self.removed = self.removed or self.id in removed
        if self.leadership:
            before = self.log.configuration_at(entry.index - 1).removed
            for member in removed[len(before) :]:
                self._send(Removed(self.id, member, self.term))

    def _send(self, message: AnyMessage) -> None:
        """Queue `message`: behind the next sync if it promises anything."""
        promise = isinstance(message, AppendReply | SnapshotReply) or (
            isinstance(message, Vote | VoteReply) and not message.pre
        )
        # A term that could be forgotten must not be heard of.
        if promise or self._durable != (self.term, self.voted_for):
            self._promises.append(message)
        else:
            self._messages.append(message)

    # Terms and roles

    def _enter_term(self, message: AnyMessage) -> bool:
        """Deal with a message from a later term; whether it is to be looked at further."""
        match message:
            case Vote(transfer=False) if self._has_leader:
                # 4.2.3: whoever hears a leader does not help to replace it.
                if message.pre:
                    self._send(VoteReply(self.id, message.source, self.term, True, False))
                return False
            case Vote(pre=True) | VoteReply(pre=True, granted=True):
                return True  # no term was entered yet, only talked about
            case Append() | Heartbeat() | SnapshotChunk():
                self._become_follower(message.term, message.source)
            case _:
                self._become_follower(message.term, "")
        return True

    def _on_old_term(self, message: AnyMessage) -> None:
        match message:
            case Vote():
                self._send(VoteReply(self.id, message.source, self.term, message.pre, False))
            case Append() | Heartbeat() | SnapshotChunk():
                # Whoever leads an old term, perhaps unable to see the new one, learns of it.
                self._send(HeartbeatReply(self.id, message.source, self.term, 0))
            case _:
                pass

    @property
    def _has_leader(self) -> bool:
        if self.leadership:
            return True
        return bool(self.leader_id) and self._elapsed < self._config.lease_ticks

    @property
    def _may_lead(self) -> bool:
        return not self.removed and not self.installing and self.id in self.log.configuration.voters

    def _become_follower(self, term: int, leader_id: str) -> None:
        if term > self.term:
            self.term = term
            self.voted_for = ""
        self.role = Role.FOLLOWER
        self.leadership = None
        if leader_id != self.leader_id:
            self._incoming.drop()
        self.leader_id = leader_id
        self._new_timeout()

    def _new_timeout(self) -> None:
        self._elapsed = 0
        self._timeout = self._rng.randrange(
            self._config.election_min_ticks, self._config.election_max_ticks
        )

    def _campaign(self, *, pre: bool, transfer: bool = False) -> None:
        """Stand for election; with `pre`, first ask whether it could be won (9.6)."""
        self.leader_id = ""
        self._incoming.drop()
        if pre:
            self.role = Role.PRE_CANDIDATE
        else:
            self.role = Role.CANDIDATE
            self.term += 1
            self.voted_for = self.id
        self._new_timeout()
        self._votes = {self.id: True}
        term = self.term + 1 if pre else self.term
        last_index, last_term = self.log.last_index, self.log.last_term
        for voter in self.log.configuration.voters:
            if voter != self.id:
                self._send(Vote(self.id, voter, term, pre, last_index, last_term, transfer))
        self._count_votes()

    def _count_votes(self) -> None:
        outcome = quorum.tally(self.log.configuration.voters, self._votes)
        if outcome is Outcome.LOST:
            was_asking = self.role is Role.PRE_CANDIDATE
            self._become_follower(self.term, "")
            if was_asking:
                # Asking disturbs nobody, so ask again soon; the leader may just have died.
                soon = self._config.election_min_ticks // 2
                self._elapsed = max(self._timeout - self._rng.randrange(1, soon + 1), 0)
        elif outcome is Outcome.WON and self.role is Role.PRE_CANDIDATE:
            self._campaign(pre=False)
        elif outcome is Outcome.WON:
            self._become_leader()

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self.leader_id = self.id
        self.leadership = Leadership(
            self.id, self.term, self._config, self.log, self._send, self._now
        )
        # 6.4: only an entry of its own term tells a leader what is committed.
        self._append(EntryKind.NOOP, b"")

    def _append(self, kind: EntryKind, data: bytes) -> int:
        entry = Entry(self.log.last_index + 1, self.term, kind, data)
        self.log.append(entry)
        return entry.index

    def _leading(self) -> Leadership:
        """Our leadership if it takes proposals. Raises NotLeader."""
        if self.leadership is None:
            raise self._not_leader()
        if transfer := self.leadership.transfer:
            member = self.log.configuration.find(transfer.target)
            raise NotLeader(
                "this manager is handing leadership over; try again",
                member.address if member else "",
            )
        return self.leadership

    def _not_leader(self) -> NotLeader:
        leader = self.leader
        if leader is None or leader.id == self.id:
            return NotLeader("the cluster has no leader; are a majority of the managers up?")
        return NotLeader(f"this manager does not lead; {leader.address} does", leader.address)

    @property
    def leader(self) -> Member | None:
        """Whom we follow, if we know how to reach it."""
        return self.log.configuration.find(self.leader_id) if self.leader_id else None

    def _caught_up(self, member_id: str) -> bool:
        """Whether a member has all but the last few entries and bytes; a snapshot is never few."""
        progress = self.leadership.progress.get(member_id) if self.leadership else None
        if progress is None or progress.mode is not Mode.REPLICATE:
            return False
        log, config = self.log, self._config
        return progress.match >= log.tail(
            log.last_index, config.promote_lag_max, config.promote_lag_bytes
        )

    # One method for each message

    def _dispatch(self, message: AnyMessage) -> None:
        match message:
            case Vote():
                self._on_vote(message)
            case VoteReply():
                self._on_vote_reply(message)
            case Append():
                self._hear_leader(message)
                self._on_append(message)
            case Heartbeat():
                self._hear_leader(message)
                self.log.commit_to(message.commit)
                self._send(HeartbeatReply(self.id, message.source, self.term, message.round))
            case SnapshotChunk():
                self._hear_leader(message)
                self._on_chunk(message)
            case AppendReply() if self.leadership:
                self.leadership.on_append_reply(message, self.snapshot)
            case HeartbeatReply() if self.leadership:
                self.leadership.on_heartbeat_reply(message)
            case SnapshotReply() if self.leadership:
                self.leadership.on_snapshot_reply(message)
            case TimeoutNow() if self._may_lead and message.source == self.leader_id:
                self._campaign(pre=False, transfer=True)
            case _:
                pass  # an answer to what we no longer are

    def _on_vote(self, vote: Vote) -> None:
        if vote.pre:
            free = vote.term > self.term
        else:
            free = self.voted_for == vote.source or (not self.voted_for and not self.leader_id)
        granted = free and self.log.is_current(vote.last_index, vote.last_term)
        if granted and not vote.pre:
            self.voted_for = vote.source
            self._new_timeout()
        term = vote.term if granted else self.term
        self._send(VoteReply(self.id, vote.source, term, vote.pre, granted))

    def _on_vote_reply(self, reply: VoteReply) -> None:
        if reply.pre:
            expected = self.role is Role.PRE_CANDIDATE and (
                not reply.granted or reply.term == self.term + 1
            )
        else:
            expected = self.role is Role.CANDIDATE
        if expected:
            self._votes.setdefault(reply.source, reply.granted)
            self._count_votes()

    def _hear_leader(self, message: Append | Heartbeat | SnapshotChunk) -> None:
        if self.leadership:
            # A majority would have had to vote twice.
            raise ProtocolError(f"{message.source} also claims to lead term {self.term}")
        if self.role is not Role.FOLLOWER or self.leader_id != message.source:
            self._become_follower(self.term, message.source)
        self._elapsed = 0

    def _on_append(self, append: Append) -> None:
        log = self.log
        reply = AppendReply(self.id, append.source, self.term, log.commit)
        if append.previous_index >= log.commit:
            if log.term(append.previous_index) == append.previous_term:
                log.merge(append.entries)
                last = append.previous_index + len(append.entries)
                log.commit_to(min(append.commit, last))
                reply = msgspec.structs.replace(reply, index=last)
            else:
                hint = log.conflict_hint(append.previous_index, append.previous_term)
                reply = AppendReply(
                    self.id, append.source, self.term, append.previous_index, True, *hint
                )
        self._send(reply)

    def _on_chunk(self, chunk: SnapshotChunk) -> None:
        meta = chunk.meta
        if meta.index <= self.log.commit or self.log.term(meta.index) == meta.term:
            # What the snapshot holds is here already.
            self.log.commit_to(meta.index)
            self._incoming.drop()
            index = min(meta.index, self.log.last_index)
            self._send(AppendReply(self.id, chunk.source, self.term, index))
            return
        if self.installing:
            return  # one at a time; the leader will ask again
        incoming = self._incoming
        incoming.add(chunk)
        if incoming.complete:
            self._install_snapshot(meta)
            self._send(AppendReply(self.id, chunk.source, self.term, meta.index))
        else:
            self._send(SnapshotReply(self.id, chunk.source, self.term, meta.index, incoming.wanted))

    def _install_snapshot(self, meta: SnapshotMeta) -> None:
        self._incoming.done()
        self._install = meta
        self.log.restore(meta)
        self.removed = self.removed or self.id in meta.configuration.removed

    def _on_removed(self, message: Removed) -> None:
        if self.log.configuration.find(message.source):
            self.removed = True
            self._become_follower(self.term, "")
