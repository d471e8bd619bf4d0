"""Reading the store, and writing it in one step.

A View is one state that never changes. A Tx is a View of the newest state that can be written;
its writes take effect together, or not at all.
"""

import datetime as dt
from collections.abc import Hashable, Iterator
from typing import TypeVar, cast

import msgspec

from common.errors import Conflict
from common.model.base import ZERO_TIME, Object
from manager.store.change import Change, Delete, Put, apply_change, encode_change
from manager.store.tables import BY_TYPE, Tables

ENTRY_BYTES_MAX = 1_500_000  # beyond this an entry takes no more transactions
ENTRY_CHANGES_MAX = 500  # likewise: an entry is applied at one go, on every manager's loop

O = TypeVar("O", bound=Object)  # noqa: E741 - the stored kind, as usual for a type variable


class View:
    """A consistent state of all objects. `version` is the Raft index of the last entry in it."""

    def __init__(self, tables: Tables, version: int) -> None:
        self._tables = tables
        self.version = version

    def fork(self) -> Tables:
        """Its tables, to be changed without anybody seeing it."""
        return self._tables.fork()

    def get(self, kind: type[O], id: str) -> O | None:
        """The object of that id."""
        return cast("O | None", self._tables.table(kind).get(id))

    def find(self, kind: type[O], **by: Hashable) -> list[O]:
        """All objects of `kind`, or those that one index has (`tables.py` names them).

        Oldest first; of the same age by id.
        """
        table = self._tables.table(kind)
        if len(by) > 1:
            raise TypeError(f"find takes one index at a time, not {', '.join(by)}")
        found = table.find(*by.popitem()) if by else list(table.all())
        found.sort(key=_age)
        return cast("list[O]", found)

    def has(self, kind: type[Object], **by: Hashable) -> bool:
        """Whether `find` would give anything; `by` is one index."""
        ((index, key),) = by.items()
        return self._tables.table(kind).has(index, key)

    def all(self, kind: type[O]) -> Iterator[O]:
        """All objects of `kind`, in no order. Not for a Tx that writes meanwhile."""
        return cast("Iterator[O]", self._tables.table(kind).all())

    def count(self, kind: type[Object]) -> int:
        """How many objects of `kind` there are."""
        return len(self._tables.table(kind))


def _age(object: Object) -> tuple[dt.datetime, str]:
    return object.created_at, object.id


class Tx(View):
    """The newest state, including writes still on their way, and writable.

    Until an entry commits, what it wrote has a provisional version (`change.PROVISIONAL`):
    read an object from a view after `Store.update` if its version matters to you.
    """

    def __init__(self, tables: Tables, version: int, now: dt.datetime, provisional: int) -> None:
        super().__init__(tables, version)
        self._now = now
        self._provisional = provisional
        self.changes: list[Change] = []
        self.encoded: list[msgspec.Raw] = []  # the same, as the log has them
        self.size = 0  # bytes

    @property
    def is_full(self) -> bool:
        """Whether a loop should leave the rest to another transaction: this one is already as
        large as an entry of the log should be."""
        return len(self.changes) >= ENTRY_CHANGES_MAX or self.size >= ENTRY_BYTES_MAX

    def put(self, object: O) -> O:
        """Create or replace `object`; returns it as this transaction now sees it.

        Raises Conflict if another object of the kind has the name. Nothing is written if the
        object is there already, just so.
        """
        old = self._tables.table(type(object)).get(object.id)
        if old == object:
            return object
        self._check_name(object, old)
        written = msgspec.structs.replace(
            object,
            created_at=self._created_at(object, old),
            updated_at=self._now,
        )
        return cast(O, self._change(Put(written)))

    def delete(self, kind: type[Object], id: str) -> None:
        """Delete the object of that id; nothing happens if there is none."""
        if self._tables.table(kind).get(id) is not None:
            self._change(Delete(kind, id))

    def _change(self, change: Change) -> Object | None:
        raw = encode_change(change)
        self.changes.append(change)
        self.encoded.append(raw)
        self.size += len(memoryview(raw))
        event = apply_change(self._tables, change, self._provisional)
        return None if event is None else event.object

    def _created_at(self, object: Object, old: Object | None) -> dt.datetime:
        if old is not None:
            return old.created_at
        return self._now if object.created_at == ZERO_TIME else object.created_at

    def _check_name(self, object: Object, old: Object | None) -> None:
        kind = BY_TYPE[type(object)]
        if not kind.unique_name:
            return
        names = kind.indexes["name"]
        kept = () if old is None else names(old)  # no other can have them
        for name in names(object):
            if name in kept:
                continue
            for other in self._tables.table(kind.type).find("name", name):
                if other.id != object.id:
                    raise Conflict(
                        f"name conflicts with an existing object: {kind.name} {name!r} already"
                        " exists; choose another name or remove that one first"
                    )
