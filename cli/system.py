"""shoal info, version, events, system."""

import json
from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client, CliError
from cli.context import filter_option, pass_client
from cli.logs import moment
from cli.prune import system as prune
from cli.usage import df


@click.command()
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text")
@pass_client
def info(client: Client, output: str) -> None:
    """Show this node and its place in the cluster."""
    found: dict[str, Any] = client.get("/info")
    if output == "json":
        click.echo(json.dumps(found))
        return
    swarm = found["Swarm"]
    lines = [
        ("Name", found["Name"]),
        ("Version", found["ServerVersion"]),
        ("Containers", f"{found['Containers']} ({found['ContainersRunning']} running)"),
        ("Images", found["Images"]),
        ("State folder", found["DockerRootDir"]),
        ("Kernel", found["KernelVersion"]),
        ("System", f"{found['OperatingSystem']} ({found['Architecture']})"),
        ("Cgroups", f"v{found['CgroupVersion']}"),
        ("CPUs", found["NCPU"]),
        ("Memory", fmt.binary_size(found["MemTotal"])),
        ("Swarm", swarm["LocalNodeState"]),
    ]
    if swarm["LocalNodeState"] != "inactive":
        lines += [
            (" Node id", swarm["NodeID"]),
            (" Node address", swarm["NodeAddr"]),
            (" Manager", "yes" if swarm["ControlAvailable"] else "no"),
        ]
    if swarm["ControlAvailable"]:
        lines += [(" Managers", swarm.get("Managers")), (" Nodes", swarm.get("Nodes"))]
    if swarm.get("Error"):
        lines.append((" Error", swarm["Error"]))
    for name, value in lines:
        click.echo(f"{name}: {value}")


@click.command("version")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text")
@pass_client
def show_version(client: Client, output: str) -> None:
    """Show the versions of the command and of the daemon."""
    from cli.main import release

    ours = {"Version": release()}
    try:
        server: dict[str, Any] | None = client.get("/version")
    except CliError:
        if output == "json":
            click.echo(json.dumps({"Client": ours, "Server": None}))
        else:
            click.echo(f"Client: {ours['Version']}")
        raise
    if output == "json":
        click.echo(json.dumps({"Client": ours, "Server": server}))
        return
    assert server is not None
    click.echo(f"Client: {ours['Version']}")
    click.echo(f"Server: {server['Version']} (API {server['ApiVersion']}, {server['GoVersion']})")


@click.command()
@click.option("--since", default="", metavar="TIME|DURATION")
@click.option("--until", default="", metavar="TIME|DURATION")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text")
@filter_option
@pass_client
def events(client: Client, since: str, until: str, output: str, wanted: tuple[str, ...]) -> None:
    """Show what happens, as it happens."""
    query: dict[str, object] = {
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
        "filters": options.filters(wanted),
    }
    for event in client.objects("GET", "/events", query=query):
        if output == "json":
            click.echo(json.dumps(event))
            continue
        actor = event["Actor"]
        attributes = fmt.label_text(actor["Attributes"]).replace(",", ", ")
        moment_text = fmt.moment_of(event["timeNano"] / 1_000_000_000)
        assert moment_text is not None
        click.echo(
            f"{moment_text.isoformat()} {event['Type']} {event['Action']} {actor['ID']} "
            f"({attributes})"
        )


@click.group()
def system() -> None:
    """Show and free what takes up this node's disk."""


system.add_command(df)
system.add_command(prune)
