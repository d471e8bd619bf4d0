"""Waits until a service's tasks are as its spec wants them, and shows how far they are."""

import sys
import time
from typing import Any

import click

from cli.client import ApiError, Client, CliError
from cli.service_spec import mode_name
from cli.tasks import slot

POLL_S = 0.2  # as the docker CLI does
_DEAD = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")


class UpdateFailed(CliError):
    """The update was paused or rolled back."""


class TasksFailed(CliError):
    """Tasks failed, and the restart policy does not let them be tried again."""


def wait_converged(client: Client, service_id: str, *, quiet: bool, rollback: bool = False) -> None:
    """Return when all tasks run; `rollback`: when those of the spec before do, as was asked for.

    A job is waited for until it is done. Raises UpdateFailed when the update was paused or
    rolled back, and TasksFailed when tasks failed that are not tried again, so that the exit
    code tells.
    """
    shown = _Display(quiet=quiet)
    why = ""
    while True:
        try:
            service = client.get(f"/services/{service_id}")
            tasks = client.get("/tasks", filters={"service": [service_id], "_up-to-date": ["true"]})
            nodes = client.get("/nodes")
        except ApiError as error:
            if error.status != 503:  # an election passes
                raise
            time.sleep(POLL_S)
            continue
        if next_run := service.get("JobStatus", {}).get("NextExecution"):
            shown.end(f"scheduled: next run at {next_run}")
            return
        if mode_name(service["Spec"]["Mode"]).endswith("-job"):
            if _job_is_over(service, tasks, shown):
                return
            time.sleep(POLL_S)
            continue
        running, wanted, trouble = count(service, tasks, nodes)
        shown.line(running, wanted, trouble)
        state = (service.get("UpdateStatus") or {}).get("State", "")
        if state == "rollback_started":
            why = service["UpdateStatus"].get("Message", "")
        if state in ("paused", "rollback_paused") or (
            state == "rollback_completed" and not rollback
        ):
            message = why or service["UpdateStatus"].get("Message", "")
            shown.end()
            raise UpdateFailed(f"service {state.replace('_', ' ')}: {message}".rstrip(": "))
        if not wanted and "Global" in service["Spec"]["Mode"]:
            time.sleep(POLL_S)  # its tasks are not made yet, or no node may have one
            continue
        if running >= wanted and state not in ("updating", "rollback_started"):
            _check_moves(service.get("UpdateStatus") or {}, shown)
            shown.end(f"{running} of {wanted} tasks running: converged")
            return
        over = given_up(service, tasks)
        if over and running + len(over) >= wanted and not state:
            shown.end(f"{running} of {wanted} tasks running, {len(over)} ended for good")
            _check(over)
            return
        time.sleep(POLL_S)


def _check_moves(status: dict[str, Any], shown: "_Display") -> None:
    """Raises UpdateFailed if tasks could not all be moved."""
    if status.get("Rebalancing") and "ended early" in status.get("Message", ""):
        shown.end()
        raise UpdateFailed(status["Message"])


def _job_is_over(service: dict[str, Any], tasks: list[dict[str, Any]], shown: "_Display") -> bool:
    """Whether all of the job is done. Raises TasksFailed if it never will be."""
    now = service["JobStatus"]["JobIteration"]
    tasks = [task for task in tasks if task.get("JobIteration") == now]
    wanted = [task for task in tasks if task["DesiredState"] in ("ready", "running", "complete")]
    completed = sum(task["Status"]["State"] == "complete" for task in wanted)
    mode = service["Spec"]["Mode"]
    total = mode.get("ReplicatedJob", {}).get("TotalCompletions", len({*map(_place, tasks)}))
    shown.line(completed, total, _trouble(tasks), "completed")
    if completed >= total and (tasks or "ReplicatedJob" in mode):
        shown.end(f"{completed} of {total} tasks completed: job done")
        return True
    if tasks and completed == len(wanted):
        shown.end()
        _check(given_up(service, tasks))
    return False


def _place(task: dict[str, Any]) -> tuple[int, str]:
    """The slot of a task, or in a global service its node."""
    number = slot(task)
    return (number, "") if number else (0, task.get("NodeID", ""))


def given_up(service: dict[str, Any], tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last tasks of the slots that stay empty because of the restart policy."""
    policy = service["Spec"]["TaskTemplate"].get("RestartPolicy") or {}
    if policy.get("Condition", "") in ("", "any") and not policy.get("MaxAttempts"):
        return []
    latest: dict[tuple[int, str], dict[str, Any]] = {}
    for task in sorted(tasks, key=lambda task: str(task["CreatedAt"])):
        latest[_place(task)] = task
    return [
        task
        for task in latest.values()
        if task["DesiredState"] == "shutdown"
        and task["Status"]["State"] in ("complete", "failed", "rejected")
    ]


def _check(over: list[dict[str, Any]]) -> None:
    failed = [task for task in over if task["Status"]["State"] != "complete"]
    if failed:
        raise TasksFailed(f"{len(failed)} tasks failed for good: {_trouble(failed)}".rstrip(": "))


def count(
    service: dict[str, Any], tasks: list[dict[str, Any]], nodes: list[dict[str, Any]]
) -> tuple[int, int, str]:
    """How many tasks run, how many should, and the newest reason why one does not."""
    up = {node["ID"] for node in nodes if node["Status"]["State"] == "ready"}
    running = sum(
        task["Status"]["State"] == "running"
        and task["DesiredState"] == "running"
        and task.get("NodeID") in up
        for task in tasks
    )
    mode = service["Spec"]["Mode"]
    if "Replicated" in mode:
        wanted = mode["Replicated"].get("Replicas", 1)
    else:
        wanted = sum(
            task["DesiredState"] in ("ready", "running") and task["Status"]["State"] not in _DEAD
            for task in tasks
        )
    return running, wanted, _trouble(tasks)


def _trouble(tasks: list[dict[str, Any]]) -> str:
    troubled = [
        task for task in tasks if task["Status"].get("Err") and task["Status"]["State"] != "running"
    ]
    if not troubled:
        return ""
    latest = max(troubled, key=lambda task: task["Status"]["Timestamp"])
    return str(latest["Status"]["Err"])


class _Display:
    """One line that is rewritten on a terminal; a line for each change in a pipe."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stdout.isatty()
        self._last = ""

    def line(self, count: int, wanted: int, trouble: str, what: str = "running") -> None:
        text = f"{count} of {wanted} tasks {what}" + (f": {trouble}" if trouble else "")
        if self._quiet or text == self._last:
            return
        self._last = text
        if self._live:
            click.echo(f"\r\033[K{text[:200]}", nl=False)
        else:
            click.echo(text)

    def end(self, text: str = "") -> None:
        if self._quiet:
            return
        if self._live:
            click.echo("\r\033[K" + (text or self._last))
        elif text:
            click.echo(text)
