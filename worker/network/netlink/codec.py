"""Netlink messages as bytes: headers, attributes, batches. Opens no socket.

Layouts are those of linux/netlink.h: everything is padded to four bytes and in host byte order
unless the attribute says otherwise.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG

Value = bytes | Mapping[int, "Value"] | Sequence[tuple[int, "Value"]]


class Message(NamedTuple):
    """One request or answer, without sequence number."""

    kind: int
    flags: int
    body: bytes
    sequence: int = 0


class Failure(NamedTuple):
    """What the kernel refused: the request's sequence number, errno, and its words if any."""

    sequence: int
    errno: int
    text: str


def u8(number: int) -> bytes:
    return struct.pack("=B", number)


def u16(number: int) -> bytes:
    return struct.pack("=H", number)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def be16(number: int) -> bytes:
    return struct.pack("!H", number)


def be32(number: int) -> bytes:
    return struct.pack("!I", number & 0xFFFFFFFF)


def text(string: str) -> bytes:
    """A NUL-terminated string."""
    return string.encode() + b"\0"


def attribute(kind: int, value: Value) -> bytes:
    """One attribute; a mapping or a sequence of pairs is nested."""
    if not isinstance(value, bytes):
        kind |= _NESTED
        value = attributes(value)
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def attributes(values: Mapping[int, Value] | Sequence[tuple[int, Value]]) -> bytes:
    pairs = values.items() if isinstance(values, Mapping) else values
    return b"".join([attribute(kind, value) for kind, value in pairs])


def encode(message: Message, sequence: int) -> bytes:
    length = 16 + len(message.body)
    head = _HEADER.pack(length, message.kind, message.flags, sequence, 0)
    return head + message.body + bytes(-length % 4)


def decode(data: bytes) -> Iterator[Message]:
    """The messages in one datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > len(data):
            raise ValueError(f"netlink message of {length} bytes at {offset} of {len(data)}")
        yield Message(kind, flags, data[offset + 16 : offset + length], sequence)
        offset += (length + 3) & ~3


def parse(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in `data` from `offset` on; of repeated ones the last."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def parse_list(data: bytes) -> Iterator[bytes]:
    """The attributes in `data` one after the other, whatever their kind."""
    offset = 0
    while offset + 4 <= len(data):
        length, _ = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def failure(message: Message) -> Failure:
    """What an NLMSG_ERROR says. `errno` is 0 for an acknowledgement."""
    (code,) = struct.unpack_from("=i", message.body)
    words = ""
    if message.flags & NLM_F_ACK_TLVS:
        (inner,) = struct.unpack_from("=I", message.body, 4)
        start = 20 if message.flags & NLM_F_CAPPED else 4 + ((inner + 3) & ~3)
        words = (
            parse(message.body, start).get(_ERROR_TEXT, b"").rstrip(b"\0").decode(errors="replace")
        )
    return Failure(message.sequence, -code, words)
