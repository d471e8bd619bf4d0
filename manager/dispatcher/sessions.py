"""Who is connected until when. Pure: moments are seconds of any one clock.

               register                   silence for three periods
    unknown ───────────────► alive ────────────────────────────────────► lost (the node is DOWN)
                               ▲ heard │
                               └───────┘

Liveness lives in the leader's memory; only the changes of state are written to the store. A
stream that breaks changes nothing here: only silence does.

After a change of the leader nodes have twice the time, since they must first find out and find
the new one. That says nothing against a manager whose Raft messages come: it lives. But one that
is silent there as well, where nothing has to be found, is lost after the usual time.
"""

import heapq
from collections import deque
from collections.abc import Callable

MISSED_BEATS = 3
RATE_COUNT = 3
RATE_PERIODS = 1.6  # heartbeat periods; well below the grace, so refusing never makes a node down


class Liveness:
    """Until when each node counts as alive."""

    def __init__(
        self, period_s: float, silent_elsewhere: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`silent_elsewhere`: whether another way, on which the node should be heard, is silent."""
        self.period_s = period_s
        self._silent_elsewhere = silent_elsewhere
        self._expected: set[str] = set()  # not heard by this leader; may have a second grace
        self._deadlines: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # at least one for each node, perhaps too early

    def expect(self, node_id: str, now: float) -> None:
        """A node that an earlier leader knew: it has twice the time to come, unless it is silent
        elsewhere as well."""
        self._expected.add(node_id)
        self._set(node_id, now + self.grace_s)

    def heard(self, node_id: str, now: float) -> None:
        """The node said something."""
        self._expected.discard(node_id)
        self._set(node_id, now + self.grace_s)

    def forget(self, node_id: str) -> None:
        """The node was removed from the cluster."""
        self._expected.discard(node_id)
        self._deadlines.pop(node_id, None)

    def lost(self, now: float) -> list[str]:
        """The nodes that were silent for too long; each is named once."""
        found = []
        while (at := self.wake_at) is not None and at <= now:
            node_id = self._heap[0][1]
            if node_id in self._expected and not self._silent_elsewhere(node_id):
                self._expected.discard(node_id)
                self._deadlines[node_id] = at + self.grace_s  # `wake_at` moves it in the heap
                continue
            heapq.heappop(self._heap)
            del self._deadlines[node_id]
            self._expected.discard(node_id)
            found.append(node_id)
        return found

    @property
    def grace_s(self) -> float:
        return MISSED_BEATS * self.period_s

    @property
    def wake_at(self) -> float | None:
        """When `lost` next has an answer."""
        while self._heap:
            at, node_id = self._heap[0]
            deadline = self._deadlines.get(node_id)
            if deadline == at:
                return at
            heapq.heappop(self._heap)
            if deadline is not None:
                heapq.heappush(self._heap, (deadline, node_id))
        return None

    def alive(self) -> list[str]:
        """The nodes that are not lost, connected or not."""
        return list(self._deadlines)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._deadlines

    def _set(self, node_id: str, deadline: float) -> None:
        known = self._deadlines.get(node_id)
        self._deadlines[node_id] = deadline
        # A deadline that only moved later is found when its old place in the heap comes up.
        if known is None or deadline < known:
            heapq.heappush(self._heap, (deadline, node_id))


class RateLimit:
    """How often one node may register: a loop in an agent must not keep the leader busy."""

    def __init__(self, period_s: float, count: int = RATE_COUNT) -> None:
        self.period_s = period_s
        self._count = count
        self._recent: dict[str, deque[float]] = {}

    def admit(self, node_id: str, now: float) -> bool:
        """Whether the node may register now; counts it if so."""
        recent = self._recent.setdefault(node_id, deque())
        while recent and recent[0] <= now - self.period_s:
            recent.popleft()
        if len(recent) >= self._count:
            return False
        recent.append(now)
        return True

    def forget(self, node_id: str) -> None:
        self._recent.pop(node_id, None)
