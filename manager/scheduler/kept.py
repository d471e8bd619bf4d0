"""Choices that outlive a pass: which nodes fit a service, best first.

Finding the best node for one more task of a service that has tasks on thousands of nodes would take
a walk over all of them. For such a service the order is kept, and brought up to date by the nodes
that changed since it was last used.
"""

import datetime as dt
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable

from manager.scheduler.nodeset import NodeInfo, NodeSet, SpecKey
from manager.scheduler.spread import Fits, Rank

KEPT_MAX = 64  # services; each costs some 200 bytes for each node that fits
WORTH_KEEPING = 32  # nodes looked at in vain for one group of tasks

RankedAt = Callable[[NodeInfo, dt.datetime], Rank]


class Kept:
    """Fitting nodes of one service version, best first, at all times."""

    def __init__(self, nodes: NodeSet, rank: RankedAt, fits: Fits, now: dt.datetime) -> None:
        self._nodes = nodes
        self._rank = rank
        self._fits = fits
        self._now = now
        self._ticket = itertools.count()  # among equals, first come first served
        self._heap: list[tuple[Rank, int, NodeInfo]] = []
        self._ranks: dict[str, Rank] = {}  # of those that fit; other entries of the heap are old
        self._failing: dict[str, None] = {}  # their rank changes with time
        self._seen = nodes.changes
        self._fill()

    def renew(self, now: dt.datetime) -> None:
        """Take in what has changed since the last use. `now` is that of this one."""
        self._now = now
        changed = self._nodes.changed_since(self._seen)
        self._seen = self._nodes.changes
        if changed is None or len(self._heap) > 4 * len(self._ranks) + 1000:
            self._fill()
            return
        for node_id in {**dict.fromkeys(changed), **self._failing}:
            info = self._nodes.get(node_id)
            if info is None:
                self._ranks.pop(node_id, None)
                self._failing.pop(node_id, None)
            else:
                self.back(info)

    def take(self) -> NodeInfo | None:
        """The best node; None if none fits. Hand it back with `back` once its books are kept."""
        while self._heap:
            rank, _, info = heapq.heappop(self._heap)
            if self._ranks.get(info.id) != rank:
                continue
            del self._ranks[info.id]
            if self._fits(info):
                return info
        return None

    def back(self, info: NodeInfo) -> None:
        """`info` has changed."""
        if not self._fits(info):
            self._ranks.pop(info.id, None)
            self._failing.pop(info.id, None)
            return
        rank = self._rank(info, self._now)
        if rank[0]:
            self._failing[info.id] = None
        else:
            self._failing.pop(info.id, None)
        if self._ranks.get(info.id) != rank:
            self._ranks[info.id] = rank
            heapq.heappush(self._heap, (rank, next(self._ticket), info))

    def _fill(self) -> None:
        self._heap, self._ranks, self._failing = [], {}, {}
        for info in self._nodes.ready():
            self.back(info)


class Choices:
    """The orders that are kept, and for which services they are worth it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[SpecKey, Kept | None] = OrderedDict()

    def find(self, key: SpecKey, make: Callable[[], Kept], now: dt.datetime) -> Kept | None:
        """The order for `key`, if one is kept; it is made when it was worth it the last time."""
        if key not in self._kept:
            return None
        kept = self._kept.pop(key)
        if kept is None:
            kept = make()
        else:
            kept.renew(now)
        self._kept[key] = kept
        return kept

    def walked(self, key: SpecKey, nodes: int) -> None:
        """So many nodes were looked at in vain without an order."""
        if nodes > WORTH_KEEPING:
            self._kept[key] = None
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
