"""What the core hands its driver to do, and the roles a member can have. Data only."""

import enum

import msgspec

from manager.raft.incoming import Part
from manager.raft.leadership import ChunkRequest
from manager.raft.message import AnyMessage, Entry, HardState, SnapshotMeta


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """To be put on disk in the order of these fields, synced, and given to `written`."""

    discard: bool = False  # what was received of a snapshot that is not complete
    parts: tuple[Part, ...] = ()  # of the snapshot that is being received
    install: SnapshotMeta | None = None  # it was received whole; it replaces log and state
    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()  # the first replaces any entry of its index, and all behind it
    messages: tuple[AnyMessage, ...] = ()  # to be sent after the sync, not before


class Ready(msgspec.Struct, frozen=True):
    """Work for the driver."""

    messages: tuple[AnyMessage, ...]  # promise nothing: send now
    chunks: tuple[ChunkRequest, ...]
    committed: tuple[Entry, ...]  # apply in this order
    reads: tuple[tuple[int, int], ...]  # (token, index): readable once index is applied
    write: Write | None
