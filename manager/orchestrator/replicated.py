"""Keeps a replicated service at its number of replicas.

A service of N replicas has N filled slots. This plan only fills slots and empties them; where a
task runs is the scheduler's business, and when a failed one is tried again, restart's.
"""

import heapq
from collections.abc import Iterable

from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.api import defaults
from manager.orchestrator import restart
from manager.orchestrator.focus import refill
from manager.orchestrator.loop import ServiceLoop
from manager.orchestrator.scene import Draft, Key, Scene, Slot, fill, is_active
from manager.store.store import View

NEW_PER_PASS = 500  # the rest comes in the next pass, which is asked for at once


class ReplicatedOrchestrator(ServiceLoop):
    """The leader's loop for replicated services, their restarts and their updates."""

    def handles(self, service: Service) -> bool:
        return service.spec.mode.name == "replicated"

    def has_task(self, task: Task) -> bool:
        return task.slot > 0 and task.job_iteration is None

    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        restart.tend(scene, draft, lambda key: self.may_fill(scene, key))
        if draft.is_part:
            refill(scene, draft)
        else:
            plan(scene, draft)

    def focuses(self, service: Service) -> bool:
        return not service.spec.mode.is_job

    def may_fill(self, scene: Scene, key: Key) -> bool:
        return True

    def affected(self, view: View, node: Node) -> Iterable[Service]:
        return [service for service in with_tasks_on(view, node) if self.handles(service)]


def with_tasks_on(view: View, node: Node) -> Iterable[Service]:
    """The services that have tasks on `node` which should run."""
    ids = {task.service_id for task in view.find(Task, node_id=node.id) if is_active(task)}
    return [service for id in sorted(ids) if (service := view.get(Service, id)) is not None]


def plan(scene: Scene, draft: Draft) -> None:
    """Plan the tasks that bring the service to its replicas (behaviours 59-63)."""
    replicas = defaults.replicas(scene.service.spec)
    slots = draft.slots()
    filled = {key: slot for key, slot in slots.items() if slot.active}
    dead = {key: slot for key, slot in slots.items() if restart.is_dead(scene, slot)}
    for slot in surplus([*filled.values(), *dead.values()], replicas):
        for task in slot.tasks:
            draft.desire(task, TaskState.REMOVE)
    missing = replicas - len(filled) - len(dead)
    if missing > NEW_PER_PASS:
        missing = NEW_PER_PASS
        draft.wake(scene.now)
    number = 0
    while missing > 0:
        number += 1
        if number not in filled and number not in dead:
            fill(scene, draft, number, slots.get(number))
            missing -= 1


def surplus(slots: list[Slot], replicas: int) -> list[Slot]:
    """The slots to empty so that `replicas` remain (behaviour 63).

    First those that do not run, unassigned ones before others; then one after the other from
    the node that has the most; the highest slot where that leaves a choice.
    """
    count = len(slots) - replicas
    if count <= 0:
        return []
    idle = sorted((slot for slot in slots if _worth(slot) < _RUNNING), key=_idle_order)
    chosen = idle[:count]
    if len(chosen) == count:
        return chosen
    by_node: dict[str, list[Slot]] = {}
    for slot in slots:
        if _worth(slot) == _RUNNING:
            by_node.setdefault(_node(slot), []).append(slot)
    for there in by_node.values():
        there.sort(key=_number)
    heap = [(-len(there), -_number(there[-1]), node) for node, there in by_node.items()]
    heapq.heapify(heap)
    while len(chosen) < count:
        node = heap[0][2]
        there = by_node[node]
        chosen.append(there.pop())
        if there:
            heapq.heapreplace(heap, (-len(there), -_number(there[-1]), node))
        else:
            heapq.heappop(heap)
    return chosen


_DEAD, _UNASSIGNED, _IDLE, _RUNNING = range(4)


def _worth(slot: Slot) -> int:
    active = slot.active
    if not active:
        return _DEAD
    if any(task.status.state is TaskState.RUNNING for task in active):
        return _RUNNING
    return _IDLE if any(task.node_id for task in active) else _UNASSIGNED


def _idle_order(slot: Slot) -> tuple[int, int]:
    return _worth(slot), -_number(slot)


def _number(slot: Slot) -> int:
    return slot.key if isinstance(slot.key, int) else 0


def _node(slot: Slot) -> str:
    running = (task for task in slot.active if task.status.state is TaskState.RUNNING)
    return next(running).node_id
