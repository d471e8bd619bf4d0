"""What the loops of all modes share.

One pass over a service decides everything about its tasks, in this order: whether its update
failed, which tasks ended or lost their node, which slots to fill or empty, the next step of the
update, and which waiting tasks may start. Together, because each of them looks at the others'
outcome, and a slot must not be filled twice.
"""

import abc
import dataclasses
import datetime as dt
import itertools
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
from manager.orchestrator.focus import LARGE, Focus, missing, only_status_changed
from manager.orchestrator.scene import Draft, Key, Scene, default_log_driver, is_active
from manager.store.store import Event, Tx, View

SERVICES_PER_PASS = 50  # keeps one Raft entry, and the pause of the event loop, small
FILL_PER_PASS = 500


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
        self._nodes: dict[str, bool] = {}  # nodes that changed; whether only in their status
        self._wake: dict[str, dt.datetime] = {}
        self._ran: dict[str, dict[str, dt.timedelta]] = {}  # service -> task -> RUNNING for
        self._dependents = Dependents()
        self._focus: dict[str, Focus] = {}  # of large services

    @abc.abstractmethod
    def handles(self, service: Service) -> bool:
        """Whether `service` is of this loop's mode."""

    @abc.abstractmethod
    def has_task(self, task: Task) -> bool:
        """Whether `task` is of a service of this loop's mode."""

    @abc.abstractmethod
    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        """Plan restarts, and fill and empty slots."""

    def focuses(self, service: Service) -> bool:
        """Whether `settle` can do with some of the slots of `service`."""
        return False

    @abc.abstractmethod
    def may_fill(self, scene: Scene, key: Key) -> bool:
        """Whether a new task may be put into slot `key` now."""

    @abc.abstractmethod
    def affected(self, view: View, node: Node) -> Iterable[Service]:
        """The services that a change of `node` may concern."""

    def restore(self, view: View) -> None:
        self._dirty = {service.id: None for service in view.find(Service) if self.handles(service)}
        self._nodes, self._wake, self._ran, self._focus = {}, {}, {}, {}
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
                    known = event.action == "update" and old_node is not None
                    slight = known and old_node is not None and only_status_changed(old_node, node)
                    self._nodes[node.id] = slight and self._nodes.get(node.id, True)

    @property
    def dirty(self) -> bool:
        return bool(self._dirty or self._nodes)

    @property
    def wake_at(self) -> dt.datetime | None:
        return min(self._wake.values(), default=None)

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        self._collect(tx, now)
        for id in list(itertools.islice(self._dirty, SERVICES_PER_PASS)):
            if tx.is_full:
                break
            del self._dirty[id]
            self._wake.pop(id, None)
            service = tx.get(Service, id)
            if service is not None:
                self._reconcile(tx, service, now)

    def _collect(self, tx: Tx, now: dt.datetime) -> None:
        """Mark the services that are due, and those of nodes that changed."""
        self._dirty |= {id: None for id, when in self._wake.items() if when <= now}
        for node_id, slight in self._nodes.items():
            node = tx.get(Node, node_id) or Node(id=node_id)
            services = {service.id: None for service in self.affected(tx, node)}
            self._dirty |= services
            if not slight:
                for id in services:
                    self._focus.pop(id, None)
            elif self._focus.keys() & services.keys():
                for task in tx.find(Task, node_id=node_id):
                    self._note(task)
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
        focus = self._focus.get(service.id)
        if focus is not None and focus.holds(scene):
            wake_at = self._look(tx, scene, focus)
        else:
            wake_at = self._look_at_all(tx, scene)
        if wake_at is not None:
            self._wake[service.id] = wake_at

    def _look_at_all(self, tx: Tx, scene: Scene) -> dt.datetime | None:
        """Plan and write all about a service; gives when to do so again at the latest."""
        id = scene.service.id
        self._focus.pop(id, None)
        draft = Draft(tx.find(Task, service_id=id))
        written = tx.put(plan(self, scene, draft, tx, tx.put))
        left = _write(tx, draft)
        if draft.size >= LARGE and self.focuses(written):
            self._begin_focus(tx, replace_service(scene, written), draft, left)
        elif left:
            self._dirty[id] = None  # plans settle, so the rest comes again
        return draft.wake_at

    def _begin_focus(self, tx: Tx, scene: Scene, draft: Draft, left: list[Task]) -> None:
        """Go on with a few slots at a time, if what is left allows it."""
        id = scene.service.id
        if left:
            self._dirty[id] = None
        if any(tx.get(Task, task.id) is None for task in left):
            return
        begun = Focus(scene, draft)
        if not begun.expect(*missing(scene, draft)):
            return
        for task in left:
            begun.owe(task)
        self._focus[id] = begun

    def _look(self, tx: Tx, scene: Scene, focus: Focus) -> dt.datetime | None:
        """Like `_look_at_all`, for the slots that need it."""
        id = scene.service.id
        for task, state in focus.ends(tx):
            tx.put(replace(task, desired_state=state))
            if tx.is_full:
                break
        if not tx.is_full:
            draft = focus.draft(scene, tx)
            if not focus.holds(scene):  # the update has no more before it
                return self._look_at_all(tx, scene)
            written = tx.put(plan(self, scene, draft, tx, tx.put))
            scene = replace_service(scene, written)
            focus.looked(scene, draft)
            focus.fill(scene, draft, FILL_PER_PASS - len(draft.changed))
            for task in _write(tx, draft):
                focus.note(task)
                if tx.get(Task, task.id) is None:
                    self._focus.pop(id, None)  # who looks at all makes it again
                    self._dirty[id] = None
        if focus.dirty:
            self._dirty[id] = None
        return focus.wake_at

    def _note(self, task: Task) -> None:
        if (focus := self._focus.get(task.service_id)) is not None:
            focus.note(task)

    def _observe_service(self, action: str, service: Service) -> None:
        if action == "remove":
            self._dependents.remove(service.id)
            for memory in (self._dirty, self._wake, self._ran, self._focus):
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
                self._note(task)
            if state is before and task.desired_state is old.desired_state:
                return
            if before is TaskState.RUNNING and state > TaskState.RUNNING:
                ran = self._ran.setdefault(task.service_id, {})
                ran[task.id] = task.updated_at - old.updated_at
            if state < TaskState.RUNNING and task.desired_state is old.desired_state:
                return
        if action == "remove":
            self._ran.get(task.service_id, {}).pop(task.id, None)
            if is_active(task):
                self._focus.pop(task.service_id, None)  # its slot may be gone with it
        self._dirty[task.service_id] = None
        self._note(task)


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


def _write(tx: Tx, draft: Draft) -> list[Task]:
    """Write what was planned, as much as one entry of the log takes; gives what is left."""
    changes = list(draft.changed.values())
    for count, task in enumerate(changes):
        if tx.is_full:
            return changes[count:]
        tx.put(task)
    return []


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
