"""Which tasks of a service to move so that it is spread as the scheduler would spread it now.

Each move makes the difference smaller at the outermost level at which its two nodes differ: first
the values of the preferences' labels, then the service's tasks on the node, then all tasks there.
So moves come to an end, and none is undone by a later one.
"""

import dataclasses
from collections.abc import Container, Iterable, Sequence

from common.model.task import Task
from manager.orchestrator.scene import age
from manager.scheduler.demand import Demand, demand
from manager.scheduler.filters import Filter, filters, passes
from manager.scheduler.nodeset import NodeInfo, NodeSet
from manager.scheduler.spread import descriptors, label_of

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """`task` is on the node `source` and would be better on `target`."""

    task: Task
    source: str
    target: str


def may_gain(nodes: NodeSet, tasks: Sequence[Task]) -> bool:
    """Whether it is worth looking for moves: a cheap test that says no to nearly all services."""
    if not tasks:
        return False
    if descriptors(tasks[0].spec.placement):
        return len(tasks) > 1
    lightest = next(nodes.emptiest(), None)
    if lightest is None:
        return False
    return any(
        info.active_of.get(task.service_id, 0) > 1 or info.active > lightest.active + 1
        for task in tasks
        if (info := nodes.get(task.node_id)) is not None
    )


def moves(
    nodes: NodeSet, tasks: Iterable[Task], limit: int, targets: Container[str] | None = None
) -> list[Move]:
    """At most `limit` moves for `tasks`, those of one service which run; only to `targets` if
    given. The books of `nodes` are the same afterwards."""
    left = sorted(tasks, key=age)
    found: list[Move] = []
    if not left:
        return found
    search = _Search(nodes, left, targets)
    while len(found) < limit and (move := search.best()) is not None:
        search.play(move)
        found.append(move)
    for move in found:
        nodes.remove_task(move.task.id)
        nodes.put_task(move.task)
    return found


class _Search:
    """The nodes that matter for one service, by their places in the tree of preferences."""

    def __init__(self, nodes: NodeSet, tasks: list[Task], targets: Container[str] | None) -> None:
        first = tasks[0]
        self._nodes = nodes
        self._service_id = first.service_id
        self._need: Demand = demand(first)
        self._filters: list[Filter] = filters(first, self._need)
        self._targets = targets
        self._keys = descriptors(first.spec.placement)
        self._on: dict[str, list[Task]] = {}  # node id -> tasks that may be moved, newest last
        for task in tasks:
            self._on.setdefault(task.node_id, []).append(task)
        self._leaves: dict[Path, list[NodeInfo]] = {}
        self._counts: dict[Path, int] = {}  # tasks of the service below each place of the tree
        for info in nodes.all():
            self._leaves.setdefault(self._path(info), []).append(info)
            self._count(info, info.active_of.get(self._service_id, 0))

    def best(self) -> Move | None:
        """The move that helps most; None if none does."""
        sources = [info for leaf in self._leaves.values() if (info := self._fullest(leaf))]
        targets = [info for leaf in self._leaves.values() if (info := self._emptiest(leaf))]
        pairs = [(s, t, gain) for s in sources for t in targets if (gain := self._gain(s, t))]
        if not pairs:
            return None
        source, target, _ = max(pairs, key=lambda pair: pair[2])
        return Move(self._on[source.id][-1], source.id, target.id)

    def play(self, move: Move) -> None:
        """Enter `move` in the books."""
        self._on[move.source].pop()
        for node_id, change in ((move.source, -1), (move.target, 1)):
            if (info := self._nodes.get(node_id)) is not None:
                self._count(info, change)
        self._nodes.remove_task(move.task.id)
        self._nodes.add(move.task.id, move.target, self._need)

    def _gain(self, source: NodeInfo, target: NodeInfo) -> tuple[int, ...]:
        """How much a move helps, for comparison; empty if it does not."""
        here, there = self._path(source), self._path(target)
        for depth in range(1, len(self._keys) + 1):
            if here[:depth] != there[:depth]:
                less = self._counts.get(here[:depth], 0) - self._counts.get(there[:depth], 0)
                return (len(self._keys) - depth + 2, less) if less > 1 else ()
        own = self._own(source) - self._own(target)
        other = source.active - target.active
        return (1, own, other) if own > 1 or (own == 1 and other > 1) else ()

    def _fullest(self, leaf: Iterable[NodeInfo]) -> NodeInfo | None:
        loaded = (info for info in leaf if self._on.get(info.id))
        return max(loaded, key=lambda info: (self._own(info), info.active), default=None)

    def _emptiest(self, leaf: Iterable[NodeInfo]) -> NodeInfo | None:
        fitting = (info for info in leaf if self._takes(info))
        return min(fitting, key=lambda info: (self._own(info), info.active), default=None)

    def _takes(self, info: NodeInfo) -> bool:
        wanted = self._targets is None or info.id in self._targets
        return wanted and passes(self._filters, info)

    def _own(self, info: NodeInfo) -> int:
        return info.active_of.get(self._service_id, 0)

    def _path(self, info: NodeInfo) -> Path:
        return tuple(label_of(key, info.node) for key in self._keys)

    def _count(self, info: NodeInfo, change: int) -> None:
        path = self._path(info)
        for depth in range(1, len(path) + 1):
            self._counts[path[:depth]] = self._counts.get(path[:depth], 0) + change
