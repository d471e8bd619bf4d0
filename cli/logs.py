"""Logs of containers, services and tasks."""

import datetime as dt
import http.client
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from cli.client import ApiError, Client
from cli.options import DURATION

F = TypeVar("F", bound=Callable[..., Any])

_ORIGIN = re.compile(
    r"com\.docker\.swarm\.node\.id=(\w*),com\.docker\.swarm\.service\.id=(\w*),"
    r"com\.docker\.swarm\.task\.id=(\w*) "
)


def log_options(command: F) -> F:
    """The flags of every logs command."""
    for choice in (
        click.option("-f", "--follow", is_flag=True, help="Go on as more is printed."),
        click.option("-n", "--tail", default="all", help="Only the last lines of each."),
        click.option("-t", "--timestamps", is_flag=True),
        click.option("--since", default="", metavar="TIME|DURATION"),
        click.option("--until", default="", metavar="TIME|DURATION"),
    ):
        command = choice(command)
    return command


def frames(response: http.client.HTTPResponse) -> Iterator[tuple[int, bytes]]:
    """Docker's framing: stream (1 or 2) and bytes."""
    while len(head := response.read(8)) == 8:
        yield head[0], response.read(int.from_bytes(head[4:], "big"))


def show_logs(
    client: Client,
    ref: str,
    *,
    follow: bool,
    tail: str,
    timestamps: bool,
    since: str,
    until: str,
) -> None:
    """Print what a service's tasks, or one task, have printed; each line with its task."""
    query: dict[str, object] = {
        "stdout": True,
        "stderr": True,
        "follow": follow,
        "tail": tail,
        "timestamps": timestamps,
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
        "details": True,
    }
    try:
        path, tty = f"/services/{client.get(f'/services/{ref}')['ID']}/logs", False
    except ApiError as error:
        if error.status != 404:
            raise
        try:
            task = client.get(f"/tasks/{ref}")
        except ApiError:
            raise ApiError(404, f"no such service or task: {ref}") from error
        path = f"/tasks/{task['ID']}/logs"
        tty = bool(task["Spec"].get("ContainerSpec", {}).get("TTY"))
    response = client.open("GET", path, query=query)
    _endless(response)
    if tty:
        _copy(response)
        return
    names = _Names(client)
    for stream, data in frames(response):
        text = _ORIGIN.sub(lambda found: names.of(found[3]), data.decode(errors="replace"), count=1)
        click.echo(text, nl=not text.endswith("\n"), err=stream == 2)


def show_container_logs(client: Client, ref: str, *, tty: bool, query: dict[str, object]) -> None:
    """Print a container's log, stderr to stderr."""
    response = client.open("GET", f"/containers/{ref}/logs", query=query)
    _endless(response)
    if tty:
        _copy(response)
        return
    for stream, data in frames(response):
        out = sys.stderr.buffer if stream == 2 else sys.stdout.buffer
        out.write(data)
        out.flush()


def moment(text: str, flag: str) -> str | None:
    """A time, or how long ago, as seconds since 1970."""
    if not text:
        return None
    try:
        return str(dt.datetime.fromisoformat(text).astimezone(dt.UTC).timestamp())
    except ValueError:
        pass
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        return text
    try:
        before = DURATION.convert(text, None, None) / 1_000_000_000
    except click.BadParameter as error:
        raise click.BadParameter(
            f"{text!r} is neither a time (2024-05-01T10:00:00) nor a duration (10m)",
            param_hint=flag,
        ) from error
    return f"{dt.datetime.now(dt.UTC).timestamp() - before:.6f}"


class _Names:
    """Task ids to what people call them, asked for once each."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, str] = {}

    def of(self, task_id: str) -> str:
        if task_id not in self._known:
            self._known[task_id] = self._ask(task_id)
        return self._known[task_id]

    def _ask(self, task_id: str) -> str:
        try:
            task = self._client.get(f"/tasks/{task_id}")
            node = self._client.get(f"/nodes/{task['NodeID']}")
        except ApiError:
            return f"{task_id[:12]} | "
        host = node.get("Description", {}).get("Hostname", "")
        return f"{task.get('Name', task_id).rsplit('.', 1)[0]}@{host} | "


def _copy(response: http.client.HTTPResponse) -> None:
    while data := response.read1():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _endless(response: http.client.HTTPResponse) -> None:
    raw = getattr(getattr(response.fp, "raw", None), "_sock", None)
    if raw is not None:
        raw.settimeout(None)
