"""When another task takes the slot of one that ended, and when that one may start.

Nothing is remembered here: how often a slot was tried again is counted in its retained tasks,
so a new leader goes on where the last one stopped (behaviours 72-75, 103).
"""

import datetime as dt
import itertools
from collections.abc import Callable

from common.model.task import Task, TaskState
from manager.api import defaults
from manager.orchestrator.dirty import is_dirty
from manager.orchestrator.scene import (
    Draft,
    Key,
    Scene,
    Slot,
    add_task,
    ended_itself,
    goal,
    has_completed,
    has_stopped,
    is_active,
    is_leaving,
    must_leave,
    never_ran,
)

# How long a new task waits for one that does not stop; longer if its grace period is.
STOP_LIMIT = dt.timedelta(seconds=60)
STOP_MARGIN = dt.timedelta(seconds=15)  # endpoints leave the backends first, then the grace


def tend(scene: Scene, draft: Draft, may_replace: Callable[[Key], bool]) -> None:
    """Close what ended or lost its node, and try again what the policy lets.

    Slots left empty by a lost node are the caller's to fill: that is no matter of policy.
    """
    for slot in draft.slots().values():
        for task in slot.active:
            if has_completed(task):
                continue
            if _is_over(task):
                if _waits_out_its_delay(scene, task):
                    draft.wake(task.start_after or scene.now)
                    continue
                draft.desire(task, TaskState.SHUTDOWN)
                if may_replace(slot.key) and _needs_successor(scene, draft, slot, task):
                    _retry(scene, draft, slot, task)
            elif task_is_leaving(scene, draft, task):
                draft.desire(task, TaskState.SHUTDOWN)


def task_is_leaving(scene: Scene, draft: Draft, task: Task) -> bool:
    """Whether `task` cannot stay where it is."""
    if task.status.state is TaskState.ORPHANED:
        return True
    if not task.node_id or never_ran(task):
        return False
    return must_leave(scene, draft, scene.node(task.node_id))


def may_restart(scene: Scene, slot: Slot, ended: Task, at: dt.datetime) -> bool:
    """Whether the restart policy lets `ended`, the last of `slot`, be followed by another.

    Attempts are those of the service's present task spec: a change of it resets them. With a
    window they are those in the window that ends `at`.
    """
    rules = defaults.restart_rules(scene.service.spec.task_template)
    if rules.condition == "none":
        return False
    if rules.condition == "on-failure" and ended.status.state is TaskState.COMPLETE:
        return False
    if not rules.max_attempts:
        return True
    since = at - rules.window if rules.window else None
    return restarts(scene, slot, since) < rules.max_attempts


def restarts(scene: Scene, slot: Slot, since: dt.datetime | None) -> int:
    """How often a task of the present spec followed one that ended by itself, after `since`."""
    same = [
        task for task in slot.tasks if not is_dirty(scene.service, task, scene.node(task.node_id))
    ]
    return sum(
        ended_itself(before) and (since is None or after.created_at >= since)
        for before, after in itertools.pairwise(same)
    )


def is_dead(scene: Scene, slot: Slot) -> bool:
    """Whether `slot` is empty and the policy wants it to stay so (behaviours 68, 72)."""
    latest = slot.latest
    return (
        not slot.active
        and latest.desired_state is TaskState.SHUTDOWN
        and ended_itself(latest)
        and not may_restart(scene, slot, latest, latest.updated_at)
    )


def lift(scene: Scene, draft: Draft) -> None:
    """Let tasks run that waited for a delay, or for the old task of their slot to stop."""
    for slot in draft.slots().values():
        for task in slot.active:
            if task.desired_state is not TaskState.READY or task.status.state > TaskState.RUNNING:
                continue
            due = _due(scene, slot, task)
            if due is None or due <= scene.now:
                draft.desire(task, goal(scene.service))
            else:
                draft.wake(due)


def stop_limit(task: Task) -> dt.timedelta:
    """How long a replacement waits for `task` to stop (behaviour 83)."""
    return max(STOP_LIMIT, defaults.stop_grace(task.spec) + STOP_MARGIN)


def _is_over(task: Task) -> bool:
    """Whether an active task has ended, other than by the loss of its node."""
    return TaskState.RUNNING < task.status.state < TaskState.ORPHANED


def _waits_out_its_delay(scene: Scene, task: Task) -> bool:
    """Whether `task` ended while it was prepared, before its delay was over.

    Its successor is made when the delay is over: a node that refuses a task refuses the next one
    as quickly, so without this the delay would never be waited for.
    """
    if task.desired_state is not TaskState.READY or task.start_after is None:
        return False
    return scene.now < task.start_after


def _needs_successor(scene: Scene, draft: Draft, slot: Slot, task: Task) -> bool:
    """Whether the end of `task` leaves `slot` without the task it should have.

    In a start-first update a slot may hold an old task as well as a new one: the end of the new
    one is followed by another, the end of the old one is not.
    """
    others = [
        other
        for other in slot.active
        if other.id != task.id and not _is_over(other) and not task_is_leaving(scene, draft, other)
    ]
    if not others:
        return slot.active[-1].id == task.id
    if is_dirty(scene.service, task, scene.node(task.node_id)):
        return False
    return all(is_dirty(scene.service, other, scene.node(other.node_id)) for other in others)


def _retry(scene: Scene, draft: Draft, slot: Slot, task: Task) -> None:
    if not may_restart(scene, slot, task, scene.now):
        return
    delay = _delay(scene, task)
    waits = delay or any(not has_stopped(t, scene.node(t.node_id)) for t in _leftovers(slot))
    add_task(
        scene,
        draft,
        slot.key,
        TaskState.READY if waits else goal(scene.service),
        scene.now + delay if delay else None,
    )


def _delay(scene: Scene, ended: Task) -> dt.timedelta:
    """The restart delay; none where the next task has another node or another spec."""
    node = scene.node(ended.node_id)
    if (ended.node_id and is_leaving(node)) or is_dirty(scene.service, ended, node):
        return dt.timedelta()
    return defaults.restart_rules(scene.service.spec.task_template).delay


def _leftovers(slot: Slot) -> list[Task]:
    return [task for task in slot.tasks if not is_active(task)]


def _due(scene: Scene, slot: Slot, task: Task) -> dt.datetime | None:
    """When `task` may run at the latest known; None: at once."""
    running = [old for old in _leftovers(slot) if not has_stopped(old, scene.node(old.node_id))]
    times = [task.created_at + stop_limit(old) for old in running]
    if task.start_after is not None:
        times.append(task.start_after)
    return max(times, default=None)
