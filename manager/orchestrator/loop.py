"""What the loops of all modes share.

One pass over a service decides everything about its tasks, in this order: whether its update
failed, which tasks ended or lost their node, which slots to fill or empty, the next step of the
update, and which waiting tasks may start. Together, because each of them looks at the others'
outcome, and a slot must not be filled twice.
"""

import abc
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec.structs import replace

from common.ids import Ids
from common.model.cluster import Cluster
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.orchestrator import ordering, restart, update
from manager.orchestrator.dependents import Dependents
from manager.orchestrator.scene import Draft, Key, Scene, default_log_driver, is_active
from manager.store.store import Event, Tx, View

SERVICES_PER_PASS = 50  # keeps one Raft entry, and the pause of the event loop, small
CHANGES_PER_SERVICE = 500


class Mode(Protocol):
    """What differs between the modes of services."""

    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        """Plan restarts, and fill and empty slots."""

    def may_fill(self, scene: Scene, key: Key) -> bool:
        """Whether a new task may be put into slot `key` now."""
        ...


class ServiceLoop(abc.ABC):
    """A loop of the leader (manager/control.py) for the services of one mode."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._dirty: dict[str, None] = {}  # service ids, in the order they got dirty
        self._nodes: dict[str, None] = {}  # nodes that changed
        self._wake: dict[str, dt.datetime] = {}
        self._ran: dict[str, dict[str, dt.timedelta]] = {}  # service -> task -> RUNNING for
        self._dependents = Dependents()

    @abc.abstractmethod
    def handles(self, service: Service) -> bool:
        """Whether `service` is of this loop's mode."""

    @abc.abstractmethod
    def has_task(self, task: Task) -> bool:
        """Whether `task` is of a service of this loop's mode."""

    @abc.abstractmethod
    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        """Plan restarts, and fill and empty slots."""

    @abc.abstractmethod
    def may_fill(self, scene: Scene, key: Key) -> bool:
        """Whether a new task may be put into slot `key` now."""

    @abc.abstractmethod
    def affected(self, view: View, node: Node) -> Iterable[Service]:
        """The services that a change of `node` may concern."""

    def restore(self, view: View) -> None:
        self._dirty = {service.id: None for service in view.find(Service) if self.handles(service)}
        self._nodes, self._wake, self._ran = {}, {}, {}
        self._dependents = Dependents()
        for id in self._dirty:
            if (service := view.get(Service, id)) is not None:
                self._dependents.put(service)

    def observe(self, event: Event) -> None:
        self._dirty |= self._dependents.of(event)
        match event.object:
            case Service() as service if self.handles(service):
                self._observe_service(event.action, service)
            case Task() as task if self.has_task(task) and task.service_id:
                old = event.old if isinstance(event.old, Task) else None
                self._observe_task(event.action, task, old)
            case Node() as node:
                old_node = event.old if isinstance(event.old, Node) else None
                if event.action == "remove" or _matters(old_node, node):
                    self._nodes[node.id] = None

    @property
    def dirty(self) -> bool:
        return bool(self._dirty or self._nodes)

    @property
    def wake_at(self) -> dt.datetime | None:
        return min(self._wake.values(), default=None)

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        self._collect(tx, now)
        for id in list(self._dirty)[:SERVICES_PER_PASS]:
            del self._dirty[id]
            self._wake.pop(id, None)
            service = tx.get(Service, id)
            if service is not None:
                self._reconcile(tx, service, now)

    def _collect(self, tx: Tx, now: dt.datetime) -> None:
        """Mark the services that are due, and those of nodes that changed."""
        self._dirty |= {id: None for id, when in self._wake.items() if when <= now}
        for node_id in self._nodes:
            node = tx.get(Node, node_id) or Node(id=node_id)
            self._dirty |= {service.id: None for service in self.affected(tx, node)}
        self._nodes = {}

    def _reconcile(self, tx: Tx, service: Service, now: dt.datetime) -> None:
        scene = Scene(
            service=service,
            node=lambda id: tx.get(Node, id),
            now=now,
            new_id=self._ids.new,
            log_driver=default_log_driver(next(iter(tx.find(Cluster)), None)),
            ran=self._ran.get(service.id, {}),
            waits_for=(waits := ordering.waits(tx, service)).tasks,
            update_waits_for=waits.update,
        )
        draft = Draft(tx.find(Task, service_id=service.id))
        tx.put(plan(self, scene, draft, tx, tx.put))
        changes = list(draft.changed.values())
        for task in changes[:CHANGES_PER_SERVICE]:
            tx.put(task)
        if len(changes) > CHANGES_PER_SERVICE:
            self._dirty[service.id] = None  # plans settle, so the rest comes again
        if draft.wake_at is not None:
            self._wake[service.id] = draft.wake_at

    def _observe_service(self, action: str, service: Service) -> None:
        if action == "remove":
            self._dependents.remove(service.id)
            for memory in (self._dirty, self._wake, self._ran):
                memory.pop(service.id, None)
            return
        self._dependents.put(service)
        if not update.is_under_way(service):
            self._ran.pop(service.id, None)
        self._dirty[service.id] = None

    def _observe_task(self, action: str, task: Task, old: Task | None) -> None:
        if action == "create":
            return  # our own: it was planned together with the rest
        if old is not None and action == "update":
            state, before = task.status.state, old.status.state
            if task.leaving and not old.leaving:
                self._dirty[task.service_id] = None
            if state is before and task.desired_state is old.desired_state:
                return
            if before is TaskState.RUNNING and state > TaskState.RUNNING:
                ran = self._ran.setdefault(task.service_id, {})
                ran[task.id] = task.updated_at - old.updated_at
            if state < TaskState.RUNNING and task.desired_state is old.desired_state:
                return
        if action == "remove":
            self._ran.get(task.service_id, {}).pop(task.id, None)
        self._dirty[task.service_id] = None


def plan(
    mode: Mode, scene: Scene, draft: Draft, view: View, write: Callable[[Service], Service]
) -> Service:
    """Plan all about the tasks of a service; gives the service as it is to be written.

    `write` stamps a changed spec with its version, which the tasks made from it carry.
    """
    if scene.service.pending_delete:
        for task in draft.tasks():
            draft.desire(task, TaskState.REMOVE)
        return scene.service
    if scene.service.spec.mode.is_job:  # a change of a job is another run of it
        mode.settle(scene, draft, view)
        _release(scene, draft)
        restart.lift(scene, draft)
        return scene.service
    judged = update.judge(scene, draft)
    if judged != scene.service:
        scene = replace_service(scene, write(judged))
    mode.settle(scene, draft, view)
    service = update.advance(scene, draft, lambda key: mode.may_fill(scene, key))
    _release(scene, draft)
    restart.lift(replace_service(scene, service), draft)
    return service


def _release(scene: Scene, draft: Draft) -> None:
    """Let tasks go on that waited for other services, or tell what they wait for now."""
    for task in draft.tasks():
        if task.waits_for and task.waits_for != scene.waits_for and is_active(task):
            status = replace(task.status, err=scene.waits_for, timestamp=scene.now)
            draft.put(replace(task, waits_for=scene.waits_for, status=status))


def replace_service(scene: Scene, service: Service) -> Scene:
    """`scene` with another state of its service."""
    return dataclasses.replace(scene, service=service)


def _matters(old: Node | None, new: Node) -> bool:
    """Whether a node's change can concern where tasks may be."""
    return old is None or replace(
        old, version=new.version, updated_at=new.updated_at, manager_status=new.manager_status
    ) != replace(new)
