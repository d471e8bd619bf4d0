"""Assigns tasks to nodes: PENDING becomes ASSIGNED.

Tasks that are bound to a node (global services) are only checked, and go first. All others are
placed in groups of one service and spec version. What finds no node keeps the reason in its
status and is tried again when a node changed or something was given back.
"""

import datetime as dt
import itertools
from collections.abc import Iterable

from msgspec.structs import replace

from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.scheduler.kept import Choices
from manager.scheduler.nodeset import NodeSet, SpecKey, spec_key
from manager.scheduler.placement import check, place
from manager.store.change import Event, Put, encode_change
from manager.store.view import ENTRY_BYTES_MAX, Tx, View

TASKS_PER_TX = 500  # keeps an entry, and the pause of the event loop, small
ASSIGNED_MESSAGE = "scheduler assigned task to node"
CLOSED_MESSAGE = "no longer wanted before it had a node"

GroupKey = tuple[SpecKey, str]  # the string tells tasks without a service apart


class Scheduler:
    """The loop. Its books are those of committed events and of its own placements."""

    def __init__(self) -> None:
        self._nodes = NodeSet()
        self._choices = Choices()
        self._dirty: dict[str, None] = {}  # tasks to look at
        self._stuck: dict[str, None] = {}  # tasks that found no node

    def restore(self, view: View) -> None:
        self._nodes, self._choices = NodeSet(), Choices()
        self._dirty, self._stuck = {}, {}
        for node in view.find(Node):
            self._nodes.put_node(node)
        for task in view.find(Task):
            self._nodes.put_task(task)
            self._note(task)
            if _failed(task):
                self._nodes.note_failure(task, task.updated_at)

    def observe(self, event: Event) -> None:
        match event.object:
            case Node() as node:
                self._observe_node(node, event)
            case Task() as task:
                self._observe_task(task, event)
            case Service() as service if event.action == "remove":
                self._nodes.forget_service(service.id)

    def _observe_node(self, node: Node, event: Event) -> None:
        if event.action == "remove":
            self._nodes.remove_node(node.id)
        else:
            self._nodes.put_node(node)
        self._retry()

    def _observe_task(self, task: Task, event: Event) -> None:
        if event.action == "remove":
            self._dirty.pop(task.id, None)
            self._stuck.pop(task.id, None)
            freed = self._nodes.remove_task(task.id)
        else:
            freed = self._nodes.put_task(task)
            self._note(task)
            old = event.old
            if _failed(task) and isinstance(old, Task) and not _failed(old):
                self._nodes.note_failure(task, task.updated_at)
        if freed:
            self._retry()

    def _note(self, task: Task) -> None:
        if _wants_place(task) or _wants_end(task):
            if task.id not in self._stuck or _wants_end(task):
                self._dirty[task.id] = None
        else:
            self._dirty.pop(task.id, None)
            self._stuck.pop(task.id, None)

    def _retry(self) -> None:
        self._dirty |= self._stuck
        self._stuck = {}

    @property
    def nodes(self) -> NodeSet:
        """The books: what is placed where. Whoever plays with them puts all back."""
        return self._nodes

    @property
    def waiting(self) -> int:
        """How many tasks are remembered because they have no place yet."""
        return len(self._dirty) + len(self._stuck)

    @property
    def dirty(self) -> bool:
        return bool(self._dirty)

    @property
    def wake_at(self) -> dt.datetime | None:
        """Never: a task that has no place waits for an event."""
        return None

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        groups: dict[GroupKey, list[Task]] = {}
        for task in self._take(tx):
            if _wants_end(task):
                _close(tx, task, now)
            elif task.node_id:
                self._check(tx, task, now)
            elif _wants_place(task):
                groups.setdefault(_group(task), []).append(task)
        for tasks in groups.values():
            size = _piece(tasks[0]) if len(tasks) > 1 else 1
            for first in range(0, len(tasks), size):
                piece = tasks[first : first + size]
                if tx.is_full:
                    self._dirty |= {task.id: None for task in piece}
                else:
                    self._place(tx, piece, now)

    def _take(self, tx: Tx) -> Iterable[Task]:
        ids = list(itertools.islice(self._dirty, TASKS_PER_TX))
        for id in ids:
            if tx.is_full:
                return
            del self._dirty[id]
            self._stuck.pop(id, None)
            task = tx.get(Task, id)
            if task is not None and (_wants_place(task) or _wants_end(task)):
                yield task

    def _check(self, tx: Tx, task: Task, now: dt.datetime) -> None:
        reason = check(self._nodes, task)
        if reason:
            self._keep(tx, task, reason, now)
        else:
            _assign(tx, task, task.node_id, now)

    def _place(self, tx: Tx, tasks: list[Task], now: dt.datetime) -> None:
        placed, reason = place(self._nodes, tasks, now, self._choices)
        for task in tasks:
            if task.id in placed:
                _assign(tx, task, placed[task.id], now)
            else:
                self._keep(tx, task, reason, now)

    def _keep(self, tx: Tx, task: Task, reason: str, now: dt.datetime) -> None:
        """Remember `task` for later; write the reason if it is news."""
        self._stuck[task.id] = None
        if task.status.err != reason:
            tx.put(replace(task, status=replace(task.status, err=reason, timestamp=now)))


def _piece(task: Task) -> int:
    """How many such tasks can be written before one has to look whether there is room."""
    return max(ENTRY_BYTES_MAX // len(encode_change(Put(task))), 1)


def _group(task: Task) -> GroupKey:
    """Tasks of one group have the same spec. Without a version nobody can say so."""
    alone = "" if task.service_id and task.spec_version is not None else task.id
    return spec_key(task), alone


def _wants_place(task: Task) -> bool:
    return task.status.state is TaskState.PENDING and task.desired_state <= TaskState.COMPLETE


def _wants_end(task: Task) -> bool:
    """Whether no node will ever report the end that is wanted: none has heard of the task."""
    return task.status.state < TaskState.ASSIGNED and task.desired_state is TaskState.SHUTDOWN


def _failed(task: Task) -> bool:
    """Failures of tasks that are bound to their node say nothing about where to place others."""
    bound = task.slot == 0
    return task.status.state in (TaskState.FAILED, TaskState.REJECTED) and not bound


def _assign(tx: Tx, task: Task, node_id: str, now: dt.datetime) -> None:
    status = replace(
        task.status, state=TaskState.ASSIGNED, message=ASSIGNED_MESSAGE, err="", timestamp=now
    )
    tx.put(replace(task, node_id=node_id, status=status))


def _close(tx: Tx, task: Task, now: dt.datetime) -> None:
    status = replace(
        task.status, state=TaskState.SHUTDOWN, message=CLOSED_MESSAGE, err="", timestamp=now
    )
    tx.put(replace(task, status=status))
