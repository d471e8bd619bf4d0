"""The stop barrier: a task hears of its stop only after nobody sends it requests any more.

    begin ── every node concerned has applied, or the deadline passed ──► drain ──► released

Pure: nodes are names, moments are seconds of any one clock. A node's sequence numbers go on
from one session to the next, so whatever a node says it has applied last covers all before.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Mapping

# For nodes that live but do not answer: while their daemon is held up, their kernels go on sending
# requests. Longer than what it takes to see that a node is down, for which nobody waits.
DEADLINE_S = 10.0
DRAIN_S = 0.2  # for requests under way


class _Batch:
    """Tasks that wait for the same nodes."""

    def __init__(self, tasks: Iterable[str], nodes: Iterable[str]) -> None:
        self.tasks = tuple(tasks)
        self.nodes = dict.fromkeys(nodes)
        self.draining = False


class StopBarrier:
    """The tasks whose stop is held back, and what for."""

    def __init__(self, deadline_s: float = DEADLINE_S, drain_s: float = DRAIN_S) -> None:
        self._deadline_s = deadline_s
        self._drain_s = drain_s
        self._waiting: dict[str, deque[tuple[int, _Batch]]] = {}  # by node, in sequence order
        self._timers: list[tuple[float, int, bool, _Batch]] = []  # heap: at, order, draining
        self._order = 0
        self.given_up: list[str] = []  # nodes that did not answer in time, as often as that was

    def begin(self, tasks: Iterable[str], sequences: Mapping[str, int], now: float) -> None:
        """Hold `tasks` until each node has applied its sequence number."""
        batch = _Batch(tasks, sequences)
        for node_id, sequence in sequences.items():
            self._waiting.setdefault(node_id, deque()).append((sequence, batch))
        if batch.nodes:
            self._push(now + self._deadline_s, batch)
        else:
            self._drain(batch, now)

    def applied(self, node_id: str, sequence: int, now: float) -> None:
        """The node's kernel agrees with what was sent up to `sequence`."""
        waiting = self._waiting.get(node_id)
        while waiting and waiting[0][0] <= sequence:
            self._satisfied(waiting.popleft()[1], node_id, now)
        if not waiting:
            self._waiting.pop(node_id, None)

    def forget(self, node_id: str, now: float) -> None:
        """The node is down or removed: nobody waits for it."""
        for _, batch in self._waiting.pop(node_id, ()):
            self._satisfied(batch, node_id, now)

    def due(self, now: float) -> list[str]:
        """The tasks that may hear of their stop now."""
        released: list[str] = []
        while self._timers and self._timers[0][0] <= now:
            _, _, draining, batch = heapq.heappop(self._timers)
            if draining:
                released += batch.tasks
            elif not batch.draining:
                self.given_up += batch.nodes
                self._drain(batch, now)
        return released

    @property
    def wake_at(self) -> float | None:
        """When `due` is next of use."""
        return self._timers[0][0] if self._timers else None

    def _satisfied(self, batch: _Batch, node_id: str, now: float) -> None:
        batch.nodes.pop(node_id, None)
        if not batch.nodes and not batch.draining:
            self._drain(batch, now)

    def _drain(self, batch: _Batch, now: float) -> None:
        batch.draining = True
        self._push(now + self._drain_s, batch)

    def _push(self, at: float, batch: _Batch) -> None:
        self._order += 1
        heapq.heappush(self._timers, (at, self._order, batch.draining, batch))
