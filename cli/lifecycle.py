"""shoal container start, stop, kill, pause, wait and the like: what changes how containers run."""

from typing import Any

import click

from cli.client import Client
from cli.context import for_each, given, pass_client
from cli.options import CPUS, SIZE

_TIME = click.option("-t", "--time", "seconds", type=int, help="Seconds from stop signal to kill.")
_SIGNAL = click.option("-s", "--signal", metavar="NAME|NUMBER", help="In place of its stop signal.")
_CONTAINERS = click.argument("containers", nargs=-1, required=True)


@click.command()
@_CONTAINERS
@pass_client
def start(client: Client, containers: tuple[str, ...]) -> None:
    """Start CONTAINERS that have ended, or never ran."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/start"))


@click.command()
@_TIME
@_SIGNAL
@_CONTAINERS
@pass_client
def stop(
    client: Client, seconds: int | None, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Stop CONTAINERS: their stop signal, and after a while SIGKILL."""
    for_each(containers, lambda ref: _end(client, ref, "stop", seconds, signal))


@click.command()
@_TIME
@_SIGNAL
@_CONTAINERS
@pass_client
def restart(
    client: Client, seconds: int | None, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Stop CONTAINERS and start them again."""
    for_each(containers, lambda ref: _end(client, ref, "restart", seconds, signal))


@click.command()
@click.option("-s", "--signal", default="KILL", show_default=True, metavar="NAME|NUMBER")
@_CONTAINERS
@pass_client
def kill(client: Client, signal: str, containers: tuple[str, ...]) -> None:
    """Send CONTAINERS a signal."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/kill", signal=signal))


@click.command()
@_CONTAINERS
@pass_client
def pause(client: Client, containers: tuple[str, ...]) -> None:
    """Freeze all processes of CONTAINERS."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/pause"))


@click.command()
@_CONTAINERS
@pass_client
def unpause(client: Client, containers: tuple[str, ...]) -> None:
    """Let the processes of CONTAINERS go on."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/unpause"))


@click.command()
@_CONTAINERS
@pass_client
def wait(client: Client, containers: tuple[str, ...]) -> None:
    """Wait until CONTAINERS have ended; print their exit codes."""

    def ended(ref: str) -> None:
        answer = client.result(client.open("POST", f"/containers/{ref}/wait"))
        click.echo(answer["StatusCode"])

    for_each(containers, ended, say=None)


@click.command()
@click.argument("ref", metavar="CONTAINER")
@click.argument("name")
@pass_client
def rename(client: Client, ref: str, name: str) -> None:
    """Give CONTAINER another NAME."""
    client.post(f"/containers/{ref}/rename", name=name)


@click.command()
@click.argument("ref", metavar="CONTAINER")
@click.argument("wanted", metavar="[PORT[/PROTOCOL]]", required=False)
@pass_client
def port(client: Client, ref: str, wanted: str | None) -> None:
    """Show where CONTAINER's ports are published, or one of them."""
    bound = client.get(f"/containers/{ref}/json")["NetworkSettings"].get("Ports") or {}
    if wanted is None:
        for inner, places in bound.items():
            for place in places or ():
                click.echo(f"{inner} -> {_address(place)}")
        return
    key = wanted if "/" in wanted else f"{wanted}/tcp"
    if not bound.get(key):
        raise click.ClickException(f"container {ref}: port {key} is not published")
    for place in bound[key]:
        click.echo(_address(place))


@click.command()
@click.option("-m", "--memory", type=SIZE, help="Memory at the most.")
@click.option("--memory-reservation", type=SIZE, help="Memory that is left to it when it is short.")
@click.option("--memory-swap", type=SIZE, help="Memory and swap at the most.")
@click.option("--cpus", type=CPUS, help="CPUs at the most.")
@click.option("-c", "--cpu-shares", type=int, help="Weight among others; usual: 1024.")
@click.option("--cpuset-cpus", metavar="LIST", help="CPUs to run on: 0-3, 0,1.")
@click.option("--pids-limit", type=int, help="Processes at the most; -1: no limit.")
@click.option("--blkio-weight", type=int, help="Weight among others on disks with BFQ: 10-1000.")
@click.option("--restart", metavar="POLICY", help="no, always, unless-stopped, on-failure[:MAX].")
@_CONTAINERS
@click.pass_context
def update(ctx: click.Context, /, containers: tuple[str, ...], **_: Any) -> None:
    """Change what CONTAINERS may use, while they run."""
    client: Client = ctx.obj
    flags = given(ctx)
    flags.pop("containers")
    if not flags:
        raise click.UsageError("nothing to change: give at least one option")
    request = limits(flags)

    def change(ref: str) -> None:
        answer = client.post(f"/containers/{ref}/update", request)
        for warning in answer.get("Warnings") or ():
            click.echo(f"Warning: {warning}", err=True)

    for_each(containers, change)


def limits(flags: dict[str, Any]) -> dict[str, Any]:
    """The request of an update, of the options that were given. Raises click.BadParameter."""
    names = {
        "memory": "Memory",
        "memory_reservation": "MemoryReservation",
        "memory_swap": "MemorySwap",
        "cpus": "NanoCpus",
        "cpu_shares": "CpuShares",
        "cpuset_cpus": "CpusetCpus",
        "pids_limit": "PidsLimit",
        "blkio_weight": "BlkioWeight",
    }
    request = {names[flag]: value for flag, value in flags.items() if flag in names}
    if "restart" in flags:
        request["RestartPolicy"] = restart_policy(flags["restart"])
    return request


def restart_policy(text: str) -> dict[str, Any]:
    """no, always, unless-stopped, on-failure or on-failure:MAX. Raises click.BadParameter."""
    name, colon, most = text.partition(":")
    if name not in ("no", "always", "unless-stopped", "on-failure") or (
        colon and not (name == "on-failure" and most.isdecimal())
    ):
        raise click.BadParameter(
            f"{text!r}: write no, always, unless-stopped or on-failure[:MAX]",
            param_hint="--restart",
        )
    return {"Name": name, "MaximumRetryCount": int(most or 0)}


def _end(client: Client, ref: str, how: str, seconds: int | None, signal: str | None) -> None:
    """A stop may take as long as the container's grace period."""
    query: dict[str, object] = {"t": seconds, "signal": signal}
    client.call("POST", f"/containers/{ref}/{how}", query=query, patient=True)


def _address(place: dict[str, Any]) -> str:
    host = place.get("HostIp") or "0.0.0.0"
    return f"[{host}]:{place['HostPort']}" if ":" in host else f"{host}:{place['HostPort']}"


COMMANDS = (start, stop, restart, kill, pause, unpause, wait, rename, port, update)
