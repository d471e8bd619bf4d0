"""The endpoint table as the manager keeps it, and how a node's share of it changes.

What a node has depends only on the topics it follows, so nodes with the same topics form a group
that shares one change and one digest: a commit costs what it touches times the number of groups,
not of nodes.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from common.protocol.network import Digest, NetworkChange, NetworkItem, key
from manager.dispatcher.items import Entry, Topics

Key = tuple[str, ...]


class Delta(msgspec.Struct, frozen=True):
    """What became of one key since the last drain."""

    old: Entry | None
    new: Entry | None


Deltas = Mapping[Key, Delta]


class Table:
    """All entries, who put them there, and what changed since the last `drain`."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._owned: dict[str, tuple[Key, ...]] = {}
        self._by_topic: dict[str, dict[Key, None]] = {}
        self._before: dict[Key, Entry | None] = {}  # of the keys touched since the last drain

    def replace(self, owner: str, entries: Iterable[Entry]) -> None:
        """Let `entries` be all that `owner` (an object's id) has in the table."""
        new = {key(entry.item): entry for entry in entries}
        for gone in self._owned.get(owner, ()):
            if gone not in new:
                self._set(gone, None)
        for at, entry in new.items():
            if self._entries.get(at) != entry:
                self._set(at, entry)
        if new:
            self._owned[owner] = tuple(new)
        else:
            self._owned.pop(owner, None)

    def owners(self) -> list[str]:
        return list(self._owned)

    def topics(self, owner: str) -> Topics:
        """The topics of all that `owner` has in the table."""
        return frozenset().union(*(self._entries[at].topics for at in self._owned.get(owner, ())))

    def items(self, topics: Topics) -> Iterator[NetworkItem]:
        """What a node that follows `topics` has."""
        seen: dict[Key, None] = {}
        for topic in sorted(topics):
            for at in self._by_topic.get(topic, ()):
                if at not in seen:
                    seen[at] = None
                    yield self._entries[at].item

    @property
    def dirty(self) -> bool:
        return bool(self._before)

    def drain(self) -> Deltas:
        """What changed since the last call; a key that is again as it was is left out."""
        before, self._before = self._before, {}
        deltas = {at: Delta(old, self._entries.get(at)) for at, old in before.items()}
        return {at: delta for at, delta in deltas.items() if delta.old != delta.new}

    def moved(self, deltas: Deltas, before: Topics, after: Topics) -> NetworkChange:
        """The step for a node that followed `before` at the last drain and follows `after` now."""
        puts, removes = _step(deltas, before, after)
        for at in self._keys(after - before):
            if at not in deltas and not self._entries[at].topics & before:
                puts.append(self._entries[at].item)
        for at in self._keys(before - after):
            if at not in deltas and not self._entries[at].topics & after:
                removes.append(at)
        return NetworkChange(puts=tuple(puts), removes=tuple(removes))

    def _keys(self, topics: Topics) -> Iterator[Key]:
        seen: dict[Key, None] = {}
        for topic in sorted(topics):
            seen |= self._by_topic.get(topic, {})
        return iter(seen)

    def _set(self, at: Key, entry: Entry | None) -> None:
        old = self._entries.pop(at, None)
        self._before.setdefault(at, old)
        if old is not None:
            for topic in old.topics:
                members = self._by_topic[topic]
                del members[at]
                if not members:
                    del self._by_topic[topic]
        if entry is not None:
            self._entries[at] = entry
            for topic in entry.topics:
                self._by_topic.setdefault(topic, {})[at] = None


class Group:
    """The nodes that follow the same topics, and the digest of what they have."""

    def __init__(self, items: Iterable[NetworkItem]) -> None:
        self.members: dict[str, None] = {}
        self._complete: NetworkChange | None = None
        self._digest = Digest()
        for item in items:
            self._digest.add(item)

    @property
    def digest(self) -> str:
        return self._digest.text

    def complete(self, table: Table, topics: Topics) -> NetworkChange:
        """All that a member has; made once for all those that come between two changes."""
        if self._complete is None:
            self._complete = NetworkChange(complete=True, puts=tuple(table.items(topics)))
        return self._complete

    def advance(self, topics: Topics, deltas: Deltas) -> NetworkChange:
        """Take in `deltas`; returns the step for each member."""
        self._complete = None
        for delta in deltas.values():
            if delta.old is not None and delta.old.topics & topics:
                self._digest.take(delta.old.item)
            if delta.new is not None and delta.new.topics & topics:
                self._digest.add(delta.new.item)
        puts, removes = _step(deltas, topics, topics)
        return NetworkChange(puts=tuple(puts), removes=tuple(removes))


def delta_topics(deltas: Deltas) -> Topics:
    """Whom `deltas` may concern."""
    found: set[str] = set()
    for delta in deltas.values():
        for entry in (delta.old, delta.new):
            if entry is not None:
                found |= entry.topics
    return frozenset(found)


def _step(deltas: Deltas, before: Topics, after: Topics) -> tuple[list[NetworkItem], list[Key]]:
    puts: list[NetworkItem] = []
    removes: list[Key] = []
    for at, delta in deltas.items():
        had = delta.old is not None and bool(delta.old.topics & before)
        if delta.new is not None and delta.new.topics & after:
            if not had or delta.old is None or delta.old.item != delta.new.item:
                puts.append(delta.new.item)
        elif had:
            removes.append(at)
    return puts, removes
