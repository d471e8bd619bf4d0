"""One follower as its leader sees it, with all transitions in one place.

    PROBE ── accepted ──> REPLICATE          PROBE: one append at a time, to find the common prefix
      ^  ^──── rejected ──────┘              REPLICATE: a window of appends on their way
      └─ installed ── SNAPSHOT <── needs what is compacted        SNAPSHOT: chunk after chunk

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

    def __init__(self, next_index: int, now: int, window: int, window_bytes: int) -> None:
        """`now` and all moments are in ticks."""
        self.match = 0
        self.next = next_index
        self.mode = Mode.PROBE
        self.heard_at = now
        self.answered_round = 0
        self.snapshot: SnapshotMeta | None = None
        self.offset = 0  # of the next chunk
        self._window = window
        self._window_bytes = window_bytes
        self._flying: collections.deque[tuple[int, int]] = collections.deque()  # last index, bytes
        self._flying_bytes = 0
        self._waiting = False  # for the answer to a probe or a chunk
        self._sent_at = now

    @property
    def ready(self) -> bool:
        """Whether something may be sent now."""
        if self.mode is Mode.REPLICATE:
            return len(self._flying) < self._window and self._flying_bytes < self._window_bytes
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

    def sent_chunk(self, now: int) -> None:
        self._waiting = True
        self._sent_at = now

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

    def send_snapshot(self, meta: SnapshotMeta) -> None:
        self._become(Mode.SNAPSHOT)
        self.snapshot = meta
        self.offset = 0

    def chunk_wanted(self, index: int, offset: int) -> None:
        """The follower wants the chunk at `offset` of snapshot `index`."""
        if self.mode is Mode.SNAPSHOT and self.snapshot and self.snapshot.index == index:
            self.offset = min(offset, self.snapshot.size)
            self._waiting = False

    def chunk_late(self, now: int, patience: int) -> None:
        """Send the chunk again if its answer is overdue."""
        if self.mode is Mode.SNAPSHOT and self._waiting and now - self._sent_at >= patience:
            self._waiting = False

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
