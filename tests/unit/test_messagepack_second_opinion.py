"""What we store and send is plain MessagePack: another implementation reads it."""

from typing import Any

import msgpack

from common.protocol.dispatcher import Assign, encode
from manager.raft.wal import Record, RecordKind, Writer
from tests.support import build


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False)


def test_a_message_between_nodes() -> None:
    task = build.task(build.service("web"))
    said = unpack(encode(Assign(sequence=3, complete=True, tasks=(task,))))
    assert said["type"] == "assign"
    assert said["sequence"] == 3
    assert said["tasks"][0]["ID"] == task.id


def test_a_record_of_the_log() -> None:
    """[checksum, chained checksum, kind, term, index and payload], one array after another."""
    records = [Record(RecordKind.ENTRY, 2, 7, b"first"), Record(RecordKind.ENTRY, 2, 8, b"second")]
    writer = Writer()
    for record in records:
        array = unpack(writer.encode([record]).lstrip(b"\0"))
        assert array[-3:-1] == [record.term, record.index]
        assert record.payload in array[-1]
