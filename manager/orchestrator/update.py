"""Brings the tasks of a service to its present spec, a few slots at a time.

A state machine without memory: how far an update is, what failed, and when the next slot may
go is read from the tasks and from `update_status` each time, so a new leader goes on where the
last one stopped. The API clears `update_status` when it writes a spec (or sets rollback_started),
which is how a newer update supersedes one under way.

    None ──► updating ──► completed               rollback_started ──► rollback_completed
                 ├──────► paused                        └────────────► rollback_paused
                 └──────► rollback_started

One thing is known only to a leader that saw it: how long a task ran before it failed. To
another one, each task of the update that has failed failed within the monitoring time.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from common.model.service import Service, UpdateStatus
from common.model.task import Task, TaskState
from manager.api import defaults
from manager.api.defaults import UpdateRules
from manager.orchestrator import restart
from manager.orchestrator.dirty import is_dirty
from manager.orchestrator.scene import (
    Draft,
    Key,
    Scene,
    Slot,
    add_task,
    ended_itself,
    fill,
    is_active,
)
from manager.revisions import revised

# A task that does not run after this long has failed, whatever it waits for (behaviour 92).
PROGRESS_LIMIT = dt.timedelta(minutes=10)

_RUNNING_STATES = ("updating", "rollback_started")
_PAUSED_STATES = ("paused", "rollback_paused")
_ROLLBACK_STATES = ("rollback_started", "rollback_paused", "rollback_completed")


def is_under_way(service: Service) -> bool:
    """Whether an update or a rollback of `service` is being carried out."""
    return _state(service) in _RUNNING_STATES


def judge(scene: Scene, draft: Draft) -> Service:
    """The service after looking at what failed: as it is, paused, or with its old spec again.

    Writes nothing else, but that tasks stay which a failed rebalancing has not moved yet: what a
    changed service means for its tasks is planned afterwards.
    """
    service = scene.service
    if not is_under_way(service):
        return service
    slots = draft.slots()
    failures = [task for slot in slots.values() if (task := _failure(scene, slot)) is not None]
    rules = _rules(service)
    if not failures or len(failures) / draft.size <= rules.max_failure_ratio:
        return service
    reason = _reason(scene, failures[-1])
    if service.update_status is not None and service.update_status.rebalancing:
        return _stay(scene, draft, reason)
    match rules.failure_action:
        case "continue":
            return service
        case "rollback" if _state(service) == "updating" and service.previous_spec is not None:
            return _roll_back(scene, reason)
        case _:
            rolling_back = _state(service) == "rollback_started"
            state = "rollback_paused" if rolling_back else "paused"
            what = "rollback" if rolling_back else "update"
            return _with_status(service, state=state, message=f"{what} paused due to {reason}")


def parallelism(service: Service) -> int:
    """How many slots are worked on at a time; 0: all."""
    return _rules(service).parallelism


def waiting(scene: Scene, slots: Iterable[Slot]) -> Iterator[Key]:
    """Those of `slots` that the update has still to replace, in its order."""
    found = sorted((slot for slot in slots if _needs_update(scene, slot)), key=_runs)
    return (slot.key for slot in found)


def needs(scene: Scene, tasks: Iterable[Task]) -> bool:
    """Whether the update has still to replace the slot of `tasks`."""
    return any(_needs_update(scene, slot) for slot in Draft(tasks).slots().values())


def is_engaged(scene: Scene, slot: Slot) -> bool:
    """Whether the update works on `slot`, or has failed there."""
    if _failure(scene, slot) is not None:
        return True
    return _is_busy(scene, Draft(()), slot, _started(scene.service))


def advance(scene: Scene, draft: Draft, updatable: Callable[[Key], bool]) -> Service:
    """Plan the next step of the update, and give the service with its status after that."""
    service = scene.service
    _close_surplus(scene, draft)
    if _state(service) in _PAUSED_STATES:
        return service
    slots = [slot for key, slot in draft.slots().items() if updatable(key)]
    waiting = [slot for slot in slots if _needs_update(scene, slot)]
    if waiting and not is_under_way(service):
        service = _start(scene, waiting)
    if not is_under_way(service):
        return service
    since = _started(service)
    busy = [slot for slot in slots if _is_busy(scene, draft, slot, since)]
    rules = _rules(service)
    free = len(waiting) if not rules.parallelism else max(rules.parallelism - len(busy), 0)
    if scene.update_waits_for:
        free = 0
    service = _told(scene, service, waits=bool(waiting and scene.update_waits_for))
    for slot in sorted(waiting, key=_runs)[:free]:
        _replace(scene, draft, slot, start_first=rules.start_first)
    if waiting or busy:
        return service
    return _finish(scene, draft, slots, service)


def _close_surplus(scene: Scene, draft: Draft) -> None:
    """Stop the other tasks of a slot whose new task runs; of several new ones keep the best."""
    for slot in draft.slots().values():
        clean = _clean(scene, slot)
        if len(slot.active) < 2 or not clean:
            continue
        best = max(clean, key=lambda task: (task.status.state, task.created_at, task.id))
        runs = best.status.state is TaskState.RUNNING
        for task in slot.active if runs else clean:
            if task is not best:
                draft.desire(task, TaskState.SHUTDOWN)


def _needs_update(scene: Scene, slot: Slot) -> bool:
    """Whether no task of the present spec is, or was, on its way in `slot`."""
    if _clean(scene, slot):
        return False
    active = slot.active
    if not active:
        return restart.is_dead(scene, slot) and _dirty(scene, slot.latest)
    # Start-first: the new task failed, its policy allows no other, and the old one stays.
    oldest = active[0].created_at
    return not any(
        ended_itself(task) and task.created_at > oldest and not _dirty(scene, task)
        for task in slot.tasks
    )


def _is_busy(scene: Scene, draft: Draft, slot: Slot, since: dt.datetime) -> bool:
    """Whether the update still works on `slot`: its new task is not up, or up for too short.

    A slot that failed counts no more: whether the update goes on is for `judge` to say. Neither
    does one that was only just added and waits for a place.
    """
    clean = _clean(scene, slot)
    if not clean or _failure(scene, slot) is not None:
        return False
    task = clean[-1]
    if task.status.state is TaskState.RUNNING:
        done = task.updated_at + _rules(scene.service).delay
        if task.created_at < since or done <= scene.now:
            return False
        draft.wake(done)
        return True
    if not _took_place(slot, task):
        return False
    draft.wake(task.created_at + PROGRESS_LIMIT)
    return True


def _replace(scene: Scene, draft: Draft, slot: Slot, *, start_first: bool) -> None:
    if start_first and slot.active:
        add_task(scene, draft, slot.key, TaskState.RUNNING)
        return
    for task in slot.active:
        draft.desire(task, TaskState.SHUTDOWN)
    fill(scene, draft, slot.key, draft.slots()[slot.key])


def _finish(scene: Scene, draft: Draft, slots: list[Slot], service: Service) -> Service:
    """Complete the update once its last task has run for the monitoring time (behaviour 90)."""
    since = _started(service)
    new = [task for slot in slots for task in _clean(scene, slot) if task.created_at >= since]
    up = [task.updated_at for task in new if task.status.state is TaskState.RUNNING]
    end = max(up, default=since) + _rules(service).monitor
    if up and end > scene.now:
        draft.wake(end)
        return service
    rolled_back = _state(service) == "rollback_started"
    return _with_status(
        service,
        state="rollback_completed" if rolled_back else "completed",
        message=_completed(service, rolled_back=rolled_back),
        completed_at=scene.now,
    )


def _completed(service: Service, *, rolled_back: bool) -> str:
    if rolled_back:
        return "rollback completed"
    moved = service.update_status is not None and service.update_status.rebalancing
    return "rebalancing completed" if moved else "update completed"


def _failure(scene: Scene, slot: Slot) -> Task | None:
    """A task of `slot` that was made by this update and failed it, the newest first."""
    since = _started(scene.service)
    monitor = _rules(scene.service).monitor
    for task in reversed(slot.tasks):
        if task.created_at < since or _dirty(scene, task):
            continue
        if ended_itself(task) and scene.ran.get(task.id, dt.timedelta()) <= monitor:
            return task
        if _is_overdue(scene, slot, task):
            return task
    return None


def _is_overdue(scene: Scene, slot: Slot, task: Task) -> bool:
    """Whether `task` should have run by now."""
    return (
        task.desired_state <= TaskState.RUNNING
        and task.status.state < TaskState.RUNNING
        and not task.waits_for
        and _took_place(slot, task)
        and task.created_at + PROGRESS_LIMIT <= scene.now
    )


def _took_place(slot: Slot, task: Task) -> bool:
    """Whether `task` replaces another, or at least has a node."""
    return len(slot.tasks) > 1 or task.status.state >= TaskState.ASSIGNED


def _reason(scene: Scene, task: Task) -> str:
    """Why the update failed, in Docker's words and the task's own."""
    if ended_itself(task):
        text = f"failure or early termination of task {task.id}"
    else:
        minutes = PROGRESS_LIMIT // dt.timedelta(minutes=1)
        text = f"task {task.id}, which did not run within {minutes} minutes"
    detail = task.status.err or ("" if ended_itself(task) else task.status.message)
    return f"{text}: {detail}" if detail else text


def _roll_back(scene: Scene, reason: str) -> Service:
    """The service with its previous spec; one step deep, and never rolled back itself."""
    service = scene.service
    if service.previous_spec is None:
        return service
    return replace(
        revised(service, service.previous_spec, "rollback of a failed update", scene.now),
        previous_spec=None,
        previous_spec_version=None,
        update_status=UpdateStatus(
            state="rollback_started",
            started_at=scene.now,
            message=f"update rolled back due to {reason}",
        ),
    )


def _start(scene: Scene, waiting: Iterable[Slot]) -> Service:
    if all(_only_leaves(scene, slot) for slot in waiting):
        status = UpdateStatus(
            state="updating",
            started_at=scene.now,
            message="rebalancing: update in progress",
            rebalancing=True,
        )
        return replace(scene.service, update_status=status)
    again = _state(scene.service) in _ROLLBACK_STATES
    status = UpdateStatus(
        state="rollback_started" if again else "updating",
        started_at=scene.now,
        message="rollback in progress" if again else "update in progress",
    )
    return replace(scene.service, update_status=status)


def _only_leaves(scene: Scene, slot: Slot) -> bool:
    """Whether the tasks of `slot` are as they should be, but for where they are."""
    return bool(slot.active) and not any(
        _dirty(scene, replace(task, leaving=False)) for task in slot.active
    )


def _stay(scene: Scene, draft: Draft, reason: str) -> Service:
    """End a rebalancing: what was not moved yet stays where it is."""
    for task in draft.tasks():
        if task.leaving and is_active(task):
            draft.put(replace(task, leaving=False))
    return _with_status(
        scene.service,
        state="completed",
        message=f"rebalancing ended early due to {reason}",
        completed_at=scene.now,
    )


def _told(scene: Scene, service: Service, *, waits: bool) -> Service:
    """`service` with what its update waits for in its status, or without."""
    status = service.update_status or UpdateStatus()
    what = "rollback" if _state(service) == "rollback_started" else "update"
    if waits:
        message = f"{what} {scene.update_waits_for}"
    elif status.message.startswith(f"{what} waits for "):
        message = f"{what} in progress"
    else:
        return service
    return replace(service, update_status=replace(status, message=message))


def _with_status(
    service: Service, *, state: str, message: str, completed_at: dt.datetime | None = None
) -> Service:
    status = service.update_status or UpdateStatus()
    return replace(
        service,
        update_status=replace(status, state=state, message=message, completed_at=completed_at),
    )


def _rules(service: Service) -> UpdateRules:
    rolling_back = _state(service) in _ROLLBACK_STATES
    spec = service.spec
    return defaults.update_rules(spec.rollback_config if rolling_back else spec.update_config)


def _state(service: Service) -> str:
    return service.update_status.state if service.update_status is not None else ""


def _started(service: Service) -> dt.datetime:
    status = service.update_status
    if status is None or status.started_at is None:
        return service.created_at
    return status.started_at


def _clean(scene: Scene, slot: Slot) -> list[Task]:
    return [task for task in slot.active if not _dirty(scene, task)]


def _dirty(scene: Scene, task: Task) -> bool:
    return is_dirty(scene.service, task, scene.node(task.node_id))


def _runs(slot: Slot) -> bool:
    """Sorts slots that do not run first: replacing them costs nothing."""
    return any(task.status.state is TaskState.RUNNING for task in slot.active)
