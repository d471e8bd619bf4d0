"""Keeps one task of a global service on each node that is active and fits."""

from collections.abc import Iterable

from common.model.node import Availability, Node, NodeState
from common.model.service import Service, ServiceSpec
from common.model.task import Task, TaskState
from manager import constraint
from manager.orchestrator import restart
from manager.orchestrator.dirty import constraints
from manager.orchestrator.loop import ServiceLoop
from manager.orchestrator.scene import (
    Draft,
    Key,
    Scene,
    fill,
    has_completed,
    is_active,
    must_leave,
)
from manager.store.store import View


class GlobalOrchestrator(ServiceLoop):
    """The leader's loop for global services, their restarts and their updates."""

    def handles(self, service: Service) -> bool:
        return service.spec.mode.name == "global"

    def has_task(self, task: Task) -> bool:
        return task.slot == 0 and task.job_iteration is None

    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        close_ineligible(scene, draft)
        restart.tend(scene, draft, lambda key: self.may_fill(scene, key))
        plan(scene, draft, view.find(Node))

    def may_fill(self, scene: Scene, key: Key) -> bool:
        node = scene.node(str(key))
        return node is not None and takes_new(scene.service.spec, node)

    def affected(self, view: View, node: Node) -> Iterable[Service]:
        return [service for service in view.find(Service) if self.handles(service)]


def fits(spec: ServiceSpec, node: Node) -> bool:
    """Whether `node` is one that tasks of `spec` may be on."""
    return constraint.fits(constraints(spec.task_template), node)


def takes_new(spec: ServiceSpec, node: Node) -> bool:
    """Whether `node` is to get a task of `spec` if it has none."""
    return (
        node.status.state is NodeState.READY
        and node.spec.availability is Availability.ACTIVE
        and fits(spec, node)
    )


def close_ineligible(scene: Scene, draft: Draft) -> None:
    """Plan the end of tasks whose node is gone, down, drained or no longer fits.

    Tasks of a removed node are removed; elsewhere they stay as the node's history.
    """
    for task in draft.tasks():
        node = scene.node(task.node_id)
        if node is None:
            draft.desire(task, TaskState.REMOVE)
        elif has_completed(task) or not is_active(task):
            continue
        elif must_leave(scene, draft, node) or not fits(scene.service.spec, node):
            draft.desire(task, TaskState.SHUTDOWN)


def plan(scene: Scene, draft: Draft, nodes: Iterable[Node]) -> None:
    """Plan a task for each of `nodes` that should have one and has none (behaviours 93-96)."""
    slots = draft.slots()
    for node in nodes:
        slot = slots.get(node.id)
        if slot is not None and (slot.active or restart.is_dead(scene, slot)):
            continue
        if takes_new(scene.service.spec, node):
            fill(scene, draft, node.id, slot)
