"""The entries a member holds in memory, and the configurations among them.

        base                commit        stable       last
    ──────┼────────────────────┼────────────┼────────────┼
     snapshot  entries in memory, applied up to somewhere ≤ min(commit, stable)

`stable` is what is on disk for sure; only that is counted, acknowledged and applied.
"""

from collections.abc import Iterable, Sequence

from manager.raft.message import (
    Configuration,
    Entry,
    EntryKind,
    ProtocolError,
    SnapshotMeta,
    decode_configuration,
)


class Log:
    """Entries after `base_index`; everything before is in a snapshot."""

    def __init__(
        self,
        base_index: int = 0,
        base_term: int = 0,
        configuration: Configuration | None = None,
        entries: Iterable[Entry] = (),
    ) -> None:
        """`configuration` is that of the snapshot; `entries` are on disk already."""
        self.base_index = base_index
        self.base_term = base_term
        self.commit = base_index
        self.applied = base_index
        self.bytes = 0  # of the data in memory
        self._entries: list[Entry] = []
        # (index, configuration) in force from that index on, oldest first; never empty.
        self._configurations = [(base_index, configuration or Configuration())]
        self._extend(entries)
        self.stable = self._handed = self.last_index

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def configuration(self) -> Configuration:
        """The newest, committed or not: it is in force from the moment it is in the log."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        return self._configurations[-1][0]

    def configuration_at(self, index: int) -> Configuration:
        """The configuration in force just after entry `index`."""
        for at, configuration in reversed(self._configurations):
            if at <= index:
                return configuration
        raise IndexError(f"the configuration at {index} is compacted")

    def term(self, index: int) -> int | None:
        """The term of entry `index`, or None if it is not here or compacted."""
        if index == self.base_index:
            return self.base_term
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1].term
        return None

    def slice(self, first: int, last: int, bytes_max: int | None = None) -> tuple[Entry, ...]:
        """Entries `first` to `last` inclusive, at least one if there is one, cut at `bytes_max`."""
        begin = first - self.base_index - 1
        assert begin >= 0, f"entry {first} is compacted"
        entries = self._entries[begin : max(last - self.base_index, begin)]
        if bytes_max is None:
            return tuple(entries)
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry.data)
            if size > bytes_max and count:
                return tuple(entries[:count])
        return tuple(entries)

    def is_current(self, last_index: int, last_term: int) -> bool:
        """Whether a log with this last entry is at least as complete as ours (thesis 3.6.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def conflict_hint(self, index: int, term: int) -> tuple[int, int]:
        """The last (index, term) at or before `index` whose term is not above `term`.

        Skips whole terms when logs disagree, so that finding the common prefix takes as many
        messages as there are terms, not entries.
        """
        index = min(index, self.last_index)
        while index > self.base_index and (self.term(index) or 0) > term:
            index -= 1
        return index, self.term(index) or 0

    def append(self, entry: Entry) -> None:
        """Add the leader's next entry."""
        assert entry.index == self.last_index + 1, "the log has no gaps"
        self._extend((entry,))

    def merge(self, entries: Sequence[Entry]) -> None:
        """Take over a leader's `entries`, which follow an entry we share.

        What is here already stays: an old message must not cut off newer entries.
        """
        for position, entry in enumerate(entries):
            if self.term(entry.index) == entry.term or entry.index <= self.base_index:
                continue
            if entry.index <= self.last_index:
                self._truncate(entry.index)
            self._extend(entries[position:])
            return

    def commit_to(self, index: int) -> bool:
        """Note that everything up to `index` is committed; whether that was news."""
        index = min(index, self.last_index)
        if index <= self.commit:
            return False
        self.commit = index
        return True

    def take_unwritten(self) -> tuple[Entry, ...]:
        """The entries that no write has taken yet. They are stable after `written`."""
        entries = self.slice(max(self._handed, self.base_index) + 1, self.last_index)
        self._handed = self.last_index
        return entries

    @property
    def has_unwritten(self) -> bool:
        return self._handed < self.last_index

    def written(self, entries: Sequence[Entry]) -> None:
        """`entries` are on disk. Those replaced meanwhile do not count."""
        for entry in reversed(entries):
            if self.term(entry.index) == entry.term:
                self.stable = max(self.stable, entry.index)
                return

    def take_committed(self, count_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """The next entries to apply: committed, and on our own disk. At least one if there is."""
        last = min(self.commit, self.stable, self.applied + count_max)
        if last <= self.applied:
            return ()
        entries = self.slice(self.applied + 1, last, bytes_max)
        self.applied = entries[-1].index
        return entries

    def tail(self, index: int, entries_max: int, bytes_max: int) -> int:
        """The index after which there are at most so many entries and bytes up to `index`."""
        first, size = index, 0
        while first > max(self.base_index, index - entries_max):
            size += len(self._entries[first - self.base_index - 1].data)
            if size > bytes_max:
                break
            first -= 1
        return first

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a snapshot holds."""
        index = min(index, self.applied)
        if index <= self.base_index:
            return
        term = self.term(index)
        assert term is not None
        gone = index - self.base_index
        self.bytes -= sum(len(entry.data) for entry in self._entries[:gone])
        del self._entries[:gone]
        self.base_index, self.base_term = index, term
        while len(self._configurations) > 1 and self._configurations[1][0] <= index:
            del self._configurations[0]

    def restore(self, meta: SnapshotMeta) -> None:
        """Start again after a snapshot received from the leader."""
        self._entries.clear()
        self.bytes = 0
        self.base_index = self.commit = self.applied = self.stable = self._handed = meta.index
        self.base_term = meta.term
        self._configurations = [(meta.index, meta.configuration)]

    def _extend(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries.append(entry)
            self.bytes += len(entry.data)
            if entry.kind is EntryKind.CONFIGURATION:
                configuration = decode_configuration(entry.data)
                self._configurations.append((entry.index, configuration))

    def _truncate(self, index: int) -> None:
        """Drop entry `index` and what follows."""
        if index <= self.commit:
            raise ProtocolError(f"entry {index} conflicts with what is committed ({self.commit})")
        first = index - self.base_index - 1
        self.bytes -= sum(len(entry.data) for entry in self._entries[first:])
        del self._entries[first:]
        self.stable = min(self.stable, index - 1)
        self._handed = min(self._handed, index - 1)
        while self._configurations[-1][0] >= index and len(self._configurations) > 1:
            self._configurations.pop()
