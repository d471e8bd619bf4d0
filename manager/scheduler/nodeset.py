"""The books of all nodes: what is placed where, kept up to date from event to event.

A node's tasks hold their reservations and ports until they were seen to end; towards balance
only those that should run count. Ready nodes are indexed by how many tasks they have, so that
the emptiest are found without a walk over all.
"""

import datetime as dt
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from common.errors import PortTaken
from common.model.node import Availability, Node, NodeState
from common.model.task import Task, TaskState
from manager.scheduler.demand import Amount, Demand, HostPort, amount, demand

FAILURES_MAX = 5  # so many failures …
FAILURES_WINDOW = dt.timedelta(minutes=5)  # … in such a time make a node faulty for a service

LOG_MAX = 20_000  # changes of nodes that are remembered for those who keep an order of them

K = TypeVar("K")
SpecKey = tuple[str, int]  # service id, spec version: what failures are counted for


def spec_key(task: Task) -> SpecKey:
    return task.service_id, task.spec_version.index if task.spec_version is not None else 0


def is_ready(node: Node) -> bool:
    """Whether `node` takes new tasks."""
    return node.status.state is NodeState.READY and node.spec.availability is Availability.ACTIVE


class NodeInfo:
    """One node's books. `node` is None while only its tasks are known."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.node: Node | None = None
        self.capacity = Amount()
        self.nano_cpus = 0  # reserved
        self.memory_bytes = 0
        self.generic: dict[str, int] = {}
        self.ports: dict[HostPort, int] = {}
        self.active = 0  # tasks that should run
        self.active_of: dict[str, int] = {}  # service id -> tasks that should run
        self.held = 0  # tasks, whether or not they should run
        self._failures: dict[SpecKey, deque[dt.datetime]] = {}

    def has_room(self, need: Amount) -> bool:
        capacity = self.capacity
        return (
            self.nano_cpus + need.nano_cpus <= capacity.nano_cpus
            and self.memory_bytes + need.memory_bytes <= capacity.memory_bytes
            and all(
                self.generic.get(kind, 0) + count <= capacity.generic.get(kind, 0)
                for kind, count in need.generic.items()
            )
        )

    def failures(self, key: SpecKey, now: dt.datetime) -> int:
        """How often this service version failed here of late; 0 unless that is too often."""
        times = self._failures.get(key)
        if not times:
            return 0
        while times and times[0] <= now - FAILURES_WINDOW:
            times.popleft()
        return len(times) if len(times) >= FAILURES_MAX else 0

    def note_failure(self, key: SpecKey, when: dt.datetime) -> None:
        older = [other for other in self._failures if other[0] == key[0] and other[1] < key[1]]
        for other in older:
            del self._failures[other]  # a new version of the service begins anew
        self._failures.setdefault(key, deque(maxlen=10 * FAILURES_MAX)).append(when)

    def forget_failures(self, service_id: str) -> bool:
        """Whether there were any."""
        if not self._failures:
            return False
        gone = [key for key in self._failures if key[0] == service_id]
        for key in gone:
            del self._failures[key]
        return bool(gone)

    def hold(self, need: Demand, sign: int) -> None:
        """Add (`sign` 1) or take away (-1) what a task holds."""
        self.held += sign
        self.nano_cpus += sign * need.amount.nano_cpus
        self.memory_bytes += sign * need.amount.memory_bytes
        for kind, count in need.amount.generic.items():
            _count(self.generic, kind, sign * count)
        for port in need.ports:
            _count(self.ports, port, sign)

    def balance(self, service_id: str, sign: int) -> None:
        """Add or take away one task that should run."""
        self.active += sign
        _count(self.active_of, service_id, sign)


def _port_taken(task: Task) -> bool:
    rejected = task.status.state is TaskState.REJECTED
    return rejected and any(words in task.status.err for words in PortTaken.WORDS)


def _count(counts: dict[K, int], key: K, change: int) -> None:
    counts[key] = counts.get(key, 0) + change
    if counts[key] == 0:
        del counts[key]


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """What the books have of one task."""

    node_id: str
    need: Demand
    active: bool


class NodeSet:
    """All nodes and the tasks on them."""

    def __init__(self) -> None:
        self._infos: dict[str, NodeInfo] = {}
        self._entries: dict[str, _Entry] = {}
        self._by_active: dict[int, OrderedDict[str, NodeInfo]] = {}  # ready nodes only
        self._place: dict[str, int] = {}  # ready node -> its key in _by_active
        self._moved: dict[str, None] = {}
        self._log: list[str] = []  # the last nodes that changed …
        self._forgotten = 0  # … after so many others
        self._last: tuple[Task, Demand] | None = None

    def put_node(self, node: Node) -> None:
        """Add or replace a node; its tasks stay with it."""
        info = self._info(node.id)
        info.node = node
        info.capacity = amount(node.description.resources)
        self._touch(node.id)

    def remove_node(self, node_id: str) -> None:
        info = self._infos.get(node_id)
        if info is not None:
            info.node = None
            self._touch(node_id)
            self._tidy(info)

    def get(self, node_id: str) -> NodeInfo | None:
        return self._infos.get(node_id)

    def all(self) -> list[NodeInfo]:
        """Every known node, ready or not, in the order in which they came."""
        return [info for info in self._infos.values() if info.node is not None]

    def ready(self) -> list[NodeInfo]:
        return [info for info in self.all() if info.node is not None and is_ready(info.node)]

    def emptiest(self) -> Iterator[NodeInfo]:
        """Ready nodes, those with the fewest tasks first, by their counts at the beginning.

        Tasks may be added meanwhile, nodes may not.
        """
        self._settle()
        for active in sorted(self._by_active):
            yield from self._by_active[active].values()

    def put_task(self, task: Task) -> bool:
        """Enter `task` as it is now; whether that gave something back to its node."""
        entry = None
        if task.node_id and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            active = task.desired_state <= TaskState.COMPLETE
            entry = _Entry(task.node_id, self._demand(task), active)
        old = self._entries.get(task.id)
        if old == entry:
            return False
        if old is not None:
            self.remove_task(task.id)
        if entry is not None:
            self._enter(task.id, entry)
        return old is not None

    @property
    def changes(self) -> int:
        """How often nodes have changed so far."""
        return self._forgotten + len(self._log)

    def changed_since(self, changes: int) -> list[str] | None:
        """The nodes that changed since there were so many changes; None: too many to tell."""
        return None if changes < self._forgotten else self._log[changes - self._forgotten :]

    def _touch(self, node_id: str) -> None:
        self._moved[node_id] = None
        self._log.append(node_id)
        if len(self._log) >= LOG_MAX:
            del self._log[: LOG_MAX // 2]
            self._forgotten += LOG_MAX // 2

    def _demand(self, task: Task) -> Demand:
        """Events come in rows of the same service: their tasks share what they need."""
        last = self._last
        if last is not None:
            known, need = last
            if (
                task.spec is known.spec
                and task.ports is known.ports
                and task.service_id == known.service_id
            ):
                return need
        need = demand(task)
        self._last = task, need
        return need

    def add(self, task_id: str, node_id: str, need: Demand) -> None:
        """Enter a task that was just placed."""
        if task_id not in self._entries:
            self._enter(task_id, _Entry(node_id, need, True))

    def remove_task(self, task_id: str) -> bool:
        """Whether the task was in the books."""
        entry = self._entries.pop(task_id, None)
        if entry is None:
            return False
        info = self._infos[entry.node_id]
        info.hold(entry.need, -1)
        if entry.active:
            info.balance(entry.need.service_id, -1)
        self._touch(info.id)
        self._tidy(info)
        return True

    def note_failure(self, task: Task, when: dt.datetime) -> None:
        if task.node_id in self._infos:
            # A process that has the task's port will keep it: no need to fail there again.
            for _ in range(FAILURES_MAX if _port_taken(task) else 1):
                self._infos[task.node_id].note_failure(spec_key(task), when)
            self._touch(task.node_id)

    def forget_service(self, service_id: str) -> None:
        for info in self._infos.values():
            if info.forget_failures(service_id):
                self._touch(info.id)

    def _enter(self, task_id: str, entry: _Entry) -> None:
        info = self._info(entry.node_id)
        self._entries[task_id] = entry
        info.hold(entry.need, 1)
        if entry.active:
            info.balance(entry.need.service_id, 1)
        self._touch(info.id)

    def _info(self, node_id: str) -> NodeInfo:
        if node_id not in self._infos:
            self._infos[node_id] = NodeInfo(node_id)
        return self._infos[node_id]

    def _tidy(self, info: NodeInfo) -> None:
        if info.node is None and not info.held:
            del self._infos[info.id]

    def _settle(self) -> None:
        """Bring the index up to date. Put off until it is read, so that readers may write."""
        for node_id in self._moved:
            place = self._place.pop(node_id, None)
            if place is not None:
                del self._by_active[place][node_id]
                if not self._by_active[place]:
                    del self._by_active[place]
            info = self._infos.get(node_id)
            if info is not None and info.node is not None and is_ready(info.node):
                self._place[node_id] = info.active
                self._by_active.setdefault(info.active, OrderedDict())[node_id] = info
        self._moved.clear()
