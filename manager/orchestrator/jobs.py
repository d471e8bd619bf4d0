"""Runs jobs: services whose tasks come to an end by themselves.

A run of a job is an iteration: each change of its spec begins another, and the tasks of the one
before are removed. A replicated job has as many slots as it needs completions; a slot whose task
completed is done. A global job has one task on each node that may have one. What fails is tried
again as the restart policy says; only a task that did not complete ever is, also with "any".
"""

from collections.abc import Callable, Iterable

from common.model.base import Version
from common.model.node import Node
from common.model.service import ReplicatedJob, Service
from common.model.task import Task, TaskState
from manager import wishes
from manager.orchestrator import restart
from manager.orchestrator.global_services import GlobalOrchestrator, close_ineligible, takes_new
from manager.orchestrator.replicated import NEW_PER_PASS, ReplicatedOrchestrator
from manager.orchestrator.scene import Draft, Scene, Slot, fill, has_completed, is_active
from manager.store.store import View
from manager.wishes import Schedule


class ReplicatedJobOrchestrator(ReplicatedOrchestrator):
    """The leader's loop for replicated jobs. What a node's change concerns is as for services."""

    def handles(self, service: Service) -> bool:
        return service.spec.mode.replicated_job is not None

    def has_task(self, task: Task) -> bool:
        return task.slot > 0 and task.job_iteration is not None

    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        def settle(run: Draft) -> None:
            restart.tend(scene, run, lambda key: self.may_fill(scene, key))
            plan(scene, run)

        settle_run(scene, draft, settle)


class GlobalJobOrchestrator(GlobalOrchestrator):
    """The leader's loop for global jobs. What a node's change concerns is as for services."""

    def handles(self, service: Service) -> bool:
        return service.spec.mode.global_job is not None

    def has_task(self, task: Task) -> bool:
        return task.slot == 0 and task.job_iteration is not None

    def settle(self, scene: Scene, draft: Draft, view: View) -> None:
        def settle(run: Draft) -> None:
            restart.tend(scene, run, lambda key: self.may_fill(scene, key))
            plan_everywhere(scene, run, view.find(Node))

        close_ineligible(scene, draft)
        settle_run(scene, draft, settle)


def iteration(service: Service) -> Version | None:
    """Which run of the job `service` this is."""
    return service.job_status.job_iteration if service.job_status is not None else None


def settle_run(scene: Scene, draft: Draft, settle: Callable[[Draft], None]) -> None:
    """Let `settle` plan for the present run, and plan what becomes of the tasks of earlier ones.

    Where runs may overlap the present one does not see the others' tasks: slots are its own.
    """
    service = scene.service
    schedule = wishes.of(service.spec).schedule
    if schedule is not None and service.job_status and service.job_status.last_execution is None:
        return  # its time has not come yet
    close_earlier_runs(scene, draft, schedule)
    if schedule is None or schedule.overlap != "allow":
        settle(draft)
        return
    own = Draft(task for task in draft.tasks() if task.job_iteration == iteration(service))
    settle(own)
    for task in own.changed.values():
        draft.put(task)
    if own.wake_at is not None:
        draft.wake(own.wake_at)


def close_earlier_runs(scene: Scene, draft: Draft, schedule: Schedule | None = None) -> None:
    """Plan the removal of the tasks that belong to an earlier run (behaviour 110).

    With a schedule those of the last runs stay as history; what has not ended ends, unless runs
    may overlap. What failed in an earlier run is not tried again.
    """
    now = iteration(scene.service)
    number = now.index if now is not None else 0
    for task in draft.tasks():
        if task.job_iteration == now:
            continue
        run = task.job_iteration.index if task.job_iteration is not None else -1
        over = task.status.state > TaskState.RUNNING
        if schedule is not None and schedule.overlap == "allow" and not over:
            continue
        if schedule is None or run < number - schedule.history:
            draft.desire(task, TaskState.REMOVE)
        elif not has_completed(task) and is_active(task):
            draft.desire(task, TaskState.SHUTDOWN)


def plan(scene: Scene, draft: Draft) -> None:
    """Plan the tasks that the job lacks now (behaviours 104-109)."""
    job = scene.service.spec.mode.replicated_job or ReplicatedJob()
    at_once = job.max_concurrent or 0
    total = job.total_completions or 0
    slots = _of_this_run(scene, draft)
    done = {slot.key for slot in slots if _is_done(slot)}
    busy = {slot.key for slot in slots if slot.active} - done
    dead = {slot.key for slot in slots if restart.is_dead(scene, slot)}
    used = done | busy | dead
    missing = min(at_once - len(busy), total - len(used))
    if missing > NEW_PER_PASS:
        missing = NEW_PER_PASS
        draft.wake(scene.now)
    everything = draft.slots()
    number = 0
    while missing > 0:
        number += 1
        if number not in used:
            fill(scene, draft, number, everything.get(number))
            missing -= 1


def plan_everywhere(scene: Scene, draft: Draft, nodes: Iterable[Node]) -> None:
    """Plan a task for each of `nodes` that should have one and had none (behaviours 111, 112)."""
    tried = {
        slot.key
        for slot in _of_this_run(scene, draft)
        if slot.active or restart.is_dead(scene, slot)
    }
    slots = draft.slots()
    for node in nodes:
        if node.id not in tried and takes_new(scene.service.spec, node):
            fill(scene, draft, node.id, slots.get(node.id))


def _of_this_run(scene: Scene, draft: Draft) -> list[Slot]:
    """The slots with the tasks of this run only."""
    now = iteration(scene.service)
    found = []
    for slot in draft.slots().values():
        tasks = tuple(task for task in slot.tasks if task.job_iteration == now)
        if tasks:
            found.append(Slot(slot.key, tasks))
    return found


def _is_done(slot: Slot) -> bool:
    return any(has_completed(task) for task in slot.tasks)
