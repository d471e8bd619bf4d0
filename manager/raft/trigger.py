"""When to take the next snapshot. Pure.

A snapshot costs its own size in writing, whatever has changed; so the larger the last one was, the
more of the log should have come since. As in Redis, which rewrites its log when that has grown by a
part of what the last rewrite left: with half of it, the snapshots write two bytes for each byte of
the log at the most. Bounded, because what has come since a snapshot is held in memory and applied
again at each start.
"""

from manager.raft.config import RaftConfig


def is_due(config: RaftConfig, entries: int, size: int, last_size: int) -> bool:
    """Whether to take one, `entries` of `size` bytes after one that is `last_size` bytes long."""
    least = config.snapshot_log_bytes
    limit = min(max(least, last_size // 2), least * config.snapshot_stretch_max)
    return size >= limit or entries * least >= config.snapshot_entries * limit
