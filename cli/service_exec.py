"""shoal service exec: a command in the container of one of a service's tasks, on any node."""

import contextlib
import os
import shutil
import sys
from typing import Any

import click

from cli import options
from cli.client import ApiError, Client, CliError
from cli.context import pass_client
from cli.terminal import follow_size, join, raw_terminal


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Give the process our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Don't wait for it.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE")
@click.option("-u", "--user", default="", metavar="NAME|UID[:GROUP|GID]")
@click.option("-w", "--workdir", default="", metavar="DIR")
@click.argument("ref", metavar="SERVICE[.SLOT|.NODE]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_client
def exec_in_service(
    client: Client,
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    user: str,
    workdir: str,
    ref: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in the container of a task of SERVICE; its exit code is ours.

    The first task that runs is taken, or that of SLOT, or for a global service that on NODE.
    """
    if tty and interactive and not sys.stdin.isatty():
        raise click.UsageError("standard input is not a terminal: leave out --tty")
    service, place = target(ref)
    size = shutil.get_terminal_size()
    config: dict[str, Any] = {
        "AttachStdin": interactive,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Detach": detach,
        "Tty": tty,
        "Env": options.environment(env, (), dict(os.environ)),
        "User": user,
        "WorkingDir": workdir,
        "Cmd": list(command),
    }
    if tty and sys.stdout.isatty():
        config["ConsoleSize"] = [size.lines, size.columns]
    id = client.post(f"/services/{service}/exec", config, **place)["Id"]
    if detach:
        client.post(f"/shoal/exec/{id}/start", {"Detach": True, "Tty": tty})
    else:
        _attach(client, id, interactive=interactive, tty=tty)
    return _exit_code(client, id)


def target(ref: str) -> tuple[str, dict[str, object]]:
    """web.3 is slot 3 of web, agent.m1 the task of agent on node m1. Names have no dots."""
    service, _, place = ref.partition(".")
    if not place:
        return service, {}
    return service, {"slot": int(place)} if place.isdecimal() else {"node": place}


def _attach(client: Client, id: str, *, interactive: bool, tty: bool) -> None:
    raw, started = client.hijack(f"/shoal/exec/{id}/start", {"Detach": False, "Tty": tty})
    if tty and sys.stdout.isatty():
        follow_size(lambda height, width: _resize(client, id, height, width))
    with contextlib.closing(raw), raw_terminal(tty and interactive):
        join(raw, started, stdin=interactive, is_tty=tty)


def _exit_code(client: Client, id: str) -> int:
    found = client.get(f"/shoal/exec/{id}/json")
    if found["Error"]:
        raise CliError(found["Error"])
    return found["ExitCode"] or 0


def _resize(client: Client, id: str, height: int, width: int) -> None:
    with contextlib.suppress(ApiError):  # it may have ended
        client.post(f"/shoal/exec/{id}/resize", h=height, w=width)
