"""What may be asked of tasks. They are the cluster's own: there is nothing to change."""

import bisect
import itertools
from collections.abc import Mapping, Sequence

from common.errors import Conflict, Invalid
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.api.filters import Filters, Test, boolean, has_label, one_of, passing, select
from manager.api.nodes import find_node
from manager.api.refs import resolve
from manager.api.services import find_service
from manager.orchestrator.dirty import is_dirty
from manager.store.store import Store, View


class Tasks:
    """Reads tasks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids: Sequence[str] = ()  # as the last first page of anybody found them

    def list(self, filters: Filters) -> Sequence[Task]:
        """The tasks that pass. Raises Invalid for an unknown filter or value."""
        view = self._store.view()
        tasks = select(view.find(Task), filters, _tests(view))
        return tasks

    def page(self, filters: Filters, limit: int, after: str = "") -> Sequence[Task]:
        """At most `limit` of the tasks that pass, by id, those behind the id `after`.

        An empty page is the end. Tasks that come or go meanwhile may be seen or not; every other
        one is in just one page. Raises Invalid.
        """
        if limit < 1:
            raise Invalid(f"limit={limit} is not valid; give the most tasks wanted, from 1 on")
        view = self._store.view()
        if not after or not self._ids:
            self._ids = sorted(task.id for task in view.all(Task))
        ids = itertools.islice(self._ids, bisect.bisect_right(self._ids, after), None)
        there = (task for id in ids if (task := view.get(Task, id)) is not None)
        return list(itertools.islice(passing(there, filters, _tests(view)), limit))

    def get(self, ref: str) -> Task:
        """Raises NotFound, Invalid (ambiguous)."""
        view = self._store.view()
        task = view.get(Task, ref)
        return task or resolve("task", ref, view.find(Task), lambda task: (task.name,))

    def running_of(self, ref: str, slot: int | None = None, node: str = "") -> Task:
        """A task that runs of service `ref`: of `slot`, on `node`, or the first there is.

        Raises NotFound, Invalid (ambiguous), and Conflict if no such task runs.
        """
        view = self._store.view()
        service = find_service(view, ref)
        node_id = find_node(view, node).id if node else ""
        found = [
            task
            for task in view.find(Task, service_id=service.id)
            if task.status.state is TaskState.RUNNING
            and task.desired_state <= TaskState.COMPLETE
            and slot in (None, task.slot)
            and node_id in ("", task.node_id)
        ]
        if not found:
            place = f" in slot {slot}" if slot is not None else f" on node {node}" if node else ""
            raise Conflict(f"no task of service {service.spec.name} runs{place}; see service ps")
        return min(found, key=lambda task: (task.slot, task.created_at, task.id))

    def peek(self, id: str) -> Task | None:
        """The task of that id, if it is still known."""
        return self._store.view().get(Task, id)


def _tests(view: View) -> Mapping[str, Test[Task]]:
    return {
        "id": lambda task, value: task.id.startswith(value),
        "name": lambda task, value: task.name.startswith(value),
        "label": _has_label,
        "desired-state": _has_desired_state,
        "runtime": lambda task, value: (task.spec.runtime or "container") == value,
        "service": lambda task, value: _is_of_service(view, task, value),
        "node": lambda task, value: _is_on_node(view, task, value),
        "_up-to-date": lambda task, value: (
            _is_up_to_date(view, task) == boolean("_up-to-date", value)
        ),
    }


def _has_label(task: Task, value: str) -> bool:
    return has_label(task.labels, value) or has_label(task.service_annotations.labels, value)


def _has_desired_state(task: Task, value: str) -> bool:
    states = [state.value for state in TaskState]
    return task.desired_state.value == one_of("desired-state", value, states)


def _is_of_service(view: View, task: Task, ref: str) -> bool:
    if task.service_id == ref:
        return True
    service = view.get(Service, task.service_id)
    if service is not None and service.spec.name.lower() == ref.lower():
        return not service.pending_delete
    return len(ref) >= _PREFIX_MIN and task.service_id.startswith(ref)


def _is_on_node(view: View, task: Task, ref: str) -> bool:
    if not task.node_id:
        return False
    if task.node_id == ref:
        return True
    node = view.get(Node, task.node_id)
    names = (node.spec.name, node.description.hostname) if node is not None else ()
    return ref in names or (len(ref) >= _PREFIX_MIN and task.node_id.startswith(ref))


def _is_up_to_date(view: View, task: Task) -> bool:
    service = view.get(Service, task.service_id)
    return service is not None and not is_dirty(service, task, view.get(Node, task.node_id))


_PREFIX_MIN = 4  # a service may be called "a"; ids that happen to begin so are not meant
