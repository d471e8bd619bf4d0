"""shoal container: what runs on this node."""

import contextlib
import os
import sys
from typing import Any

import click

from cli import files, lifecycle, options, prune, run, usage
from cli import format as fmt
from cli.client import ApiError, Client
from cli.context import filter_option, for_each, output_option, pass_client, quiet_option
from cli.logs import log_options, moment, show_container_logs
from cli.terminal import follow_size, join, raw_terminal


@click.group()
def container() -> None:
    """Look into, change and stop the containers of this node."""


for _command in (
    *run.COMMANDS,
    *lifecycle.COMMANDS,
    *usage.COMMANDS,
    *files.COMMANDS,
    prune.containers,
):
    container.add_command(_command)


@container.command("ls")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@filter_option
@quiet_option
@output_option
@pass_client
def list_containers(
    client: Client, everything: bool, wanted: tuple[str, ...], quiet: bool, output: str
) -> None:
    """List the containers of this node."""
    containers: list[dict[str, Any]] = client.get(
        "/containers/json", all=everything, filters=options.filters(wanted)
    )
    headings = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")
    rows = [_row(item) for item in containers]
    fmt.show(headings, rows, containers, quiet=quiet, output=output)


@container.command()
@click.argument("containers", nargs=-1, required=True)
@pass_client
def inspect(client: Client, containers: tuple[str, ...]) -> None:
    """Show all that is known of CONTAINERS."""
    fmt.show_json([client.get(f"/containers/{ref}/json") for ref in containers])


@container.command()
@log_options
@click.option("--details", is_flag=True, help="With what --log-opt named: labels, env, tag.")
@click.argument("ref", metavar="CONTAINER")
@pass_client
def logs(
    client: Client,
    follow: bool,
    tail: str,
    timestamps: bool,
    since: str,
    until: str,
    details: bool,
    ref: str,
) -> None:
    """Show what CONTAINER has printed."""
    found = client.get(f"/containers/{ref}/json")
    query: dict[str, object] = {
        "stdout": True,
        "stderr": True,
        "follow": follow,
        "tail": tail,
        "timestamps": timestamps,
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
        "details": details,
    }
    show_container_logs(client, found["Id"], tty=found["Config"]["Tty"], query=query)


@container.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Give the process our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Don't wait for it.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE")
@click.option("-u", "--user", default="", metavar="NAME|UID[:GROUP|GID]")
@click.option("-w", "--workdir", default="", metavar="DIR")
@click.argument("ref", metavar="CONTAINER")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_client
def run_in(
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
    """Run COMMAND in the running CONTAINER; its exit code is ours."""
    if tty and interactive and not sys.stdin.isatty():
        raise click.UsageError("standard input is not a terminal: leave out --tty")
    created = client.post(
        f"/containers/{ref}/exec",
        {
            "AttachStdin": interactive,
            "AttachStdout": not detach,
            "AttachStderr": not detach,
            "Tty": tty,
            "Env": options.environment(env, (), dict(os.environ)),
            "User": user,
            "WorkingDir": workdir,
            "Cmd": list(command),
        },
    )
    exec_id = created["Id"]
    if detach:
        client.post(f"/exec/{exec_id}/start", {"Detach": True, "Tty": tty})
        return 0
    raw, started = client.hijack(f"/exec/{exec_id}/start", {"Detach": False, "Tty": tty})
    if tty and sys.stdout.isatty():
        follow_size(lambda height, width: _resize(client, exec_id, height, width))
    with contextlib.closing(raw), raw_terminal(tty and interactive):
        join(raw, started, stdin=interactive, is_tty=tty)
    code: int = client.get(f"/exec/{exec_id}/json")["ExitCode"]
    return code


@container.command("rm")
@click.option("-f", "--force", is_flag=True, help="Also a running one.")
@click.option("-v", "--volumes", is_flag=True, help="Also its anonymous volumes.")
@click.argument("containers", nargs=-1, required=True)
@pass_client
def remove(client: Client, force: bool, volumes: bool, containers: tuple[str, ...]) -> None:
    """Remove CONTAINERS."""
    for_each(containers, lambda ref: client.delete(f"/containers/{ref}", force=force, v=volumes))


def _resize(client: Client, exec_id: str, height: int, width: int) -> None:
    with contextlib.suppress(ApiError):  # it may have ended
        client.post(f"/exec/{exec_id}/resize", h=height, w=width)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    command = item["Command"]
    return (
        fmt.short(item["Id"]),
        item["Image"],
        f'"{command[:19]}…"' if len(command) > 20 else f'"{command}"',
        f"{fmt.ago(item['Created'])} ago",
        item["Status"],
        ", ".join(_port(port) for port in item.get("Ports") or []),
        ",".join(name.lstrip("/") for name in item["Names"]),
    )


def _port(port: dict[str, Any]) -> str:
    inner = f"{port['PrivatePort']}/{port['Type']}"
    if "PublicPort" not in port:
        return inner
    return f"{port.get('IP') or '0.0.0.0'}:{port['PublicPort']}->{inner}"
