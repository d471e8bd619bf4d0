"""The settings of one member: how fast, and how much at once."""

import msgspec

from common.config import RaftTiming


class RaftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds, rounded to ticks; sizes in bytes of entry data."""

    tick_ms: int = 50
    heartbeat_ms: int = 100
    election_min_ms: int = 500
    election_max_ms: int = 1000
    append_bytes: int = 1 << 20  # one append holds about this much
    window: int = 64  # appends on their way to one follower
    window_bytes: int = 8 << 20
    chunk_bytes: int = 256 << 10  # of a snapshot; one frame of its file
    chunk_window: int = 8  # chunks on their way to one follower
    receive_bytes_max: int = 8 << 20  # of a snapshot's chunks that wait for our disk
    snapshot_stall_ms: int = 30_000  # a follower that takes no chunk for so long begins anew
    transfer_log_bytes: int = 64 << 20  # entries kept for followers that are getting a snapshot
    entry_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 64 << 20  # beyond, proposals are refused
    snapshot_entries: int = 10_000  # applied since the last snapshot before the next is taken
    snapshot_log_bytes: int = 32 << 20  # or this much entry data applied since then (trigger.py)
    snapshot_stretch_max: int = 4  # both grow with the last snapshot's size, so many times at most
    keep_entries: int = 1_000  # before a snapshot, for followers that are a little behind
    keep_bytes: int = 8 << 20  # of them at the most; an entry may be megabytes
    snapshot_bytes_max: int = 1 << 30  # refuse to receive more
    promote_lag_max: int = 1_000  # entries a learner may be behind when it gets its vote
    promote_lag_bytes: int = 8 << 20  # and bytes
    apply_batch: int = 256  # entries applied before other work gets its turn
    apply_bytes: int = 256 << 10  # or so much of their data: tens of milliseconds

    @classmethod
    def of(cls, timing: RaftTiming) -> "RaftConfig":
        """The daemon's timing, all else as usual."""
        return cls(
            tick_ms=max(timing.heartbeat_ms // 2, 1),
            heartbeat_ms=timing.heartbeat_ms,
            election_min_ms=timing.election_min_ms,
            election_max_ms=timing.election_max_ms,
        )

    @property
    def heartbeat_ticks(self) -> int:
        return max(self.heartbeat_ms // self.tick_ms, 1)

    @property
    def snapshot_stall_ticks(self) -> int:
        return max(self.snapshot_stall_ms // self.tick_ms, self.election_max_ticks)

    @property
    def election_min_ticks(self) -> int:
        return max(self.election_min_ms // self.tick_ms, 2)

    @property
    def election_max_ticks(self) -> int:
        return max(self.election_max_ms // self.tick_ms, self.election_min_ticks + 1)

    @property
    def lease_ticks(self) -> int:
        """How long a member that heard its leader refuses to elect another.

        Two ticks short of the earliest candidacy: members hear the same last heartbeat at
        slightly different moments, and the first to miss the leader should not be sent away.
        """
        return max(self.election_min_ticks - 2, 1)
