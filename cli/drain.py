"""What `node drain` shows: which tasks still have to leave a node."""

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from cli.client import ApiError, Client, CliError

POLL_S = 0.2
_GONE = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")


class DrainTimeout(CliError):
    """Tasks are still there."""


def wait_drained(
    client: Client,
    node_id: str,
    timeout_s: float | None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Return when no task is left on the node, and show how far that is. Raises DrainTimeout."""
    show = _Display()
    deadline = None if timeout_s is None else clock() + timeout_s
    most = 0
    while True:
        left = _left(client, node_id)
        if left is not None:
            most = max(most, len(left))
            if not left:
                show.end(f"{most} of {most} tasks have left: drained")
                return
            show.line(f"{most - len(left)} of {most} tasks have left: {_what(left)}")
        if deadline is not None and clock() >= deadline:
            show.end()
            raise DrainTimeout(
                f"{len(left or ())} tasks are still on the node after {timeout_s:g} s; "
                "it goes on draining"
            )
        pause(POLL_S)


def _left(client: Client, node_id: str) -> list[dict[str, Any]] | None:
    """The tasks that are still there; None if nobody can say just now."""
    try:
        tasks: list[dict[str, Any]] = client.get("/tasks", filters={"node": [node_id]})
    except ApiError as error:
        if error.status != 503:  # an election passes
            raise
        return None
    return [task for task in tasks if task["Status"]["State"] not in _GONE]


def _what(left: list[dict[str, Any]]) -> str:
    names = sorted(task.get("Name", "").rpartition(".")[0] or task["ID"] for task in left)
    stopping = sum(task["DesiredState"] in ("shutdown", "remove") for task in left)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{stopping} stopping; {', '.join(names[:3])}{more}"


class _Display:
    """One line that is rewritten on a terminal; a line for each change in a pipe."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._last = ""

    def line(self, text: str) -> None:
        if text != self._last:
            self._last = text
            click.echo(f"\r\033[K{text[:200]}" if self._live else text, nl=not self._live)

    def end(self, text: str = "") -> None:
        if self._live:
            click.echo("\r\033[K" + (text or self._last))
        elif text:
            click.echo(text)
