"""shoal container|image|network|volume|system prune: remove what nobody uses."""

import sys
from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client, CliError
from cli.context import pass_client

_Gone = tuple[list[str], int]  # what was removed, and bytes freed; -1: not told
_filter = click.option("--filter", "wanted", multiple=True, metavar="NAME=VALUE", help="Only some.")
_force = click.option("-f", "--force", is_flag=True, help="Don't ask.")


def _confirm(force: bool, what: str) -> None:
    if not force and not sys.stdin.isatty():
        raise CliError(f"this removes {what}: add --force")
    if not force:
        click.confirm(f"Remove {what}?", abort=True)


def _prune(client: Client, kind: str, filters: dict[str, list[str]] | None) -> _Gone:
    answer = client.call("POST", f"/{kind}/prune", query={"filters": filters}, patient=True)
    gone = answer.get(f"{kind.capitalize()}Deleted") or []
    names = [item if isinstance(item, str) else _image(item) for item in gone]
    return names, answer.get("SpaceReclaimed", -1)


def _image(item: dict[str, Any]) -> str:
    return ", ".join(f"{what}: {name}" for what, name in item.items())


def _tell(found: list[_Gone]) -> None:
    for names, _ in found:
        for name in names:
            click.echo(name)
    if any(freed >= 0 for _, freed in found):
        click.echo(f"Space made: {fmt.size(sum(max(freed, 0) for _, freed in found))}")


def _command(kind: str, what: str) -> click.Command:
    @click.command("prune", help=f"Remove {what}.")
    @_force
    @_filter
    @pass_client
    def command(client: Client, force: bool, wanted: tuple[str, ...]) -> None:
        _confirm(force, what)
        _tell([_prune(client, kind, options.filters(wanted))])

    return command


def _with_all(kind: str, what: str, every: str, name: str, value: str) -> click.Command:
    """A prune whose `--all` is a filter, `name` with `value`."""

    @click.command("prune", help=f"Remove {what}.")
    @click.option("-a", "--all", "everything", is_flag=True, help=f"Remove {every}.")
    @_force
    @_filter
    @pass_client
    def command(client: Client, everything: bool, force: bool, wanted: tuple[str, ...]) -> None:
        _confirm(force, every if everything else what)
        filters = options.filters(wanted) or {}
        if everything:
            filters[name] = [value]
        _tell([_prune(client, kind, filters or None)])

    return command


containers = _command("containers", "all containers that don't run")
networks = _command("networks", "all networks of the cluster that nothing uses")
volumes = _with_all(
    "volumes", "all volumes without a name that nobody uses", "all that nobody uses", "all", "true"
)
images = _with_all(
    "images", "all images without a name that nobody uses", "all that nobody uses",
    "dangling", "false",
)  # fmt: skip


@click.command("prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Also images that have a name.")
@click.option("--volumes", "with_volumes", is_flag=True, help="Also volumes without a name.")
@_force
@_filter
@pass_client
def system(
    client: Client, everything: bool, with_volumes: bool, force: bool, wanted: tuple[str, ...]
) -> None:
    """Remove containers that don't run, and networks and images that nobody uses."""
    kinds = ["containers", "networks", "images"] + (["volumes"] if with_volumes else [])
    _confirm(force, f"all {', '.join(kinds)} that nobody uses")
    chosen = options.filters(wanted) or {}
    found = []
    for kind in kinds:
        own = {"dangling": ["false"]} if kind == "images" and everything else {}
        found.append(_prune(client, kind, {**chosen, **own} or None))
    _tell(found)
