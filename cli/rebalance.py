"""shoal service rebalance, shoal node rebalance: tasks spread over the nodes again."""

from typing import Any

import click

from cli import format as fmt
from cli.client import Client
from cli.context import output_option, pass_client
from cli.progress import wait_converged

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only show which tasks would be moved.")
_DETACH = click.option("-d", "--detach", is_flag=True, help="Don't wait until they are moved.")


@click.command("rebalance")
@click.option("-f", "--force", is_flag=True, help="Also with volumes, whose data stays behind.")
@_DRY_RUN
@_DETACH
@output_option
@click.argument("services", nargs=-1, required=True)
@pass_client
def rebalance_services(
    client: Client, force: bool, dry_run: bool, detach: bool, output: str, services: tuple[str, ...]
) -> None:
    """Move tasks of SERVICES to nodes that have fewer of them, as their update config says."""
    moved = []
    for ref in services:
        moved += client.post(f"/services/{ref}/rebalance", force=force, dryRun=dry_run)
    _finish(client, moved, output, wait=not (dry_run or detach))


@click.command("rebalance")
@_DRY_RUN
@_DETACH
@output_option
@click.argument("nodes", nargs=-1, required=True)
@pass_client
def rebalance_nodes(
    client: Client, dry_run: bool, detach: bool, output: str, nodes: tuple[str, ...]
) -> None:
    """Move tasks to NODES, which have fewer than others; not those of services with volumes."""
    moved = []
    for ref in nodes:
        moved += client.post(f"/nodes/{ref}/rebalance", dryRun=dry_run)
        if not (dry_run or detach):
            _wait(client, moved, quiet=output == "json")
    _finish(client, moved, output, wait=False)


def _finish(client: Client, moved: list[dict[str, Any]], output: str, *, wait: bool) -> None:
    headings = ("TASK", "FROM", "TO")
    rows = [(f"{m['Service']}.{m['Slot']}", m["FromNode"], m["ToNode"]) for m in moved]
    if moved or output == "json":
        fmt.show(headings, rows, moved, quiet=False, output=output)
    else:
        click.echo("nothing to move: no node would be better")
    if wait:
        _wait(client, moved, quiet=output == "json")


def _wait(client: Client, moved: list[dict[str, Any]], *, quiet: bool) -> None:
    for id in dict.fromkeys(move["ServiceID"] for move in moved):
        wait_converged(client, id, quiet=quiet)
