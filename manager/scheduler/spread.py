"""Where the tasks of one group go, one after the other: always to the best node that is left.

Without preferences the best node is the one with the fewest recent failures, then with the
fewest tasks of the service, then with the fewest tasks at all. Preferences make a tree above
that: at each level the branch (the value of a label) with the fewest tasks of the service, and
in the last branch the best node.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from common.model.node import Node
from common.model.task import Placement
from manager.constraint import ENGINE_LABEL, NODE_LABEL
from manager.scheduler.nodeset import NodeInfo

Rank = tuple[int, int, int]  # recent failures, tasks of the service, tasks
Ranked = Callable[[NodeInfo], Rank]
Fits = Callable[[NodeInfo], bool]


class Best:
    """Fitting nodes, best first.

    `emptiest` gives nodes with a clean record and no task of the service, those with the fewest
    tasks first, and is read only as far as needed: what it gives can be beaten by nothing behind
    it and by no other node. `others` are looked at when it has run out.
    """

    def __init__(
        self, rank: Ranked, fits: Fits, others: Iterable[NodeInfo], emptiest: Iterator[NodeInfo]
    ) -> None:
        self._rank = rank
        self._fits = fits
        self._ticket = itertools.count()  # among equals, first come first served
        self._heap: list[tuple[Rank, int, NodeInfo]] = []
        self._emptiest: Iterator[NodeInfo] | None = emptiest
        self._others = others
        self.looked_at = 0  # nodes

    def take(self) -> NodeInfo | None:
        """The best node; None if none fits. Hand it back with `back` once its books are kept."""
        while True:
            self._fill()
            if not self._heap:
                return None
            _, _, info = heapq.heappop(self._heap)
            if self._fits(info):
                return info  # one that does not fit this task fits none of the group: dropped

    def back(self, info: NodeInfo) -> None:
        heapq.heappush(self._heap, (self._rank(info), next(self._ticket), info))

    def _fill(self) -> None:
        """Read on until the top of the heap cannot be beaten by what was not read."""
        while self._emptiest is not None:
            if self._heap and self._heap[0][0][:2] == (0, 0):
                return
            info = next(self._emptiest, None)
            self.looked_at += 1
            if info is not None:
                self.back(info)
                continue
            self._emptiest = None
            for other in self._others:
                self.looked_at += 1
                self.back(other)


def best_of_all(
    rank: Ranked, fits: Fits, emptiest: Iterator[NodeInfo], ready: Callable[[], list[NodeInfo]]
) -> Best:
    """The best of all nodes; `ready` lists them all and is asked only if that is needed."""
    clean: set[str] = set()

    def untouched() -> Iterator[NodeInfo]:
        for info in emptiest:
            if rank(info)[:2] == (0, 0):
                clean.add(info.id)
                yield info

    def others() -> Iterator[NodeInfo]:
        yield from (info for info in ready() if info.id not in clean)

    return Best(rank, fits, others(), untouched())


class Branch:
    """One value of a label, or the root of the tree."""

    def __init__(self, path: tuple[str, ...] = ()) -> None:
        self.path = path
        self.tasks = 0  # of the service, also on nodes that take no more
        self.branches: dict[str, Branch] = {}
        self.nodes: list[NodeInfo] = []
        self.best: Best | None = None

    def take(self) -> NodeInfo | None:
        """The next node, its tasks counted one up on the way; None if no branch has one left."""
        if self.best is not None:
            found = self.best.take()
        else:
            found = None
            for branch in sorted(self.branches.values(), key=lambda each: (each.tasks, each.path)):
                found = branch.take()
                if found is not None:
                    break
                del self.branches[branch.path[-1]]  # full, and nothing gets free meanwhile
        if found is not None:
            self.tasks += 1
        return found

    def back(self, info: NodeInfo, keys: Sequence[str]) -> None:
        branch = self
        for key in (label_of(each, info.node) for each in keys):
            branch = branch.branches[key]
        if branch.best is not None:
            branch.best.back(info)


def descriptors(placement: Placement | None) -> list[str]:
    """The labels to spread over, outermost first."""
    preferences = placement.preferences if placement is not None else ()
    wanted = [each.spread.spread_descriptor for each in preferences if each.spread is not None]
    return [each for each in wanted if each.lower().startswith((NODE_LABEL, ENGINE_LABEL))]


def tree(
    keys: Sequence[str], nodes: Iterable[NodeInfo], service_id: str, rank: Ranked, fits: Fits
) -> Branch:
    """The branches of all `nodes`; those that fit hang at the leaves."""
    root = Branch()
    leaves: dict[tuple[str, ...], Branch] = {}
    for info in nodes:
        branch, tasks = root, info.active_of.get(service_id, 0)
        branch.tasks += tasks
        for key in keys:
            value = label_of(key, info.node)
            branch = branch.branches.setdefault(value, Branch((*branch.path, value)))
            branch.tasks += tasks
        leaves[branch.path] = branch
        if fits(info):
            branch.nodes.append(info)
    for leaf in leaves.values():
        leaf.best = Best(rank, fits, leaf.nodes, iter(()))
    return root


def label_of(descriptor: str, node: Node | None) -> str:
    """The node's value; those without the label are one group, ""."""
    if node is None:
        return ""
    if descriptor.lower().startswith(NODE_LABEL):
        return node.spec.labels.get(descriptor[len(NODE_LABEL) :], "")
    return node.description.engine.labels.get(descriptor[len(ENGINE_LABEL) :], "")
