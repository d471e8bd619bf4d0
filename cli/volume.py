"""shoal volume: files that outlive their containers, on this node."""

from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client
from cli.context import filter_option, for_each, output_option, pass_client, quiet_option
from cli.prune import volumes as prune


@click.group()
def volume() -> None:
    """Create, look at and remove volumes of this node."""


@volume.command()
@click.option("-d", "--driver", default="local", show_default=True)
@click.option("-o", "--opt", multiple=True, metavar="NAME=VALUE")
@click.option("--label", multiple=True, metavar="NAME=VALUE")
@click.argument("name", required=False, default="")
@pass_client
def create(
    client: Client, driver: str, opt: tuple[str, ...], label: tuple[str, ...], name: str
) -> None:
    """Make the volume NAME; without one it gets a random name."""
    request = {
        "Name": name,
        "Driver": driver,
        "DriverOpts": options.pairs(opt, "--opt"),
        "Labels": options.pairs(label, "--label"),
    }
    click.echo(client.post("/volumes/create", request)["Name"])


@volume.command("ls")
@filter_option
@quiet_option
@output_option
@pass_client
def list_volumes(client: Client, wanted: tuple[str, ...], quiet: bool, output: str) -> None:
    """List the volumes of this node."""
    answer = client.get("/volumes", filters=options.filters(wanted))
    found: list[dict[str, Any]] = sorted(answer["Volumes"] or [], key=lambda item: item["Name"])
    rows = [(item["Name"], item["Driver"], item["Mountpoint"]) for item in found]
    fmt.show(("NAME", "DRIVER", "MOUNTPOINT"), rows, found, quiet=quiet, output=output)


@volume.command()
@click.argument("volumes", nargs=-1, required=True)
@pass_client
def inspect(client: Client, volumes: tuple[str, ...]) -> None:
    """Show all that is known of VOLUMES."""
    fmt.show_json([client.get(f"/volumes/{name}") for name in volumes])


@volume.command("rm")
@click.option("-f", "--force", is_flag=True, help="Say nothing of one that is not there.")
@click.argument("volumes", nargs=-1, required=True)
@pass_client
def remove(client: Client, force: bool, volumes: tuple[str, ...]) -> None:
    """Remove VOLUMES that no container uses, and what they hold."""
    for_each(volumes, lambda name: client.delete(f"/volumes/{name}", force=force))


volume.add_command(prune)
