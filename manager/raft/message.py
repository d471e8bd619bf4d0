"""What managers say to each other about the log, and the records that the log is made of.

Data only. One small class for each kind of message; on the wire they are MessagePack arrays
inside an `Envelope`, which says where its sender can be reached: a joiner with an empty log
knows nobody, and still must answer the leader that contacts it.
"""

import enum
from collections.abc import Sequence

import msgspec

MEMBERS_MAX = 64  # more than anybody should run; bounds what a hostile configuration can cost
ENTRIES_PER_MESSAGE_MAX = 100_000

_MAX = (1 << 62) - 1


class ProtocolError(ValueError):
    """A peer sent what no correct peer sends. The message is dropped; we go on."""


class EntryKind(enum.IntEnum):
    """What the data of an entry is for."""

    DATA = 0  # for the state machine
    NOOP = 1  # a new leader's first, so that it learns what is committed (thesis 6.4)
    CONFIGURATION = 2  # an encoded Configuration


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One place in the log. `index` counts from 1 and has no gaps."""

    index: int
    term: int
    kind: EntryKind
    data: bytes = b""


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A manager as the cluster knows it.

    `id` is random, made by whoever adds the member, and never used again; a manager that lost
    its disk needs a new one. `address` is "host:port" and may change. A learner gets the log
    but has no vote.
    """

    id: str
    node_id: str
    address: str
    learner: bool = False


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who is in the cluster, and who was: ids in `removed` may never come back."""

    members: tuple[Member, ...] = ()
    removed: tuple[str, ...] = ()

    def find(self, member_id: str) -> Member | None:
        for member in self.members:
            if member.id == member_id:
                return member
        return None

    @property
    def voters(self) -> tuple[str, ...]:
        return tuple(member.id for member in self.members if not member.learner)


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must survive a crash. `commit` is only a hint that saves time at the next start."""

    term: int = 0
    voted_for: str = ""
    commit: int = 0


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """Which state a snapshot holds: that after entry `index`. `crc` is CRC-32 of its bytes."""

    index: int
    term: int
    configuration: Configuration
    size: int
    crc: int


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """What all messages have. `term` is the sender's, but for pre-votes: there the next one."""

    source: str
    target: str
    term: int


class Vote(Message, frozen=True, tag="v"):
    """A candidate asks for a vote, or with `pre` whether it would get one (thesis 3.4, 9.6)."""

    pre: bool
    last_index: int
    last_term: int
    transfer: bool = False  # the leader itself wants this election (thesis 3.10)


class VoteReply(Message, frozen=True, tag="V"):
    pre: bool
    granted: bool


class Append(Message, frozen=True, tag="a"):
    """The leader's entries after `previous_index`; empty ones only probe."""

    previous_index: int
    previous_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


class AppendReply(Message, frozen=True, tag="A"):
    """Accepted: everything up to `index` is on disk here and equals the leader's.

    Rejected: `index` is the refused `previous_index`, and the logs can only agree at or before
    `hint_index`, where ours has `hint_term`.
    """

    index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(Message, frozen=True, tag="h"):
    """The leader lives. `round` numbers the question "do you still follow me?"."""

    commit: int
    round: int


class HeartbeatReply(Message, frozen=True, tag="H"):
    round: int


class SnapshotChunk(Message, frozen=True, tag="s"):
    meta: SnapshotMeta
    offset: int
    data: bytes


class SnapshotReply(Message, frozen=True, tag="S"):
    """`offset` is where the receiver of snapshot `index` wants to go on."""

    index: int
    offset: int


class TimeoutNow(Message, frozen=True, tag="t"):
    """The leader hands over: hold an election at once."""


class Removed(Message, frozen=True, tag="r"):
    """The cluster has committed the target's removal."""


AnyMessage = (
    Vote
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | SnapshotChunk
    | SnapshotReply
    | TimeoutNow
    | Removed
)


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message, and its sender's node and address as the sender's configuration has them."""

    node_id: str
    address: str
    message: AnyMessage


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_configurations = msgspec.msgpack.Decoder(Configuration)


def encode(node_id: str, address: str, message: AnyMessage) -> bytes:
    return _encoder.encode(Envelope(node_id, address, message))


def decode(data: bytes) -> Envelope:
    """The envelope in `data`, with everything checked that needs no knowledge of the log.

    Raises ProtocolError.
    """
    try:
        envelope = _envelopes.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a Raft message: {error}") from error
    _check(envelope.message)
    return envelope


def encode_configuration(configuration: Configuration) -> bytes:
    return _encoder.encode(configuration)


def decode_configuration(data: bytes) -> Configuration:
    """Raises ProtocolError."""
    try:
        configuration = _configurations.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a configuration: {error}") from error
    _check_configuration(configuration)
    return configuration


def _check(message: AnyMessage) -> None:
    _natural("term", message.term)
    if not message.source or not message.target:
        raise ProtocolError("a message without source or target")
    match message:
        case Vote(last_index=index, last_term=term):
            _natural("last index", index, term)
        case Append():
            _natural("index", message.previous_index, message.previous_term, message.commit)
            _check_entries(message)
        case AppendReply():
            _natural("index", message.index, message.hint_index, message.hint_term)
        case Heartbeat():
            _natural("commit", message.commit, message.round)
        case HeartbeatReply():
            _natural("round", message.round)
        case SnapshotChunk(meta=meta):
            _natural("snapshot", meta.index, meta.term, meta.size, meta.crc, message.offset)
            _check_configuration(meta.configuration)
            if meta.index == 0 or meta.term > message.term:
                raise ProtocolError("a snapshot of nothing, or from a later term than its sender")
        case SnapshotReply():
            _natural("snapshot", message.index, message.offset)
        case VoteReply() | TimeoutNow() | Removed():
            pass


def _natural(what: str, *numbers: int) -> None:
    for number in numbers:
        if not 0 <= number <= _MAX:
            raise ProtocolError(f"{what} out of range: {number}")


def _check_entries(append: Append) -> None:
    if len(append.entries) > ENTRIES_PER_MESSAGE_MAX:
        raise ProtocolError("too many entries in one message")
    check_sequence(append.entries, append.previous_index, append.previous_term)
    if append.entries and append.entries[-1].term > append.term:
        raise ProtocolError("an entry from a later term than its sender")


def check_sequence(entries: Sequence[Entry], index: int, term: int) -> None:
    """Raise ProtocolError unless `entries` can follow the entry at `index` of `term`."""
    for entry in entries:
        if entry.index != index + 1 or entry.term < term:
            raise ProtocolError(f"entry {entry.index} of term {entry.term} after {index} of {term}")
        if entry.kind is EntryKind.CONFIGURATION:
            decode_configuration(entry.data)
        index, term = entry.index, entry.term


def _check_configuration(configuration: Configuration) -> None:
    ids = {member.id for member in configuration.members}
    if len(ids) != len(configuration.members) or len(ids) > MEMBERS_MAX or "" in ids:
        raise ProtocolError("a configuration with repeated, empty or too many members")
    if not configuration.voters or not ids.isdisjoint(configuration.removed):
        raise ProtocolError("a configuration without voters, or with removed members")
