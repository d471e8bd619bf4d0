"""DNS messages as bytes: one question in, one answer out (RFC 1035, EDNS RFC 6891).

Everything that comes in is hostile until parsed. No name in a question may be compressed.
"""

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
INTERNET = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16  # of EDNS; its upper bits are in the OPT record

_HEADER = struct.Struct("!HHHHHH")
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _WANTED, _AVAILABLE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_PLAIN_UDP = 512  # what fits without EDNS
_OUR_UDP = 1232  # avoids fragments on any path
_MAX_NAME = 255
_SELF = b"\xc0\x0c"  # a pointer to the name in the question


class Malformed(ValueError):
    """Not a query that we can answer; `identity` is its number if there was one."""

    def __init__(self, message: str, identity: int | None = None, code: int = FORMERR) -> None:
        super().__init__(message)
        self.identity = identity
        self.code = code


class Query(NamedTuple):
    """A question. `name` in lower case without a final dot."""

    identity: int
    flags: int
    name: str
    kind: int
    question: bytes  # as it came, to be repeated in the answer
    udp_size: int  # 0: without EDNS
    edns: int = 0  # its version


def parse(data: bytes) -> Query:
    """Raises Malformed."""
    if len(data) < 12:
        raise Malformed("shorter than a header")
    identity, flags, questions, _, _, additional = _HEADER.unpack_from(data)
    if flags & _RESPONSE:
        raise Malformed("an answer, not a question")
    if flags & _OPCODE:
        raise Malformed("not a standard query", identity, NOTIMP)
    if questions != 1:
        raise Malformed(f"{questions} questions", identity)
    labels, end = _labels(data, 12, identity)
    if end + 4 > len(data):
        raise Malformed("cut off in the question", identity)
    kind, klass = struct.unpack_from("!HH", data, end)
    if klass != INTERNET:
        raise Malformed(f"class {klass}", identity, NOTIMP)
    name = ".".join(labels).lower()
    size, version = _edns(data, end + 4) if additional else (0, 0)
    return Query(identity, flags, name, kind, data[12 : end + 4], size, version)


def _labels(data: bytes, offset: int, identity: int) -> tuple[list[str], int]:
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data):
            raise Malformed("cut off in a name", identity)
        length = data[offset]
        if length == 0:
            return labels, offset + 1
        if length > 63 or offset + 1 + length - start > _MAX_NAME:
            raise Malformed("a name too long, or compressed", identity)
        labels.append(data[offset + 1 : offset + 1 + length].decode("latin-1"))
        offset += 1 + length


def _edns(data: bytes, offset: int) -> tuple[int, int]:
    """The asker's UDP size and version, if an OPT record follows the question at once."""
    if offset + 11 <= len(data) and data[offset] == 0:
        kind, size, _, version = struct.unpack_from("!HHBB", data, offset + 1)
        if kind == OPT:
            return max(size, _PLAIN_UDP), version
    return 0, 0


def _respond(query: Query, code: int, answers: Sequence[bytes], more: int = 0) -> bytes:
    flags = _RESPONSE | _AUTHORITATIVE | _AVAILABLE | (query.flags & _WANTED) | code & 15 | more
    edns = b""
    if query.udp_size:
        edns = struct.pack("!BHHBBHH", 0, OPT, _OUR_UDP, code >> 4, 0, 0, 0)
    head = _HEADER.pack(query.identity, flags, 1, len(answers), 0, 1 if edns else 0)
    return head + query.question + b"".join(answers) + edns


def answer(query: Query, records: Sequence[bytes], ttl: int, stream: bool = False) -> bytes:
    """The data of `records` as the answer; truncated if it does not fit a datagram."""
    packed = [
        _SELF + struct.pack("!HHIH", query.kind, INTERNET, ttl, len(data)) + data
        for data in records
    ]
    whole = _respond(query, NOERROR, packed)
    limit = 0xFFFF if stream else min(query.udp_size or _PLAIN_UDP, _OUR_UDP)
    if len(whole) <= limit:
        return whole
    room = limit - len(_respond(query, NOERROR, []))
    kept = packed[: room // len(packed[0])]
    return _respond(query, NOERROR, kept, _TRUNCATED)


def refuse(query: Query, code: int) -> bytes:
    """An answer without records."""
    return _respond(query, code, [])


def refuse_malformed(error: Malformed) -> bytes | None:
    """What to say to a query that could not be read; None: nothing."""
    if error.identity is None:
        return None
    return _HEADER.pack(error.identity, _RESPONSE | _AVAILABLE | error.code, 0, 0, 0, 0)


def is_answer(data: bytes, question: bytes) -> bool:
    """Whether `data` may answer the message `question`: its number, and its question if any."""
    if len(data) < 12 or data[:2] != question[:2] or not data[2] & 0x80:
        return False
    if data[4:6] == b"\0\0":  # some say no more than that they cannot
        return data[3] & 15 != NOERROR
    asked = question[12:].lower()  # types and classes that are asked for have no letters
    end = asked.find(b"\0") + 5
    return data[4:6] == b"\0\1" and data[12 : 12 + end].lower() == asked[:end]


def encode_name(name: str) -> bytes:
    """`name` as labels. Raises Malformed if a label is empty or too long."""
    parts = []
    for label in name.split("."):
        octets = label.encode("utf-8")
        if not 1 <= len(octets) <= 63:
            raise Malformed(f"{name!r} is not a DNS name")
        parts.append(bytes([len(octets)]) + octets)
    return b"".join(parts) + b"\0"


def reverse_address(name: str) -> str:
    """The address that `d.c.b.a.in-addr.arpa` asks about; "" if it asks for none."""
    labels = name.split(".")
    if labels[4:] != ["in-addr", "arpa"]:
        return ""
    try:
        return str(IPv4Address(".".join(reversed(labels[:4]))))
    except ValueError:
        return ""


def make_query(identity: int, name: str, kind: int) -> bytes:
    """A question, as a resolver library asks it."""
    head = _HEADER.pack(identity, _WANTED, 1, 0, 0, 0)
    return head + encode_name(name) + struct.pack("!HH", kind, INTERNET)


class Answer(NamedTuple):
    """What an answer to one of our own kind says; `records` is the data of those of the kind."""

    identity: int
    code: int
    truncated: bool
    records: tuple[bytes, ...]
    ttl: int


def parse_answer(data: bytes) -> Answer:
    """Read an answer whose records point at the question's name. Raises Malformed."""
    if len(data) < 12:
        raise Malformed("shorter than a header")
    identity, flags, _, answers, _, _ = _HEADER.unpack_from(data)
    _, offset = _labels(data, 12, identity)
    offset += 4
    records, ttl = [], 0
    for _ in range(answers):
        if offset + 12 > len(data):
            raise Malformed("cut off in a record", identity)
        _, _, _, ttl, length = struct.unpack_from("!HHHIH", data, offset)
        records.append(data[offset + 12 : offset + 12 + length])
        offset += 12 + length
    return Answer(identity, flags & 15, bool(flags & _TRUNCATED), tuple(records), ttl)
