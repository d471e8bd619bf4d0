"""Takes tasks off nodes that no longer fit them: a label went, memory shrank.

Only a change of the node sets it going. It judges by the service's present constraints, not by
the copy in the task (behaviours 123-125); while a service is being updated its tasks are left to
the update, which replaces them at its own pace. What it stops, the orchestrator replaces.
"""

import datetime as dt
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from common.model.node import Node
from common.model.service import Service
from common.model.task import Resources, Task, TaskState
from manager import constraint
from manager.orchestrator.dirty import constraints
from manager.orchestrator.scene import age, is_active, is_lost
from manager.orchestrator.update import is_under_way
from manager.store.store import Event, Tx, View
from manager.store.watch import Kinds

NODES_PER_PASS = 50


def misplaced(
    node: Node, tasks: Iterable[Task], service: Callable[[str], Service | None]
) -> list[Task]:
    """The tasks that may not stay on `node`. Of those that do not fit in, the newest go."""
    left = node.description.resources
    cpus, memory = left.nano_cpus, left.memory_bytes
    out = []
    for task in sorted(tasks, key=age):
        if not TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            continue
        if not is_active(task):
            continue
        needs = _reservations(task)
        fits = needs.nano_cpus <= cpus and needs.memory_bytes <= memory
        if not (_may_stay(node, task, service(task.service_id)) and (fits or not _any(needs))):
            out.append(task)
            continue
        cpus -= needs.nano_cpus
        memory -= needs.memory_bytes
    return out


class Enforcer:
    """The leader's loop that keeps nodes free of what does not fit them."""

    kinds: Kinds = frozenset({Node, Service})

    def __init__(self) -> None:
        self._nodes: dict[str, None] = {}
        self._services: dict[str, None] = {}  # their update ended: look at their nodes again

    def restore(self, view: View) -> None:
        self._nodes = {node.id: None for node in view.find(Node)}
        self._services = {}

    def observe(self, event: Event) -> None:
        match event.object, event.old:
            case Node() as node, Node() as old:
                if event.action == "update" and _facts(node) != _facts(old):
                    self._nodes[node.id] = None
            case Service() as service, Service() as before:
                if is_under_way(before) and not is_under_way(service):
                    self._services[service.id] = None

    @property
    def dirty(self) -> bool:
        return bool(self._nodes or self._services)

    @property
    def wake_at(self) -> dt.datetime | None:
        return None

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        for service_id in self._services:
            tasks = tx.find(Task, service_id=service_id)
            self._nodes |= {task.node_id: None for task in tasks if task.node_id}
        self._services = {}
        for node_id in list(self._nodes)[:NODES_PER_PASS]:
            if tx.is_full:
                break
            del self._nodes[node_id]
            node = tx.get(Node, node_id)
            if node is None or is_lost(node):
                continue  # the orchestrator replaces all that was there
            tasks = tx.find(Task, node_id=node_id)
            for task in misplaced(node, tasks, lambda id: tx.get(Service, id)):
                tx.put(replace(task, desired_state=TaskState.SHUTDOWN))


def _may_stay(node: Node, task: Task, service: Service | None) -> bool:
    if service is not None and is_under_way(service):
        return True
    spec = task.spec if service is None else service.spec.task_template
    return constraint.fits(constraints(spec), node)


def _reservations(task: Task) -> Resources:
    wanted = task.spec.resources
    return wanted.reservations or Resources() if wanted is not None else Resources()


def _any(needs: Resources) -> bool:
    return bool(needs.nano_cpus or needs.memory_bytes)


def _facts(node: Node) -> tuple[object, ...]:
    """All of a node that placement looks at."""
    lost = is_lost(node)
    return node.spec.labels, node.role, node.description, node.status.addr, lost
