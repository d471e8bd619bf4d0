"""shoal container: what changes containers, and what copies their files. `cli.container` has what
looks into them."""

import sys
from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client, CliError
from cli.container import container
from cli.context import filter_option, for_each, pass_client

__all__ = ["container"]

_KINDS = {0: "C", 1: "A", 2: "D"}
_CHUNK = 1 << 20
_refs = click.argument("containers", nargs=-1, required=True)
_ref = click.argument("ref", metavar="CONTAINER")


@container.command()
@_refs
@pass_client
def start(client: Client, containers: tuple[str, ...]) -> None:
    """Start CONTAINERS."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/start"))


@container.command()
@click.option("-t", "--time", "seconds", type=int, help="Seconds from stop signal to kill.")
@click.option("-s", "--signal", help="Instead of its stop signal.")
@_refs
@pass_client
def restart(
    client: Client, seconds: int | None, signal: str | None, containers: tuple[str, ...]
) -> None:
    """Stop CONTAINERS and start them again."""
    for_each(
        containers, lambda ref: client.post(f"/containers/{ref}/restart", t=seconds, signal=signal)
    )


@container.command()
@click.option("-s", "--signal", default="KILL", show_default=True)
@_refs
@pass_client
def kill(client: Client, signal: str, containers: tuple[str, ...]) -> None:
    """Send CONTAINERS a signal."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/kill", signal=signal))


@container.command()
@_refs
@pass_client
def pause(client: Client, containers: tuple[str, ...]) -> None:
    """Freeze all processes of CONTAINERS."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/pause"))


@container.command()
@_refs
@pass_client
def unpause(client: Client, containers: tuple[str, ...]) -> None:
    """Let CONTAINERS go on."""
    for_each(containers, lambda ref: client.post(f"/containers/{ref}/unpause"))


@container.command()
@_ref
@click.argument("name")
@pass_client
def rename(client: Client, ref: str, name: str) -> None:
    """Call CONTAINER by another NAME."""
    client.post(f"/containers/{ref}/rename", name=name)


@container.command()
@_refs
@pass_client
def wait(client: Client, containers: tuple[str, ...]) -> None:
    """Print the exit code of each of CONTAINERS once it has ended."""

    def one(ref: str) -> None:
        answer = client.result(client.open("POST", f"/containers/{ref}/wait"))
        click.echo(answer["StatusCode"])

    for_each(containers, one, say=None)


@container.command()
@_ref
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@pass_client
def top(client: Client, ref: str, ps_options: tuple[str, ...]) -> None:
    """Show the processes of CONTAINER, as ps with PS_OPTIONS does."""
    found = client.get(f"/containers/{ref}/top", ps_args=" ".join(ps_options) or None)
    rows = [tuple(row) for row in found["Processes"]]
    fmt.show(tuple(found["Titles"]), rows, [], quiet=False, output="table")


@container.command()
@_ref
@pass_client
def diff(client: Client, ref: str) -> None:
    """Show what CONTAINER added (A), changed (C) and deleted (D) of its image's files."""
    for change in client.get(f"/containers/{ref}/changes") or []:
        click.echo(f"{_KINDS[change['Kind']]} {change['Path']}")


@container.command()
@click.option("-o", "--output", type=click.File("wb"), default="-", help="A file, not stdout.")
@_ref
@pass_client
def export(client: Client, output: Any, ref: str) -> None:
    """Write the files of CONTAINER, without those of volumes, as a tar."""
    if output.isatty():
        raise CliError("a tar is not for a terminal: name a file with --output, or redirect")
    response = client.open("GET", f"/containers/{ref}/export")
    while piece := response.read(_CHUNK):
        output.write(piece)


@container.command()
@click.option("-m", "--message", default="")
@click.option("-a", "--author", default="")
@click.option("-c", "--change", "changes", multiple=True, help="An instruction of a Dockerfile.")
@click.option("--no-pause", is_flag=True, help="Let it run on meanwhile.")
@_ref
@click.argument("image", default="")
@pass_client
def commit(
    client: Client,
    message: str,
    author: str,
    changes: tuple[str, ...],
    no_pause: bool,
    ref: str,
    image: str,
) -> None:
    """Make an IMAGE of CONTAINER's files; print its id."""
    repository, _, tag = (
        image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "")
    )
    made = client.post(
        "/commit", container=ref, repo=repository or None, tag=tag or None, comment=message,
        author=author, changes=list(changes), pause=not no_pause,
    )  # fmt: skip
    click.echo(made["Id"])


@container.command()
@click.option("--force", is_flag=True, help="Don't ask.")
@filter_option
@pass_client
def prune(client: Client, force: bool, wanted: tuple[str, ...]) -> None:
    """Remove all containers of this node that do not run."""
    if not force and not sys.stdin.isatty():
        raise CliError("this removes every container that does not run: add --force")
    if not force:
        click.confirm("Remove every container that does not run?", abort=True)
    gone = client.call("POST", "/containers/prune", query={"filters": options.filters(wanted)})
    for container_id in gone["ContainersDeleted"] or []:
        click.echo(container_id)
    click.echo(f"Space made: {fmt.size(gone['SpaceReclaimed'])}")
