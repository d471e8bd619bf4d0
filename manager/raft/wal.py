"""The write-ahead log as bytes: records in, segments out, and back. No I/O.

A segment is a file of fixed size, zero-filled before use, holding a stream of MessagePack
arrays `[check, kind, term, index, payload]`. All integers have a fixed width, so a header is
always HEAD.size bytes.

`check` is two CRC-32: of the header, which continues that of the record before (so records
cannot be swapped or left out), and of header and payload. With its own check a header's
length can be trusted even if the payload is bad. Both cover what is stored, so damage shows
without any key, and a wrong key is not mistaken for damage.

Every record but the header is sealed (sealing.py): its payload is nonce, ciphertext and tag,
and the seal covers kind, term, index and offset too, in a file key that belongs to this
member's segment of this number. So a record opens only where it was written. Votes and terms
(STATE) hold no secrets, and are sealed all the same: they are what must not be forged, and as
every segment begins with one, a wrong key shows at the first record. Segments of version 1
hold plain payloads; they are read, and never written.

Telling a torn write from damage: a crash leaves sectors of the last, unacknowledged write
unwritten, and unwritten sectors are zero. Records are laid out so that each sector they
touch has at least two bytes of theirs that are not zero. So a bad record that lacks a whole
sector was torn, and the log ends before it; a bad record with all its sectors was complete
once, and that is damage, which is refused. One changed byte is never taken for a torn write.
The layout is made after sealing, so it holds for ciphertext with a long run of zeros, too.
"""

import base64
import enum
import struct
import zlib
from collections.abc import Iterable, Sequence

import msgspec

from manager.raft.message import Entry, EntryKind, HardState
from manager.raft.sealing import OVERHEAD, DataKey, Sealer

VERSION = 2
PLAIN_VERSION = 1  # not sealed
SECTOR = 512

HEAD = struct.Struct(">BBIIBBQBQBI")  # with MessagePack's type bytes between the fields
_ARRAY5, _UINT64, _BIN32 = 0x95, 0xCF, 0xC6
_CHECKED = struct.Struct(">IBQQI")  # what the header's CRC covers besides the chain
_CONTEXT = struct.Struct(">BQQQ")  # kind, term, index, offset: what a seal covers
_CHECK_BIT = 0x80000000  # a check is never a short MessagePack integer
_ZEROS = bytes(200)  # a payload with a longer run of zeros is armoured
_ARMOURED = 0x10


class RecordKind(enum.IntEnum):
    HEADER = 0  # first of every segment; index: the segment's number
    ENTRY = 1  # payload: kind of the entry, data
    STATE = 2  # payload: HardState
    SNAPSHOT = 3  # the log before was replaced by the snapshot of (index, term)


class Record(msgspec.Struct, frozen=True, gc=False):
    kind: RecordKind
    term: int
    index: int
    payload: bytes = b""


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What the first record of a segment says about it."""

    version: int
    member_id: str
    number: int  # of the segment, counting from 1
    size: int  # of the file, in bytes
    previous_chain: int  # the chain at the end of the segment before; 0 in the first
    key_id: str = ""  # of the data key; "" in version 1
    salt: bytes = b""  # makes the file's own key

    def sealer(self, key: DataKey) -> Sealer:
        """Of the records behind this header."""
        return Sealer.of(key, self.salt, f"shoal log {self.number} {self.member_id}")


class Writer:
    """Turns records into the bytes that follow `position` in a segment."""

    def __init__(self, position: int = 0, chain: int = 0, sealer: Sealer | None = None) -> None:
        self.position = position
        self.chain = chain
        self.sealer = sealer

    def encode(self, records: Iterable[Record]) -> bytes:
        """The bytes to write at the present position, which moves on."""
        out = bytearray()
        for record in records:
            self._add(out, record)
        return bytes(out)

    def _add(self, out: bytearray, record: Record) -> None:
        gap = _gap(self.position)
        begin = self.position + gap
        body = record.payload
        if self.sealer is not None:
            body = self.sealer.seal(body, _context(record, begin))
        payload = _wrap(body, begin + HEAD.size)
        size = len(payload)
        head_crc = _head_crc(self.chain, record.kind, record.term, record.index, size)
        self.chain = zlib.crc32(payload, head_crc)
        out += bytes(gap)
        out += HEAD.pack(
            _ARRAY5, _UINT64, head_crc, self.chain, record.kind,
            _UINT64, record.term, _UINT64, record.index, _BIN32, size,
        )  # fmt: skip
        out += payload
        self.position += gap + HEAD.size + size


class Tail(enum.Enum):
    """How a segment ends."""

    CLEAN = "clean"  # zeros after the last record
    TORN = "torn"  # a write was interrupted after the last record
    DAMAGED = "damaged"


class Scan(msgspec.Struct, frozen=True):
    """What is in a segment."""

    records: list[Record]  # sealed as they are stored
    offsets: list[int]  # where each begins
    end: int  # of the last good record
    chain: int
    tail: Tail


def scan(data: bytes) -> Scan:
    """Read the records of a segment up to the first that is not good."""
    records: list[Record] = []
    offsets: list[int] = []
    end = chain = 0
    while True:
        begin = end + _gap(end)
        found = _read(data, begin, chain)
        if found is None:
            return Scan(records, offsets, end, chain, _tail(data, begin, chain))
        record, end, chain = found
        records.append(record)
        offsets.append(begin)


def unsealed(record: Record, offset: int, sealer: Sealer | None) -> Record:
    """What the record found at `offset` holds. Raises NotOpened."""
    if sealer is None or record.kind is RecordKind.HEADER:
        return record
    body = sealer.open(record.payload, _context(record, offset))
    return Record(record.kind, record.term, record.index, body)


def size_bound(payload_bytes: int) -> int:
    """How much room a record with such a payload takes at most."""
    stored = payload_bytes + OVERHEAD
    return HEAD.size + 8 + stored + stored // 2


def _read(data: bytes, begin: int, chain: int) -> tuple[Record, int, int] | None:
    head = _read_head(data, begin, chain)
    if head is None:
        return None
    kind, term, index, size, head_crc, record_crc = head
    payload = data[begin + HEAD.size : begin + HEAD.size + size]
    if len(payload) < size or zlib.crc32(payload, head_crc) != record_crc:
        return None
    body = _unwrap(payload)
    if body is None:
        return None
    return Record(RecordKind(kind), term, index, body), begin + HEAD.size + size, record_crc


def _read_head(data: bytes, begin: int, chain: int) -> tuple[int, int, int, int, int, int] | None:
    """kind, term, index, size, header check and record check; None if not a good header."""
    if begin + HEAD.size > len(data):
        return None
    a, b, head_crc, record_crc, kind, c, term, d, index, e, size = HEAD.unpack_from(data, begin)
    if (a, b, c, d, e) != (_ARRAY5, _UINT64, _UINT64, _UINT64, _BIN32):
        return None
    if kind > max(RecordKind) or _head_crc(chain, kind, term, index, size) != head_crc:
        return None
    return kind, term, index, size, head_crc, record_crc


def _head_crc(chain: int, kind: int, term: int, index: int, size: int) -> int:
    return zlib.crc32(_CHECKED.pack(chain, kind, term, index, size)) | _CHECK_BIT


def _context(record: Record, offset: int) -> bytes:
    return _CONTEXT.pack(record.kind, record.term, record.index, offset)


def _tail(data: bytes, begin: int, chain: int) -> Tail:
    """Why there is no good record at `begin`."""
    if not any_set(data, begin, len(data)):
        return Tail.CLEAN
    head = _read_head(data, begin, chain)
    end = begin + HEAD.size + (head[3] if head else 0)
    boundary = begin // SECTOR * SECTOR + SECTOR
    if not any_set(data, begin, boundary):
        return Tail.TORN
    for sector in range(boundary, min(end, len(data)), SECTOR):
        if not any_set(data, sector, sector + SECTOR):
            return Tail.TORN
    return Tail.DAMAGED


def any_set(data: bytes, begin: int, end: int) -> bool:
    """Whether a byte of data[begin:end] is not zero."""
    piece = data[begin:end]
    return piece.count(0) != len(piece)


def _gap(position: int) -> int:
    """No record begins at the last byte of a sector: one byte of it there could be damaged away."""
    return 1 if position % SECTOR == SECTOR - 1 else 0


def _wrap(body: bytes, begin: int) -> bytes:
    """The payload for `body` when it is to start at `begin`: no long zeros, and an end mark."""
    flag = 0
    if _ZEROS in body:
        body, flag = base64.b64encode(zlib.compress(body, 1)), _ARMOURED
    # The last sector must not hold one byte only.
    count = 3 if (begin + len(body) + 2) % SECTOR == 1 else 2
    return body + bytes([flag | count]) * count


def _unwrap(payload: bytes) -> bytes | None:
    count = payload[-1] & 0x0F if payload else 0
    if count not in (2, 3) or len(payload) < count:
        return None
    body = payload[:-count]
    return zlib.decompress(base64.b64decode(body)) if payload[-1] & _ARMOURED else body


# Records and what they stand for


def header_record(header: Header) -> Record:
    return Record(RecordKind.HEADER, 0, header.number, msgspec.msgpack.encode(header))


def read_header(record: Record) -> Header:
    """Raises ValueError."""
    if record.kind is not RecordKind.HEADER:
        raise ValueError("the first record is not a segment's header")
    return msgspec.msgpack.decode(record.payload, type=Header)


def entry_record(entry: Entry) -> Record:
    return Record(RecordKind.ENTRY, entry.term, entry.index, bytes([entry.kind]) + entry.data)


def state_record(state: HardState) -> Record:
    return Record(RecordKind.STATE, state.term, state.commit, msgspec.msgpack.encode(state))


def snapshot_record(index: int, term: int) -> Record:
    return Record(RecordKind.SNAPSHOT, term, index)


class Replay:
    """Follows the records of all segments and holds what they amount to."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.entries: list[Entry] = []
        self.floor = (0, 0)  # (index, term) of the last snapshot that replaced the log

    def restart(self) -> None:
        """What came before does not count."""
        self.entries.clear()

    def add(self, record: Record) -> None:
        """Raises ValueError if `record` cannot come here."""
        match record.kind:
            case RecordKind.STATE:
                self.hard_state = msgspec.msgpack.decode(record.payload, type=HardState)
            case RecordKind.ENTRY:
                self._add_entry(record)
            case RecordKind.SNAPSHOT:
                self._add_snapshot(record.index, record.term)
            case RecordKind.HEADER:
                raise ValueError("a segment's header in its middle")

    def _add_entry(self, record: Record) -> None:
        kind = EntryKind(record.payload[0])
        entry = Entry(record.index, record.term, kind, record.payload[1:])
        entries = self.entries
        if entries and entry.index <= entries[-1].index:
            del entries[max(entry.index - entries[0].index, 0) :]
        last = entries[-1].index if entries else self.floor[0]
        if last and entry.index != last + 1:
            raise ValueError(f"entry {entry.index} after entry {last}")
        entries.append(entry)

    def _add_snapshot(self, index: int, term: int) -> None:
        self.floor = (index, term)
        self.entries = after_snapshot(self.entries, index, term)


def after_snapshot(entries: Sequence[Entry], index: int, term: int) -> list[Entry]:
    """What of `entries` goes on from a snapshot of (index, term).

    Nothing, if the entries that the snapshot stands for were others.
    """
    for entry in entries:
        if entry.index == index and entry.term != term:
            return []
    return [entry for entry in entries if entry.index > index]
