"""The stream of what was committed, kept for a while for those who read more slowly.

One bounded ring serves all watchers; each has only a place in it. A watcher that falls off its
end is told so (`Resync`) and must read the state anew: nothing is ever skipped silently, and no
watcher can make the others wait or the memory grow.
"""

import asyncio
from collections import deque
from types import TracebackType

from common.model.base import Object
from manager.store.change import Event

COMMITS_MAX = 4096
EVENTS_MAX = 100_000
BYTES_MAX = 32 << 20  # of the entries that the events came with


Kinds = frozenset[type[Object]] | None  # what a watcher wants to hear of; None: everything


class Resync(Exception):
    """Events were missed: read everything again from a view. The watcher goes on from now."""


class Ring:
    """The last commits, each a version, its events and how many bytes its entry had."""

    def __init__(
        self,
        commits_max: int = COMMITS_MAX,
        events_max: int = EVENTS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._commits: deque[tuple[int, list[Event], int]] = deque()
        self._commits_max = commits_max
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events = 0
        self._bytes = 0
        self.start = 0  # the number of the oldest commit kept, counted from the first ever pushed
        self._lost_version = 0  # everything after this version is in the ring
        self._watchers: dict[Watcher, None] = {}

    @property
    def end(self) -> int:
        return self.start + len(self._commits)

    def begin(self, version: int) -> None:
        """Say that the story starts here: what led to `version` is not known step by step.

        Those who watch already go on; the last commit is their way here.
        """
        self._lost_version = max(self._lost_version, version)

    @property
    def size(self) -> tuple[int, int]:
        """Commits, and the bytes of their entries."""
        return len(self._commits), self._bytes

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    def restart(self) -> None:
        """Forget all: every watcher is told to resynchronise."""
        self.start = self.end + 1
        self._commits.clear()
        self._events = self._bytes = 0
        for watcher in self._watchers:
            watcher.wake()

    def push(self, version: int, events: list[Event], size: int) -> None:
        kinds = {type(event.object) for event in events}
        before = self.end
        self._commits.append((version, events, size))
        self._events += len(events)
        self._bytes += size
        while len(self._commits) > self._commits_max or (
            (self._events > self._events_max or self._bytes > self._bytes_max)
            and len(self._commits) > 1
        ):
            lost, gone, freed = self._commits.popleft()
            self._lost_version = max(self._lost_version, lost)
            self._events -= len(gone)
            self._bytes -= freed
            self.start += 1
        for watcher in self._watchers:
            watcher.pushed(kinds, before)

    def after(self, version: int) -> int | None:
        """The place of the first commit after `version`; None if it is no longer known."""
        if version < self._lost_version:
            return None
        place = self.end
        for known, _, _ in reversed(self._commits):
            if known <= version:
                break
            place -= 1
        return place

    def read(self, place: int) -> list[Event]:
        """All events from `place` on."""
        return [
            event
            for number in range(place - self.start, len(self._commits))
            for event in self._commits[number][1]
        ]

    def watch(self, since: int | None, kinds: Kinds = None) -> "Watcher":
        return self._watch(self.end if since is None else self.after(since), kinds)

    def watch_lost(self, kinds: Kinds = None) -> "Watcher":
        """A watcher that must read the state first."""
        return self._watch(None, kinds)

    def _watch(self, place: int | None, kinds: Kinds) -> "Watcher":
        watcher = Watcher(self, place, kinds)
        self._watchers[watcher] = None
        return watcher

    def forget(self, watcher: "Watcher") -> None:
        self._watchers.pop(watcher, None)


class Watcher:
    """One reader of the ring; a context manager, so that it is forgotten in the end."""

    def __init__(self, ring: Ring, place: int | None, kinds: Kinds = None) -> None:
        self._ring = ring
        self._kinds = kinds
        self._place = place  # None: what should come next is lost
        self._news = asyncio.Event()
        if place != ring.end:
            self._news.set()

    async def next(self) -> list[Event]:
        """The events of all commits since the last call; waits for one if there is none.

        Raises Resync if some were lost; after that it goes on with what comes later.
        """
        while not (events := self.take()):
            await self.wait()
        return events

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Whether a commit came since the last `wait`, `next` or `take`, within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def take(self) -> list[Event]:
        """Like `next`, but does not wait: perhaps none."""
        self._news.clear()
        place, self._place = self._place, self._ring.end
        if place is None or place < self._ring.start:
            raise Resync("this watcher was too slow, or asked for what is long past")
        events = self._ring.read(place)
        if self._kinds is None:
            return events
        return [event for event in events if type(event.object) in self._kinds]

    def pushed(self, kinds: set[type[Object]], place: int) -> None:
        """A commit came at `place`, with objects of `kinds`. One of no interest is passed over,
        so that it neither wakes nor makes one late who waits for something else."""
        if self._kinds is None or not self._kinds.isdisjoint(kinds):
            self._news.set()
        elif self._place == place:
            self._place = self._ring.end

    def wake(self) -> None:
        self._news.set()

    def close(self) -> None:
        self._ring.forget(self)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
