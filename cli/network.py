"""shoal network: what connects containers."""

from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client
from cli.context import filter_option, for_each, output_option, pass_client, quiet_option
from cli.prune import networks as prune


@click.group()
def network() -> None:
    """Create and look at networks."""


@network.command()
@click.option(
    "-d",
    "--driver",
    default="overlay",
    show_default=True,
    help="overlay: of the cluster; bridge, macvlan, ipvlan: of this node.",
)
@click.option("--subnet", multiple=True, metavar="CIDR")
@click.option("--gateway", multiple=True, metavar="ADDR")
@click.option("--ip-range", multiple=True, metavar="CIDR")
@click.option("--aux-address", multiple=True, metavar="NAME=ADDR", help="Not to be given out.")
@click.option("--internal", is_flag=True, help="No way out of it.")
@click.option("--attachable", is_flag=True, help="Also for containers that are no tasks.")
@click.option("-o", "--opt", multiple=True, metavar="NAME=VALUE")
@click.option("--label", multiple=True, metavar="NAME=VALUE")
@click.argument("name")
@pass_client
def create(
    client: Client,
    driver: str,
    subnet: tuple[str, ...],
    gateway: tuple[str, ...],
    ip_range: tuple[str, ...],
    aux_address: tuple[str, ...],
    internal: bool,
    attachable: bool,
    opt: tuple[str, ...],
    label: tuple[str, ...],
    name: str,
) -> None:
    """Make the network NAME."""
    if len(gateway) > len(subnet) or len(ip_range) > len(subnet):
        raise click.UsageError("each --gateway and --ip-range goes with a --subnet")
    ranges: list[dict[str, Any]] = [{"Subnet": text} for text in subnet]
    for field, values in (("Gateway", gateway), ("IPRange", ip_range)):
        for entry, text in zip(ranges, values, strict=False):
            entry[field] = text
    if aux_address:
        if len(subnet) != 1:
            raise click.UsageError("--aux-address goes with one --subnet")
        ranges[0]["AuxiliaryAddresses"] = options.pairs(aux_address, "--aux-address")
    answer = client.post(
        "/networks/create",
        {
            "Name": name,
            "Driver": driver,
            "CheckDuplicate": True,
            "Internal": internal,
            "Attachable": attachable,
            "IPAM": {"Driver": "default", "Config": ranges},
            "Options": options.pairs(opt, "--opt"),
            "Labels": options.pairs(label, "--label"),
        },
    )
    click.echo(answer["Id"])


@network.command("ls")
@filter_option
@quiet_option
@output_option
@pass_client
def list_networks(client: Client, wanted: tuple[str, ...], quiet: bool, output: str) -> None:
    """List the networks."""
    networks: list[dict[str, Any]] = client.get("/networks", filters=options.filters(wanted))
    networks.sort(key=lambda item: item["Name"])
    rows = [
        (fmt.short(item["Id"]), item["Name"], item["Driver"], item["Scope"]) for item in networks
    ]
    fmt.show(("NETWORK ID", "NAME", "DRIVER", "SCOPE"), rows, networks, quiet=quiet, output=output)


@network.command()
@click.argument("networks", nargs=-1, required=True)
@pass_client
def inspect(client: Client, networks: tuple[str, ...]) -> None:
    """Show all that is known of NETWORKS."""
    fmt.show_json([client.get(f"/networks/{ref}") for ref in networks])


@network.command("rm")
@click.argument("networks", nargs=-1, required=True)
@pass_client
def remove(client: Client, networks: tuple[str, ...]) -> None:
    """Remove NETWORKS that nothing uses."""
    for_each(networks, lambda ref: client.delete(f"/networks/{ref}"))


@network.command()
@click.option("--ip", "address", metavar="ADDR", help="In place of a free one.")
@click.option("--alias", multiple=True, metavar="NAME", help="What others may call it.")
@click.option("--link", multiple=True, metavar="CONTAINER[:NAME]", help="What it calls another.")
@click.option("--driver-opt", multiple=True, metavar="NAME=VALUE")
@click.option("--gw-priority", type=int, default=0, help="The highest gives the default route.")
@click.argument("ref", metavar="NETWORK")
@click.argument("container")
@pass_client
def connect(
    client: Client,
    address: str | None,
    alias: tuple[str, ...],
    link: tuple[str, ...],
    driver_opt: tuple[str, ...],
    gw_priority: int,
    ref: str,
    container: str,
) -> None:
    """Put CONTAINER on NETWORK, also while it runs."""
    point = endpoint(address, alias, link, gw_priority)
    point["DriverOpts"] = options.pairs(driver_opt, "--driver-opt")
    client.post(f"/networks/{ref}/connect", {"Container": container, "EndpointConfig": point})


def endpoint(
    address: str | None, aliases: tuple[str, ...], links: tuple[str, ...], priority: int = 0
) -> dict[str, Any]:
    """An EndpointConfig."""
    found: dict[str, Any] = {"Aliases": list(aliases), "Links": list(links), "GwPriority": priority}
    if address:
        found["IPAMConfig"] = {"IPv4Address": address}
    return found


@network.command()
@click.argument("ref", metavar="NETWORK")
@click.argument("container")
@pass_client
def disconnect(client: Client, ref: str, container: str) -> None:
    """Take CONTAINER off NETWORK, also while it runs."""
    client.post(f"/networks/{ref}/disconnect", {"Container": container})


network.add_command(prune)
