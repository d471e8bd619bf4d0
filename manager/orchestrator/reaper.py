"""Deletes what nobody needs any more: old tasks, and removed services and networks.

A task is deleted only when nothing of it can be left on a node: it was observed stopped, it
never reached a node, or its node was removed (behaviours 117-122).
"""

import datetime as dt
import itertools
from collections.abc import Iterable

from msgspec.structs import replace

from common.model.cluster import Cluster
from common.model.network import Network
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.api import defaults
from manager.orchestrator.scene import Key, Slot, age, is_active, key_of, never_ran
from manager.store.store import Event, Tx, View

DELETIONS_PER_PASS = 500
SERVICES_PER_PASS = 50
SLOTS_PER_PASS = 500


def expired(slot: Slot, limit: int, max_attempts: int) -> list[Task]:
    """The tasks of `slot` that are history beyond `limit` tasks in all, oldest first.

    A negative limit keeps all. What the restart policy has to count is kept (behaviour 75), and
    while no task runs the last one that did, so that an update sees what it replaces.
    """
    if limit < 0:
        return []
    if max_attempts:
        limit = max(limit, max_attempts + 1)
    keep = max(limit - len(slot.active), 0)
    runs = any(task.status.state is TaskState.RUNNING for task in slot.active)
    if slot.active and not runs:
        keep = max(keep, 1)
    history = [task for task in slot.tasks if not is_active(task)]
    if not slot.active:
        keep = max(keep, 1)  # a slot that its policy leaves dead is known by its last task
    return history[: max(len(history) - keep, 0)]


class Reaper:
    """The leader's loop that deletes."""

    def __init__(self) -> None:
        self._services: dict[str, None] = {}  # ids whose tasks to look at; also of missing ones
        self._slots: dict[tuple[str, Key], None] = {}  # service id and slot
        self._networks: dict[str, None] = {}  # ids to delete once unused
        self._look_at_networks = False
        self._nodes: dict[str, None] = {}  # removed nodes
        self._everything = False

    def restore(self, view: View) -> None:
        self._everything, self._look_at_networks = False, True
        self._services = {service.id: None for service in view.find(Service)}
        self._services |= {task.service_id: None for task in view.find(Task) if task.service_id}
        self._networks = {net.id: None for net in view.find(Network) if net.pending_delete}
        self._nodes, self._slots = {}, {}

    def observe(self, event: Event) -> None:
        match event.object:
            case Task() as task:
                self._observe_task(event.action, task)
            case Service() as service:
                self._services[service.id] = None
                self._look_at_networks = True
            case Network() as network if network.pending_delete and event.action != "remove":
                self._networks[network.id] = None
                self._look_at_networks = True
            case Node() as node if event.action == "remove":
                self._nodes[node.id] = None
            case Cluster() as cluster if event.old is None or (
                isinstance(event.old, Cluster)
                and event.old.spec.orchestration != cluster.spec.orchestration
            ):
                self._everything = True

    def _observe_task(self, action: str, task: Task) -> None:
        gone = action == "remove"
        if gone or task.status.state > TaskState.RUNNING:
            self._look_at_networks = True
        # The tasks that went no longer keep their service; one that runs no longer keeps its
        # predecessors from being history.
        over = not is_active(task) or task.status.state >= TaskState.RUNNING
        if task.service_id and (gone or over):
            self._slots[task.service_id, key_of(task)] = None

    @property
    def dirty(self) -> bool:
        networks = self._look_at_networks and bool(self._networks)
        work = self._services or self._slots or self._nodes or self._everything
        return bool(work or networks)

    @property
    def wake_at(self) -> dt.datetime | None:
        return None

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        self._expand(tx)
        budget = DELETIONS_PER_PASS
        for id in list(self._services)[:SERVICES_PER_PASS]:
            if budget <= 0:
                break
            del self._services[id]
            doomed = self._doomed(tx, id)
            for task in doomed[:budget]:
                tx.delete(Task, task.id)
            if len(doomed) > budget or tx.is_full:
                self._services[id] = None
            budget -= len(doomed)
            self._close(tx, id)
        self._reap_slots(tx, budget)
        self._reap_networks(tx)

    def _reap_slots(self, tx: Tx, budget: int) -> None:
        """Look at the slots of which a task ended or went, instead of at whole services."""
        for at in list(itertools.islice(self._slots, SLOTS_PER_PASS)):
            if budget <= 0:
                break
            del self._slots[at]
            service = tx.get(Service, at[0])
            if service is None:
                self._services[at[0]] = None
                continue
            doomed = self._doomed_of(tx, service, tx.find(Task, slot=at))
            for task in doomed:
                tx.delete(Task, task.id)
            budget -= len(doomed)
            self._close(tx, service.id)

    def _expand(self, tx: Tx) -> None:
        if self._everything:
            self._everything = False
            self._services |= {service.id: None for service in tx.find(Service)}
        for node_id in self._nodes:
            tasks = tx.find(Task, node_id=node_id)
            self._services |= {task.service_id: None for task in tasks if task.service_id}
        self._nodes = {}

    def _doomed(self, tx: Tx, service_id: str) -> list[Task]:
        """The tasks of a service to delete. Those of one that does not exist are closed."""
        service = tx.get(Service, service_id)
        tasks = tx.find(Task, service_id=service_id)
        if service is None:
            _close_all(tx, tasks)
            return [task for task in tasks if _is_gone(tx, task)]
        return self._doomed_of(tx, service, tasks)

    def _doomed_of(self, tx: Tx, service: Service, tasks: list[Task]) -> list[Task]:
        """Those of `tasks`, all of some of its slots, that are to be deleted."""
        gone = {task.id: task for task in tasks if _is_gone(tx, task)}
        removed = [task for task in gone.values() if task.desired_state is TaskState.REMOVE]
        limit = _limit(tx)
        attempts = defaults.restart_rules(service.spec.task_template).max_attempts
        doomed = {task.id: task for task in removed}
        for slot in _slots(task for task in tasks if task.id not in doomed):
            old = expired(slot, limit, attempts)
            doomed |= {task.id: task for task in old if task.id in gone}
        return list(doomed.values())

    def _close(self, tx: Tx, service_id: str) -> None:
        """Delete a removed service with its last task."""
        service = tx.get(Service, service_id)
        if service is None or not service.pending_delete:
            return
        if not tx.has(Task, service_id=service_id):
            tx.delete(Service, service_id)
            self._look_at_networks = True

    def _reap_networks(self, tx: Tx) -> None:
        if not self._look_at_networks:
            return
        self._look_at_networks = False
        for id in list(self._networks):
            network = tx.get(Network, id)
            if network is None or not network.pending_delete:
                del self._networks[id]
            elif not in_use(tx, id):
                del self._networks[id]
                tx.delete(Network, id)


def in_use(view: View, network_id: str) -> bool:
    """Whether a task that may still run is attached to the network, or a service wants it."""
    return any(not _is_gone(view, task) for task in view.find(Task, network_id=network_id)) or any(
        not service.pending_delete for service in view.find(Service, network=network_id)
    )


def _limit(tx: Tx) -> int:
    cluster = next(iter(tx.find(Cluster)), None)
    if cluster is None:
        return 5
    return cluster.spec.orchestration.task_history_retention_limit


def _is_gone(view: View, task: Task) -> bool:
    """Whether nothing of `task` can be on a node any more."""
    if task.status.state > TaskState.RUNNING:
        return True
    if is_active(task):
        return False
    return never_ran(task) or view.get(Node, task.node_id) is None


def _close_all(tx: Tx, tasks: Iterable[Task]) -> None:
    """Set the desired state of tasks whose service is gone (behaviour 101)."""
    for task in tasks:
        if tx.is_full:
            return
        if task.desired_state is not TaskState.REMOVE:
            tx.put(replace(task, desired_state=TaskState.REMOVE))


def _slots(tasks: Iterable[Task]) -> list[Slot]:
    groups: dict[Key, list[Task]] = {}
    for task in tasks:
        groups.setdefault(key_of(task), []).append(task)
    return [Slot(key, tuple(sorted(group, key=age))) for key, group in groups.items()]
