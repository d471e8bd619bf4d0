"""In which order services start and are updated: what one waits for (label shoal.depends_on).

A new task of a service, also one that follows a failed one, waits until each dependency is as the
condition says; an update waits in addition until the dependency's own update is over.

    started     a task of it has been started
    healthy     a task of it runs; with a health check: is healthy
    completed   its job is done, or if it is no job all its tasks have ended with success
"""

import dataclasses
from collections.abc import Iterable

from common.errors import Invalid
from common.model.base import Version
from common.model.node import Node
from common.model.service import Service, ServiceSpec
from common.model.task import Task, TaskState
from manager import wishes
from manager.api import defaults
from manager.orchestrator import update
from manager.orchestrator.dirty import is_dirty
from manager.orchestrator.scene import age, has_completed, is_active, is_lost, key_of
from manager.store.store import View
from manager.wishes import Dependency

STACK = "com.docker.stack.namespace"  # the label by which clients mark the services of a stack


@dataclasses.dataclass(frozen=True, slots=True)
class Waits:
    """What the tasks, and what the update of a service waits for; "": for nothing."""

    tasks: str = ""
    update: str = ""


NOTHING = Waits()


def names(spec: ServiceSpec) -> list[str]:
    """The names, in lower case, of the services that `spec` may mean by its dependencies."""
    return [name for dep in wishes.of(spec).depends_on for name in _candidates(spec, dep.name)]


def waits(view: View, service: Service) -> Waits:
    """What `service` waits for at present."""
    tasks, updates = [], []
    for dep in wishes.of(service.spec).depends_on:
        found = _find(view, service.spec, dep.name)
        if found is None:
            tasks.append(f"service {dep.name}, which does not exist")
        elif not _is_met(view, found, dep):
            tasks.append(f"service {dep.name} ({dep.condition})")
        elif not _is_up_to_date(view, found):
            updates.append(f"the update of service {dep.name}")
    if not tasks and not updates:
        return NOTHING
    return Waits(_text(tasks), _text([*tasks, *updates]))


def check(view: View, spec: ServiceSpec, own_id: str) -> None:
    """Raises Invalid if `spec`, of service `own_id`, would have services wait for each other."""
    start = spec.name
    seen: set[str] = set()
    paths: list[tuple[ServiceSpec, tuple[str, ...]]] = [(spec, (start,))]
    while paths:
        current, path = paths.pop()
        for dep in wishes.of(current).depends_on:
            found = _find(view, current, dep.name)
            is_own = found.id == own_id if found is not None else _means(current, dep, start)
            if is_own:
                raise Invalid(
                    f"depends_on: {' -> '.join((*path, start))} is a cycle, in which nothing would "
                    "ever start; take one of the dependencies out"
                )
            if found is not None and found.id not in seen:
                seen.add(found.id)
                paths.append((found.spec, (*path, found.spec.name)))


def _means(spec: ServiceSpec, dep: Dependency, name: str) -> bool:
    """Whether `dep` of `spec` will mean the service `name` once it is there."""
    return name.lower() in _candidates(spec, dep.name)


def _candidates(spec: ServiceSpec, name: str) -> list[str]:
    """In a stack its own services come first: compose files name them without the stack."""
    stack = spec.labels.get(STACK, "")
    return [each.lower() for each in ((f"{stack}_{name}", name) if stack else (name,))]


def _find(view: View, spec: ServiceSpec, name: str) -> Service | None:
    for candidate in _candidates(spec, name):
        for found in view.find(Service, name=candidate):
            return found
    return None


def _text(reasons: Iterable[str]) -> str:
    joined = ", ".join(reasons)
    return f"waits for {joined}" if joined else ""


def _is_met(view: View, service: Service, dep: Dependency) -> bool:
    tasks = view.find(Task, service_id=service.id)
    match dep.condition:
        case "started":
            return any(_has_started(view, task) for task in tasks)
        case "healthy":
            return any(_runs(view, task) for task in tasks)
        case _:
            return has_done_its_job(service, tasks)


def _has_started(view: View, task: Task) -> bool:
    return has_completed(task) or (
        is_active(task)
        and TaskState.STARTING <= task.status.state <= TaskState.RUNNING
        and not is_lost(view.get(Node, task.node_id))
    )


def _runs(view: View, task: Task) -> bool:
    return (
        task.status.state is TaskState.RUNNING
        and is_active(task)
        and not is_lost(view.get(Node, task.node_id))
    )


def has_done_its_job(service: Service, tasks: Iterable[Task]) -> bool:
    """Whether nothing of `service` is left to be done, and all of it ended with success."""
    run = service.job_status.job_iteration if service.job_status is not None else None
    latest: dict[int | str, Task] = {}
    for task in sorted(tasks, key=age):
        if _is_of(run, task):
            latest[key_of(task)] = task
    done = sum(task.status.state is TaskState.COMPLETE for task in latest.values())
    mode = service.spec.mode
    if mode.replicated_job is not None:
        return done >= (mode.replicated_job.total_completions or 0)
    if mode.name == "replicated":
        return done >= max(defaults.replicas(service.spec), 1)
    return done == len(latest) > 0


def _is_of(run: Version | None, task: Task) -> bool:
    return task.job_iteration == run


def _is_up_to_date(view: View, service: Service) -> bool:
    """Whether no update of `service` is wanted, or under way; a paused one is over."""
    if service.spec.mode.is_job:
        return True
    if update.is_under_way(service):
        return False
    if service.update_status is not None and "paused" in service.update_status.state:
        return True
    return not any(
        is_active(task) and is_dirty(service, task, view.get(Node, task.node_id))
        for task in view.find(Task, service_id=service.id)
    )
