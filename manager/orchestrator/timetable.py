"""Runs scheduled jobs when their time has come (labels shoal.schedule…).

The next moment is written down with the job, so that a new leader neither forgets a run nor does it
twice. Moments that passed while nobody led are made up for by one run. A run is an iteration
of the job; what it means for its tasks is for the jobs' own loops.
"""

import datetime as dt

from msgspec.structs import replace

from common.model.base import Version
from common.model.service import JobStatus, Service
from common.model.task import Task, TaskState
from manager import wishes
from manager.orchestrator.scene import has_completed, is_active, key_of
from manager.store.store import Event, Tx, View
from manager.store.watch import Kinds

SERVICES_PER_PASS = 100


def run_again(status: JobStatus, now: dt.datetime) -> JobStatus:
    """`status` of a job that begins another run."""
    number = status.job_iteration.index
    # The first run of a scheduled job is that of the iteration with which it was made.
    first = status.last_execution is None
    version = Version(index=number if first else number + 1)
    return replace(status, job_iteration=version, last_execution=now)


class Timetable:
    """The leader's loop."""

    kinds: Kinds = frozenset({Service})

    def __init__(self) -> None:
        self._due: dict[str, dt.datetime | None] = {}  # None: to be worked out

    def restore(self, view: View) -> None:
        self._due = {}
        for service in view.find(Service):
            self._note(service)

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Service):
            self._due.pop(event.object.id, None)
            if event.action != "remove":
                self._note(event.object)

    def _note(self, service: Service) -> None:
        if service.job_status is None or service.pending_delete:
            return
        if wishes.of(service.spec).schedule is not None:
            self._due[service.id] = service.job_status.next_execution

    @property
    def dirty(self) -> bool:
        return None in self._due.values()

    @property
    def wake_at(self) -> dt.datetime | None:
        return min((when for when in self._due.values() if when is not None), default=None)

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        ready = [id for id, when in self._due.items() if when is None or when <= now]
        for id in ready[:SERVICES_PER_PASS]:
            del self._due[id]  # what is written comes back as an event
            service = tx.get(Service, id)
            if service is not None and service.job_status is not None:
                self._turn(tx, service, service.job_status, now)

    def _turn(self, tx: Tx, service: Service, status: JobStatus, now: dt.datetime) -> None:
        schedule = wishes.of(service.spec).schedule
        if schedule is None or service.pending_delete:
            return
        if status.next_execution is not None and status.next_execution <= now:
            if schedule.overlap == "forbid" and is_running(tx, service):
                status = replace(status, skipped_at=status.next_execution)
            else:
                status = run_again(status, now)
        changed = replace(status, next_execution=schedule.cron.after(now))
        tx.put(replace(service, job_status=changed))


def is_running(view: View, service: Service) -> bool:
    """Whether a run of the job, present or earlier, has not ended."""
    status = service.job_status
    if status is None or status.last_execution is None:
        return False
    tasks = view.find(Task, service_id=service.id)
    if any(is_active(task) and not _is_over(task) for task in tasks):
        return True
    # A run that has just begun has no task yet, and the next slot's may not be made yet.
    slots = {key_of(task) for task in tasks if task.job_iteration == status.job_iteration}
    job = service.spec.mode.replicated_job
    return len(slots) < ((job.total_completions or 0) if job is not None else 1)


def _is_over(task: Task) -> bool:
    return has_completed(task) or task.status.state > TaskState.RUNNING
