"""The whole state as a stream of bytes, and back; and what differs between two states.

    state  = magic, record..., end
    record = length (4 bytes) and MessagePack of [kind, object]
    end    = length 0 and the number of objects (4 bytes)

Nothing here holds more of the encoded state than a piece, and nothing computes for long without
giving other threads their turn: all of it may run beside the loop, over tables that never change.
Format 1, of the first release, was one MessagePack array of all objects; it is still read.
"""

import struct
import zlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import msgspec

from common.model.base import Object
from manager.store.change import BadEntry, Event
from manager.store.tables import KINDS, Table, Tables
from manager.store.trie import STEP

MAGIC = b"SHOALSTATE 2\n"
PIECE_BYTES = 32 << 10
RECORD_MAX = 64 << 20  # more than any entry of the log can bring
_FORMAT_1 = 0x92  # its first byte: an array of two
_BUCKETS = 256
_LENGTH = struct.Struct(">I")

_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_format_1_decoder = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, msgspec.Raw]]])
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    kind.name: msgspec.msgpack.Decoder(kind.type) for kind in KINDS
}


def ordered(objects: Iterable[Object]) -> Iterator[Object]:
    """The same order everywhere for the same objects, found without one long sort."""
    buckets: list[list[Object]] = [[] for _ in range(_BUCKETS)]
    for object in objects:
        buckets[zlib.crc32(object.id.encode()) % _BUCKETS].append(object)
    for bucket in buckets:
        bucket.sort(key=_id)
        yield from bucket


def pieces(tables: Tables) -> Iterator[bytes]:
    """The state in `tables`, in pieces of about PIECE_BYTES, or one object if that is larger."""
    piece, count = bytearray(MAGIC), 0
    for kind in KINDS:
        for object in ordered(tables.table(kind.type).all()):
            record = _encoder.encode((kind.name, object))
            piece += _LENGTH.pack(len(record))
            piece += record
            count += 1
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece + _LENGTH.pack(0) + _LENGTH.pack(count))


class Decoder:
    """Makes tables of a state that comes in pieces, cut anywhere. All raise BadEntry."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, Object]] = {kind.name: {} for kind in KINDS}
        self._rest = bytearray()  # what has come and makes no whole record yet
        self._started = self._ended = self._is_format_1 = False
        self._count = 0

    def add(self, piece: bytes | memoryview) -> None:
        self._rest += piece
        if not self._started:
            self._start()
        if self._started and not self._is_format_1:
            self._take_records()

    def end(self) -> Generator[None, None, Tables]:
        """The state, in steps of bounded length. BadEntry too if it is not complete."""
        if self._is_format_1:
            self._take_format_1()
        elif not self._ended:
            raise _unreadable("it ends too early")
        tables = {}
        for kind in KINDS:
            tables[kind.type] = yield from Table.growing(kind, self._objects.pop(kind.name))
        return Tables(tables)

    def _start(self) -> None:
        if self._rest[:1] == bytes((_FORMAT_1,)):
            self._started = self._is_format_1 = True
        elif not MAGIC.startswith(self._rest[: len(MAGIC)]):
            raise _unreadable("it has a format that this version does not know")
        elif len(self._rest) >= len(MAGIC):
            del self._rest[: len(MAGIC)]
            self._started = True

    def _take_records(self) -> None:
        data, place, end = bytes(self._rest), 0, len(self._rest)
        if not self._ended and end > 4 + RECORD_MAX + PIECE_BYTES:
            raise _unreadable("a record is too long")
        view = memoryview(data)
        while place + 4 <= end and not self._ended:
            (length,) = _LENGTH.unpack_from(data, place)
            if length > RECORD_MAX:
                raise _unreadable("a record is too long")
            begin, after = place + 4, place + 4 + (length or 4)
            if after > end:
                break
            if length:
                self._take_record(view[begin:after])
            else:
                self._take_end(_LENGTH.unpack_from(data, begin)[0])
            place = after
        if self._ended and place < end:
            raise _unreadable("something follows its end")
        del self._rest[:place]

    def _take_record(self, record: memoryview) -> None:
        try:
            name, body = _record_decoder.decode(record)
        except msgspec.MsgspecError as error:
            raise _unreadable(repr(error)) from error
        self._put(name, body)

    def _take_end(self, count: int) -> None:
        if count != self._count:
            raise _unreadable(f"it has {self._count} of {count} objects")
        self._ended = True

    def _take_format_1(self) -> None:
        try:
            form, objects = _format_1_decoder.decode(self._rest)
        except msgspec.MsgspecError as error:
            raise _unreadable(repr(error)) from error
        if form != 1:
            raise _unreadable(f"it has format {form}; this version reads 1 and 2")
        for name, body in objects:
            self._put(name, body)

    def _put(self, name: str, body: msgspec.Raw) -> None:
        try:
            object = _decoders[name].decode(body)
        except (msgspec.MsgspecError, KeyError) as error:
            raise _unreadable(repr(error)) from error
        if self._objects[name].setdefault(object.id, object) is not object:
            raise _unreadable(f"the {name} {object.id} is in it twice")
        self._count += 1


def difference(before: Tables, after: Tables) -> Generator[None, None, list[Event]]:
    """The events that lead from one state to the other: first what went, then what came."""
    removed: list[Event] = []
    written: list[Event] = []
    for kind in KINDS:
        old, new = before.table(kind.type), after.table(kind.type)
        removed += _removed(old, new)
        for count, object in enumerate(ordered(new.all())):
            if not count % STEP:
                yield
            was = old.get(object.id)
            if was != object:
                written.append(Event("create" if was is None else "update", object, was))
    return removed + written


def _removed(old: Table, new: Table) -> Iterator[Event]:
    gone = (object for object in old.all() if new.get(object.id) is None)
    return (Event("remove", object, object) for object in ordered(gone))


def _unreadable(why: str) -> BadEntry:
    return BadEntry(f"the snapshot of the store cannot be read: {why}")


def _id(object: Object) -> str:
    return object.id
