"""What the plans of one service look at, and what they write. Plain data, no store.

A slot is filled by one task that should run, and may hold older tasks besides. Slots are known
by number for replicated services and by node id for global ones.
"""

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from common.model.base import Annotations
from common.model.cluster import Cluster
from common.model.node import Availability, Node, NodeState
from common.model.service import Service
from common.model.task import LogDriver, Task, TaskState, TaskStatus
from manager import wishes
from manager.api import defaults

Key = int | str  # a slot's number, or its node's id

_ENDED = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A service and what bears on it at the moment `now`.

    `waits_for` says which other services new tasks wait for, `update_waits_for` which ones an
    update waits for. `ran` says of tasks how long they had been RUNNING when they ended, as far
    as this leader has seen it.
    """

    service: Service
    node: Callable[[str], Node | None]
    now: dt.datetime
    new_id: Callable[[], str]
    log_driver: LogDriver | None = None
    ran: Mapping[str, dt.timedelta] = dataclasses.field(default_factory=dict)
    waits_for: str = ""
    update_waits_for: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """The tasks of one slot, oldest first."""

    key: Key
    tasks: tuple[Task, ...]

    @property
    def active(self) -> list[Task]:
        """The tasks that should run, or should once they may start."""
        return [task for task in self.tasks if is_active(task)]

    @property
    def latest(self) -> Task:
        return self.tasks[-1]


class Draft:
    """The tasks of one service as they will be after what has been planned so far.

    Or of some of its slots: then `of` says how many there are in all.
    """

    def __init__(self, tasks: Iterable[Task], of: int | None = None) -> None:
        self._of = of
        self._tasks = {task.id: task for task in sorted(tasks, key=age)}
        self._slots: dict[Key, Slot] | None = None
        self.changed: dict[str, Task] = {}
        self.wake_at: dt.datetime | None = None

    def put(self, task: Task) -> None:
        """Plan to write `task`."""
        self._tasks[task.id] = task
        self.changed[task.id] = task
        if self._slots is not None:
            self._put_in_slot(self._slots, task)

    def _put_in_slot(self, slots: dict[Key, Slot], task: Task) -> None:
        key = key_of(task)
        if key not in slots:
            self._slots = None  # it has its place in the order
            return
        others = (other for other in slots[key].tasks if other.id != task.id)
        slots[key] = Slot(key, tuple(sorted((*others, task), key=age)))

    def desire(self, task: Task, state: TaskState) -> None:
        """Plan that `task` goes to `state`."""
        if task.desired_state != state:
            self.put(replace(task, desired_state=state))

    def wake(self, when: dt.datetime) -> None:
        """Ask to plan again at `when`, or before."""
        self.wake_at = when if self.wake_at is None else min(self.wake_at, when)

    @property
    def is_part(self) -> bool:
        """Whether there are other slots."""
        return self._of is not None

    @property
    def size(self) -> int:
        """How many slots the service has."""
        return len(self.slots()) if self._of is None else self._of

    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    def slots(self) -> dict[Key, Slot]:
        """All slots that hold a task, in the order of their keys. Follows what is put meanwhile,
        but for a slot that had no task."""
        if self._slots is None:
            groups: dict[Key, list[Task]] = {}
            for task in self._tasks.values():
                groups.setdefault(key_of(task), []).append(task)
            ordered = sorted(groups.items(), key=lambda item: (isinstance(item[0], str), item[0]))
            self._slots = {key: Slot(key, tuple(sorted(tasks, key=age))) for key, tasks in ordered}
        return self._slots


def age(task: Task) -> tuple[dt.datetime, str]:
    """Sorts tasks from oldest to newest."""
    return task.created_at, task.id


def key_of(task: Task) -> Key:
    """The slot of `task`."""
    return task.slot or task.node_id


def is_active(task: Task) -> bool:
    """Whether `task` is meant to run, now or after a delay; of a job, or to have run."""
    return task.desired_state <= TaskState.COMPLETE


def has_completed(task: Task) -> bool:
    """Whether `task` of a job has done what it was for."""
    return task.status.state is TaskState.COMPLETE and task.desired_state is TaskState.COMPLETE


def goal(service: Service) -> TaskState:
    """How far the tasks of `service` should go."""
    return TaskState.COMPLETE if service.spec.mode.is_job else TaskState.RUNNING


def ended_itself(task: Task) -> bool:
    """Whether `task` came to its end by itself: done, failed or refused by its node."""
    return task.status.state in _ENDED


def never_ran(task: Task) -> bool:
    """Whether no node has heard of `task` yet."""
    return task.status.state < TaskState.ASSIGNED


def is_lost(node: Node | None) -> bool:
    """Whether nothing can be expected of the tasks on `node`."""
    return node is None or node.status.state is NodeState.DOWN


def is_leaving(node: Node | None) -> bool:
    """Whether `node` may hold no tasks. A paused or unknown one keeps what it has."""
    return node is None or is_lost(node) or node.spec.availability is Availability.DRAIN


def gives_up_at(scene: Scene, node: Node | None) -> dt.datetime | None:
    """Until when the tasks of the service are waited for on `node`, which is down; None: it is
    not, or they are lost already (wishes.py, loss_grace)."""
    if node is None or not is_lost(node) or node.status.down_since is None:
        return None
    end = node.status.down_since + wishes.of(scene.service.spec).loss_grace
    return end if end > scene.now else None


def must_leave(scene: Scene, draft: Draft, node: Node | None) -> bool:
    """Whether the service may have no tasks on `node` any more. Asks to be woken if that is
    going to be so."""
    if not is_leaving(node):
        return False
    end = gives_up_at(scene, node)
    if end is None or (node is not None and node.spec.availability is Availability.DRAIN):
        return True
    draft.wake(end)
    return False


def has_stopped(task: Task, node: Node | None) -> bool:
    """Whether `task` uses nothing any more, as far as can be known of its `node`."""
    return never_ran(task) or task.status.state > TaskState.RUNNING or is_lost(node)


def default_log_driver(cluster: Cluster | None) -> LogDriver | None:
    """The log driver of tasks whose service names none."""
    return cluster.spec.task_defaults.log_driver if cluster is not None else None


def add_task(
    scene: Scene, draft: Draft, key: Key, desired: TaskState, start_after: dt.datetime | None = None
) -> Task:
    """Plan a new task in slot `key` (a node id: the task is bound to that node)."""
    service = scene.service
    spec = service.spec.task_template
    if spec.log_driver is None and scene.log_driver is not None:
        spec = replace(spec, log_driver=scene.log_driver)
    task_id = scene.new_id()
    task = Task(
        id=task_id,
        created_at=scene.now,
        name=f"{service.spec.name}.{key}.{task_id}",
        spec=spec,
        service_id=service.id,
        slot=key if isinstance(key, int) else 0,
        node_id=key if isinstance(key, str) else "",
        service_annotations=Annotations(name=service.spec.name, labels=service.spec.labels),
        status=TaskStatus(
            timestamp=scene.now, state=TaskState.NEW, message="created", err=scene.waits_for
        ),
        desired_state=desired,
        spec_version=service.spec_version,
        job_iteration=service.job_status.job_iteration if service.job_status else None,
        ports=defaults.host_ports(service.spec),
        start_after=start_after,
        waits_for=scene.waits_for,
    )
    draft.put(task)
    return task


def fill(scene: Scene, draft: Draft, key: Key, slot: Slot | None) -> None:
    """Plan a task for an empty slot: at once, or when what is left in the slot has stopped."""
    waits = slot is not None and any(
        not has_stopped(task, scene.node(task.node_id)) for task in slot.tasks
    )
    add_task(scene, draft, key, TaskState.READY if waits else goal(scene.service))
