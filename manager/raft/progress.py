"""One follower as its leader sees it, with all transitions in one place.

    PROBE ── accepted ──> REPLICATE          PROBE: one append at a time, to find the common prefix
      ^  ^──── rejected ──────┘              REPLICATE: a window of appends on their way
      └─ installed ── SNAPSHOT <── needs what is compacted        SNAPSHOT: a window of chunks

Invariant: 0 <= match < next.
"""

import collections
import enum

from manager.raft.message import SnapshotMeta


class Mode(enum.Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """What a leader knows of one follower."""

    def __init__(
        self, next_index: int, now: int, window: int, window_bytes: int, chunks_bytes: int
    ) -> None:
        """`now` and all moments are in ticks; `chunks_bytes` of a snapshot may be on their way."""
        self.match = 0
        self.next = next_index
        self.mode = Mode.PROBE
        self.heard_at = now
        self.answered_round = 0
        self.snapshot: SnapshotMeta | None = None
        self.offset = 0  # of the next chunk to be sent
        self._wanted = 0  # all before this offset has arrived
        self._asked = 0  # the offset of the last answer
        self._repeated = False  # what is behind `_wanted` was sent again already
        self._moved_at = now  # when `_wanted` last grew
        self._window = window
        self._window_bytes = window_bytes
        self._chunks_bytes = chunks_bytes
        self._flying: collections.deque[tuple[int, int]] = collections.deque()  # last index, bytes
        self._flying_bytes = 0
        self._waiting = False  # for the answer to a probe or the last chunk
        self._sent_at = now

    @property
    def ready(self) -> bool:
        """Whether something may be sent now."""
        if self.mode is Mode.REPLICATE:
            return len(self._flying) < self._window and self._flying_bytes < self._window_bytes
        if self.mode is Mode.SNAPSHOT and self.offset - self._wanted >= self._chunks_bytes:
            return False
        return not self._waiting

    def sent_append(self, last_index: int, size: int) -> None:
        """An append with entries up to `last_index` (the previous index if none) has left."""
        if self.mode is Mode.REPLICATE:
            if last_index >= self.next:
                self.next = last_index + 1
                self._flying.append((last_index, size))
                self._flying_bytes += size
        else:
            self._waiting = True

    def sent_chunk(self, size: int, now: int) -> None:
        if self.offset == self._wanted:
            self._sent_at = now
        self._go_to(self.offset + size)

    def accepted(self, index: int) -> bool:
        """The follower has everything up to `index`; whether that was news."""
        while self._flying and self._flying[0][0] <= index:
            self._flying_bytes -= self._flying.popleft()[1]
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, index + 1)
        if self.mode is Mode.PROBE or (
            self.mode is Mode.SNAPSHOT and self.snapshot and self.match >= self.snapshot.index
        ):
            self._become(Mode.REPLICATE)
            self.next = self.match + 1
        return news

    def rejected(self, index: int, hint: int) -> bool:
        """It lacks entry `index`; the common prefix ends at `hint` or before. False if stale."""
        if self.mode is Mode.REPLICATE:
            if index <= self.match:
                return False
            self.probe()
            return True
        if self.mode is Mode.SNAPSHOT or self.next - 1 != index:
            return False
        if index <= self.match:
            return False  # it lost what it had acknowledged; asking faster does not help
        self.next = max(min(index, hint + 1), self.match + 1)
        self._waiting = False
        return True

    def heard(self, now: int) -> None:
        self.heard_at = now

    def unstick(self) -> None:
        """The follower lives, so an answer that has not come is not coming."""
        if self.mode is Mode.PROBE:
            self._waiting = False

    def send_snapshot(self, meta: SnapshotMeta, now: int) -> None:
        self._become(Mode.SNAPSHOT)
        self.snapshot = meta
        self.offset = self._wanted = self._asked = 0
        self._repeated = False
        self._moved_at = now

    def chunk_wanted(self, index: int, offset: int, now: int) -> None:
        """The follower wants the chunk at `offset` of snapshot `index`."""
        if self.mode is not Mode.SNAPSHOT or not self.snapshot or self.snapshot.index != index:
            return
        self._asked = min(offset, self.snapshot.size)
        if self._asked > self._wanted:
            self._wanted = self._asked
            self._repeated = False
            self._moved_at = self._sent_at = now
            self._go_to(max(self.offset, self._wanted))
        elif self._asked == self._wanted and not self._repeated:
            # A chunk got lost. Each that came behind it says so; once is enough.
            self._repeated = True
            self._sent_at = now
            self.offset = self._wanted
            self._waiting = False

    def chunk_late(self, now: int, patience: int) -> None:
        """Send again, from where the last answer says, if nothing was answered for long."""
        flying = self._waiting or self.offset > self._wanted
        if self.mode is Mode.SNAPSHOT and flying and now - self._sent_at >= patience:
            self.offset = self._wanted = self._asked
            self._sent_at = now
            self._waiting = False

    def is_stalled(self, now: int, patience: int) -> bool:
        """Whether a snapshot is on its way, but has not moved for longer than `patience`."""
        return self.mode is Mode.SNAPSHOT and now - self._moved_at > patience

    def _go_to(self, offset: int) -> None:
        """Send what is at `offset` next; at the end, nothing."""
        self.offset = offset
        self._waiting = self.snapshot is not None and offset >= self.snapshot.size

    def probe(self) -> None:
        """What is on its way leads nowhere (compacted, or replaced): see what it needs."""
        self._become(Mode.PROBE)
        self.next = self.match + 1

    def _become(self, mode: Mode) -> None:
        self.mode = mode
        self.snapshot = None
        self._waiting = False
        self._flying.clear()
        self._flying_bytes = 0
