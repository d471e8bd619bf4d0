"""Moves tasks of its own accord to nodes that joined, came back or were emptied.

Off unless the cluster has a budget of moves a minute (label shoal.rebalance of its spec). A move
is the mark `leaving` on a task: the update of its service replaces it, at the pace and in the
order that the service's update config gives. Nothing is moved while nodes come and go.
"""

import datetime as dt
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from common.model import labels
from common.model.cluster import Cluster
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager import wishes
from manager.orchestrator import update
from manager.orchestrator.dirty import is_dirty
from manager.scheduler.nodeset import NodeSet, is_ready
from manager.scheduler.rebalance import may_gain, moves
from manager.store.store import Event, Tx, View
from manager.store.watch import Kinds

SETTLE = dt.timedelta(seconds=30)  # since the last node came or went
MINUTE = dt.timedelta(minutes=1)
SERVICES_PER_PASS = 100


def budget(cluster: Cluster | None) -> int:
    """How many tasks may be moved in a minute without being asked for; 0: none."""
    text = cluster.spec.labels.get(labels.REBALANCE, "") if cluster is not None else ""
    return int(text) if text.isdecimal() else 0


def has_volumes(service: Service) -> bool:
    """Whether tasks of `service` have data that stays behind on their node."""
    container = service.spec.task_template.container_spec
    mounts = container.mounts if container is not None else ()
    return any(mount.type in ("volume", "bind") for mount in mounts)


def is_movable(service: Service) -> bool:
    """Whether `service` is moved without being named: not with volumes, unless it wishes so."""
    wish = wishes.of(service.spec).rebalance
    return is_replicated(service) and (not has_volumes(service) if wish is None else wish)


def is_replicated(service: Service) -> bool:
    return service.spec.mode.name == "replicated" and not service.pending_delete


def is_busy(service: Service) -> bool:
    """Whether an update of `service` has to end first, one way or the other."""
    paused = service.update_status is not None and "paused" in service.update_status.state
    return paused or update.is_under_way(service)


def movable_tasks(view: View, service: Service) -> list[Task]:
    """The tasks of `service` that run, and are what it asks for; none if others do not yet."""
    tasks = [
        task
        for task in view.find(Task, service_id=service.id)
        if task.desired_state <= TaskState.RUNNING
    ]
    if any(is_dirty(service, task, view.get(Node, task.node_id)) for task in tasks):
        return []
    return [task for task in tasks if task.status.state is TaskState.RUNNING]


class Rebalancer:
    """The leader's loop. `nodes` gives the books that the scheduler keeps."""

    kinds: Kinds = frozenset({Cluster, Node, Service})

    def __init__(self, nodes: Callable[[], NodeSet]) -> None:
        self._nodes = nodes
        self._budget = 0
        self._stirred = True  # nodes came or went
        self._everything = True
        self._queue: dict[str, None] = {}  # services to look at
        self._look_at: dt.datetime | None = None
        self._moved: deque[dt.datetime] = deque()

    def restore(self, view: View) -> None:
        self._budget = budget(next(iter(view.find(Cluster)), None))
        self._stirred, self._everything = True, True
        self._queue = {}

    def observe(self, event: Event) -> None:
        match event.object, event.old:
            case Cluster() as cluster, _:
                self._budget = budget(cluster)
            case Node() as node, old:
                before = is_ready(old) if isinstance(old, Node) else False
                labelled = isinstance(old, Node) and old.spec.labels != node.spec.labels
                if event.action == "remove" or before != is_ready(node) or labelled:
                    self._stirred = self._everything = True
            case Service() as service, _:
                if event.action == "remove":
                    self._queue.pop(service.id, None)
                elif event.action == "update":
                    self._queue[service.id] = None

    @property
    def dirty(self) -> bool:
        return self._stirred

    @property
    def wake_at(self) -> dt.datetime | None:
        wanted = self._budget and (self._everything or self._queue)
        return self._look_at if wanted else None

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        if self._stirred:
            self._stirred, self._look_at = False, now + SETTLE
            return
        if self._everything:
            self._everything = False
            self._queue = {service.id: None for service in tx.find(Service)}
        while self._moved and self._moved[0] + MINUTE <= now:
            self._moved.popleft()
        for id in list(self._queue)[:SERVICES_PER_PASS]:
            left = self._budget - len(self._moved)
            if left <= 0:
                self._look_at = self._moved[0] + MINUTE if self._moved else None
                return
            del self._queue[id]
            service = tx.get(Service, id)
            if service is not None and is_movable(service) and not is_busy(service):
                self._move(tx, service, left, now)
        self._look_at = now

    def _move(self, tx: Tx, service: Service, limit: int, now: dt.datetime) -> None:
        nodes, tasks = self._nodes(), movable_tasks(tx, service)
        if not may_gain(nodes, tasks):
            return
        for move in moves(nodes, tasks, limit):
            tx.put(replace(move.task, leaving=True))
            self._moved.append(now)
