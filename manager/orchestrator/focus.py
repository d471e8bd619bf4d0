"""Which slots of a large service a pass has to look at.

A pass over all tasks of a service takes time in proportion to them, so in a large service one
failing task must not cost such a pass. A full pass leaves a `Focus`: while nothing has changed but
tasks, the passes after it look only at slots whose tasks or nodes changed, at those that wait for
a moment or for each other, and at the next few that an update is going to replace.
"""

import datetime as dt
import itertools
from collections.abc import Iterable, Iterator

from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.api import defaults
from manager.orchestrator import restart, update
from manager.orchestrator.scene import Draft, Key, Scene, Slot, fill, is_lost, key_of
from manager.store.view import View

LARGE = 200  # slots; smaller services are always looked at as a whole
KEYS_PER_PASS = 160  # of each up to three tasks are written, at most 500 in a transaction


class Focus:
    """What a full pass left, and what happened since."""

    def __init__(self, scene: Scene, draft: Draft) -> None:
        """`draft` is that of the full pass, `scene` has the service as it was written."""
        self._basis = _basis(scene)
        self._changed: dict[Key, None] = {}
        self._moving: dict[Key, dt.datetime | None] = {}  # and when to look again at the latest
        self._waiting: dict[Key, None] = {}  # to be replaced by the update, in its order
        self._ends: dict[str, TaskState] = {}  # planned for tasks, but not yet written
        self._next = 0  # slots from here on were never filled …
        self._missing = 0  # … and so many are to be
        slots = draft.slots()
        self._size = len(slots)
        self._last = next(reversed(slots), 0)
        self._follow(scene, draft)
        # Emptied on purpose, or no longer wanted when they got empty: no business of later passes.
        self._vacant = {
            key
            for key, slot in slots.items()
            if not slot.active and not restart.is_dead(scene, slot)
        }
        if update.is_under_way(scene.service):
            self._waiting = dict.fromkeys(update.waiting(scene, slots.values()))

    def expect(self, missing: int, filled: int) -> bool:
        """Note that so many slots are still missing; whether they are just those at the end."""
        self._next, self._missing = filled + 1, missing
        return not missing or self._size == self._last == filled

    def owe(self, task: Task) -> None:
        """Note an end that was planned, and is to be written by later passes."""
        self._ends[task.id] = task.desired_state

    def note(self, task: Task) -> None:
        """A task came, went or changed."""
        if (key := key_of(task)) not in self._vacant:
            self._changed[key] = None

    def holds(self, scene: Scene) -> bool:
        """Whether looking at a few slots is enough."""
        service = scene.service
        if self._basis != _basis(scene):
            return False
        if not update.is_under_way(service):
            return True
        status = service.update_status
        rebalancing = status is not None and status.rebalancing
        return bool(self._waiting and update.parallelism(service) and not rebalancing)

    @property
    def dirty(self) -> bool:
        """Whether another pass is wanted at once."""
        return bool(self._changed or self._ends or self._missing)

    @property
    def wake_at(self) -> dt.datetime | None:
        return min((at for at in self._moving.values() if at is not None), default=None)

    def ends(self, view: View) -> Iterator[tuple[Task, TaskState]]:
        """The tasks whose end is still to be written, and their desired states; each once."""
        for id in list(self._ends):
            state = self._ends.pop(id)
            task = view.get(Task, id)
            if task is not None and task.desired_state < state:
                yield task, state

    def draft(self, scene: Scene, view: View) -> Draft:
        """The slots to look at now."""
        keys = dict.fromkeys(itertools.islice(self._changed, KEYS_PER_PASS))
        for key in keys:
            del self._changed[key]
        if update.is_under_way(scene.service):
            # How many may be replaced now depends on all that the update is busy with.
            keys |= dict.fromkeys(self._moving)
            keys |= dict.fromkeys(self._next_to_update(scene, view))
        else:
            due = (key for key, at in self._moving.items() if at is not None and at <= scene.now)
            keys |= dict.fromkeys(itertools.islice(due, KEYS_PER_PASS))
        return Draft((task for key in keys for task in _tasks(view, scene, key)), of=self._size)

    def _next_to_update(self, scene: Scene, view: View) -> Iterable[Key]:
        found: list[Key] = []
        for key in list(self._waiting):
            if len(found) == update.parallelism(scene.service):
                break
            tasks = _tasks(view, scene, key)
            if tasks and update.needs(scene, tasks):
                found.append(key)
            else:
                del self._waiting[key]
        return found

    def fill(self, scene: Scene, draft: Draft, most: int) -> None:
        """Plan tasks for slots that never had one."""
        count = min(self._missing, most)
        for number in range(self._next, self._next + count):
            fill(scene, draft, number, None)
        self._next, self._missing = self._next + count, self._missing - count
        self._size += count

    def looked(self, scene: Scene, draft: Draft) -> None:
        """`draft` was planned and written, `scene` has the service as it is now."""
        self._follow(scene, draft)

    def _follow(self, scene: Scene, draft: Draft) -> None:
        for key, slot in draft.slots().items():
            if moves(scene, slot):
                self._moving[key] = draft.wake_at
            else:
                self._moving.pop(key, None)


def moves(scene: Scene, slot: Slot) -> bool:
    """Whether something may be due in `slot` without an event of its tasks."""
    active = slot.active
    if len(active) != 1:
        return bool(active)
    task = active[0]
    if task.desired_state is TaskState.READY or task.status.state > TaskState.RUNNING:
        return True
    if task.leaving or task.waits_for or (task.node_id and is_lost(scene.node(task.node_id))):
        return True
    return update.is_under_way(scene.service) and update.is_engaged(scene, slot)


def refill(scene: Scene, draft: Draft) -> None:
    """Plan tasks for those slots of `draft` that had one and lost it: no fewer are wanted now."""
    for key, slot in draft.slots().items():
        if not slot.active and not restart.is_dead(scene, slot):
            fill(scene, draft, key, slot)


def missing(scene: Scene, draft: Draft) -> tuple[int, int]:
    """How many slots are to be filled yet, and how many are or are dead, after a full pass."""
    slots = draft.slots().values()
    filled = sum(bool(slot.active) or restart.is_dead(scene, slot) for slot in slots)
    return max(defaults.replicas(scene.service.spec) - filled, 0), filled


def only_status_changed(old: Node, new: Node) -> bool:
    """Whether what is placed on the node has to be looked at, but not what else may be."""
    return (old.spec.labels, old.role, old.description) == (
        new.spec.labels,
        new.role,
        new.description,
    )


def _basis(scene: Scene) -> tuple[object, ...]:
    """All that a pass looks at besides tasks and nodes."""
    service: Service = scene.service
    return (
        service.spec_version,
        service.update_status,
        service.pending_delete,
        scene.log_driver,
        scene.waits_for,
        scene.update_waits_for,
    )


def _tasks(view: View, scene: Scene, key: Key) -> list[Task]:
    return view.find(Task, slot=(scene.service.id, key))
