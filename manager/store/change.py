"""What an entry of the log is: a list of changes to objects, as MessagePack.

    entry  = [change, ...]
    change = [action, kind, object]     action 1: put
             [action, kind, id]         action 2: delete

Applying is deterministic: it looks at the entry, its index and the tables, never at a clock or a
random source, so every manager holds the same objects with the same versions.
"""

from typing import Any, Literal

import msgspec

from common.model.base import Object, Version
from common.model.service import Service
from common.model.task import Task
from manager.store.tables import BY_NAME, BY_TYPE, Tables

PUT = 1
DELETE = 2

# What is written but not yet in the log has a version from here on: no object in the log ever
# has, so nobody's older version can match it by chance.
PROVISIONAL = 1 << 60

Action = Literal["create", "update", "remove"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """One change that was committed. `old` is None for "create"; "remove" has what was there."""

    action: Action
    object: Object
    old: Object | None


class Put(msgspec.Struct, frozen=True, gc=False):
    object: Object


class Delete(msgspec.Struct, frozen=True, gc=False):
    kind: type[Object]
    id: str


Change = Put | Delete


class BadEntry(Exception):
    """The log holds what this version cannot read: damage, or a newer version's writing."""


_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(list[tuple[int, str, msgspec.Raw]])
_object_decoders = {kind.name: msgspec.msgpack.Decoder(kind.type) for kind in BY_NAME.values()}
_id_decoder = msgspec.msgpack.Decoder(str)


def encode_change(change: Change) -> msgspec.Raw:
    """One change, ready to be put into an entry."""
    match change:
        case Put(object):
            parts: tuple[Any, ...] = (PUT, BY_TYPE[type(object)].name, object)
        case Delete(kind, id):
            parts = (DELETE, BY_TYPE[kind].name, id)
    return msgspec.Raw(_encoder.encode(parts))


def encode_entry(changes: list[msgspec.Raw]) -> bytes:
    return _encoder.encode(changes)


def decode_entry(data: bytes) -> list[Change]:
    """The changes of an entry. Raises BadEntry."""
    try:
        return [_decode(*parts) for parts in _entry_decoder.decode(data)]
    except (msgspec.MsgspecError, KeyError) as error:
        raise BadEntry(f"an entry of the log cannot be read: {error!r}") from error


def _decode(action: int, kind: str, body: msgspec.Raw) -> Change:
    if action == PUT:
        return Put(_object_decoders[kind].decode(body))
    if action == DELETE:
        return Delete(BY_NAME[kind].type, _id_decoder.decode(body))
    raise BadEntry(f"an entry of the log has the unknown action {action}")


def apply_change(tables: Tables, change: Change, index: int) -> Event | None:
    """Make `change` in `tables`, as the entry `index` does. None: there was nothing to delete."""
    if isinstance(change, Delete):
        old = tables.table(change.kind).get(change.id)
        if old is None:
            return None
        tables.delete(old)
        return Event("remove", old, old)
    object = change.object
    old = tables.table(type(object)).get(object.id)
    new = stamped(tables, object, old, Version(index=index))
    tables.put(new, old)
    return Event("create" if old is None else "update", new, old)


def stamped(tables: Tables, object: Object, old: Object | None, version: Version) -> Object:
    """`object` with the versions that an entry gives it."""
    match object:
        case Task():
            return _stamped_task(tables, object, old if isinstance(old, Task) else None, version)
        case Service():
            return _stamped_service(object, old if isinstance(old, Service) else None, version)
    return msgspec.structs.replace(object, version=version)


def _stamped_task(tables: Tables, task: Task, old: Task | None, version: Version) -> Task:
    """Equal specs are kept once: of a task nine bytes in ten would be the copy of its service's."""
    if old is not None:
        spec = old.spec if old.spec == task.spec else task.spec
        made_from = old.spec_version if _is_provisional(task.spec_version) else task.spec_version
    else:
        service = tables.table(Service).get(task.service_id)
        shared = service.spec.task_template if isinstance(service, Service) else task.spec
        spec = shared if shared == task.spec else task.spec
        made_from = task.spec_version
        if _is_provisional(made_from):
            # A task made while its service's change was still on its way copied a version that
            # nobody knew yet. Entries apply in the order of the transactions, so the service is
            # now in the tables as that transaction saw it; and a task's spec version never
            # changes later.
            made_from = service.spec_version if isinstance(service, Service) else None
    return msgspec.structs.replace(task, version=version, spec=spec, spec_version=made_from)


def _is_provisional(version: Version | None) -> bool:
    return version is not None and version.index >= PROVISIONAL


def _stamped_service(object: Service, old: Service | None, version: Version) -> Service:
    """`spec_version` moves when, and only when, the spec does."""
    if old is not None and old.spec == object.spec:
        return msgspec.structs.replace(
            object,
            version=version,
            spec_version=old.spec_version,
            previous_spec_version=old.previous_spec_version,
        )
    return msgspec.structs.replace(
        object,
        version=version,
        spec_version=version,
        previous_spec_version=None if old is None else old.spec_version,
    )
