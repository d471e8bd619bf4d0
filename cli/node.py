"""shoal node: the machines of the cluster."""

from typing import Any

import click

from cli import format as fmt
from cli import options
from cli.client import Client, CliError
from cli.context import filter_option, for_each, output_option, pass_client, quiet_option
from cli.drain import wait_drained
from cli.options import DURATION
from cli.plan import dry_run_option, show_plan
from cli.rebalance import rebalance_nodes
from cli.tasks import show_tasks


@click.group()
def node() -> None:
    """Look at and change the machines of the cluster."""


@node.command("ls")
@filter_option
@quiet_option
@output_option
@pass_client
def list_nodes(client: Client, wanted: tuple[str, ...], quiet: bool, output: str) -> None:
    """List the nodes; * is the one you talk to."""
    nodes = client.get("/nodes", filters=options.filters(wanted))
    here = client.get("/info")["Swarm"]["NodeID"]
    nodes.sort(key=lambda item: (_hostname(item), item["ID"]))
    rows = [_row(item, here, mark=not quiet) for item in nodes]
    headings = ("ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION")
    fmt.show(headings, rows, nodes, quiet=quiet, output=output)


@node.command()
@click.argument("nodes", nargs=-1, required=True)
@pass_client
def inspect(client: Client, nodes: tuple[str, ...]) -> None:
    """Show all that is known of NODES (self: this one)."""
    fmt.show_json([_find(client, ref) for ref in nodes])


@node.command()
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]))
@click.option("--role", type=click.Choice(["worker", "manager"]))
@click.option("--label-add", multiple=True, metavar="NAME=VALUE")
@click.option("--label-rm", multiple=True, metavar="NAME")
@dry_run_option
@click.argument("ref", metavar="NODE")
@pass_client
def update(
    client: Client,
    availability: str | None,
    role: str | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    dry_run: str | None,
    ref: str,
) -> None:
    """Change a node's availability, role or labels."""
    found = _find(client, ref)
    spec = found["Spec"]
    labels = spec.setdefault("Labels", {})
    for name in label_rm:
        if labels.pop(name, None) is None:
            raise CliError(f"node {ref} has no label {name}")
    labels |= options.pairs(label_add, "--label-add")
    spec |= {"Availability": availability} if availability else {}
    spec |= {"Role": role} if role else {}
    if dry_run:
        _show_plan(client, found, spec, dry_run)
        return
    client.post(f"/nodes/{found['ID']}/update", spec, version=found["Version"]["Index"])
    click.echo(ref)


@node.command()
@click.option("--wait", is_flag=True, help="Until no task is left there.")
@click.option("--timeout", type=DURATION, help="How long to wait; the node goes on draining.")
@dry_run_option
@click.argument("ref", metavar="NODE")
@pass_client
def drain(client: Client, wait: bool, timeout: int | None, dry_run: str | None, ref: str) -> None:
    """Have the tasks of NODE run elsewhere, and give it no more of them."""
    found = _find(client, ref)
    spec = found["Spec"] | {"Availability": "drain"}
    if dry_run:
        _show_plan(client, found, spec, dry_run)
        return
    client.post(f"/nodes/{found['ID']}/update", spec, version=found["Version"]["Index"])
    click.echo(ref)
    if wait:
        wait_drained(client, found["ID"], None if timeout is None else timeout / 1e9)


@node.command()
@click.argument("nodes", nargs=-1, required=True)
@pass_client
def promote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make NODES managers."""
    for_each(
        nodes,
        lambda ref: _change_role(client, ref, "manager"),
        say="Node {ref} promoted to a manager in the swarm.",
    )


@node.command()
@click.argument("nodes", nargs=-1, required=True)
@pass_client
def demote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make NODES workers."""
    for_each(
        nodes,
        lambda ref: _change_role(client, ref, "worker"),
        say="Manager {ref} demoted in the swarm.",
    )


@node.command("rm")
@click.option("-f", "--force", is_flag=True, help="Also a node that is up.")
@click.argument("nodes", nargs=-1, required=True)
@pass_client
def remove(client: Client, force: bool, nodes: tuple[str, ...]) -> None:
    """Remove NODES, which are down, from the cluster."""
    for_each(nodes, lambda ref: client.delete(f"/nodes/{_find(client, ref)['ID']}", force=force))


@node.command()
@click.option("--no-trunc", is_flag=True, help="Show whole ids and errors.")
@filter_option
@quiet_option
@output_option
@click.argument("nodes", nargs=-1)
@pass_client
def ps(
    client: Client,
    no_trunc: bool,
    wanted: tuple[str, ...],
    quiet: bool,
    output: str,
    nodes: tuple[str, ...],
) -> None:
    """List the tasks on NODES (this one when none is named)."""
    wishes = options.filters(wanted) or {}
    wishes["node"] = [_find(client, ref)["ID"] for ref in nodes or ("self",)]
    tasks = client.get("/tasks", filters=wishes)
    show_tasks(client, tasks, quiet=quiet, output=output, whole=no_trunc)


node.add_command(rebalance_nodes)


def _find(client: Client, ref: str) -> Any:
    if ref == "self":
        ref = client.get("/info")["Swarm"]["NodeID"]
        if not ref:
            raise CliError("this node is not part of a cluster; run: shoal swarm init")
    return client.get(f"/nodes/{ref}")


def _show_plan(client: Client, found: dict[str, Any], spec: dict[str, Any], output: str) -> None:
    """What the node's new spec would do to the tasks of the cluster."""
    path, version = f"/nodes/{found['ID']}/update", found["Version"]["Index"]
    show_plan(client.post(path, spec, version=version, dryRun=True), output)


def _change_role(client: Client, ref: str, role: str) -> None:
    found = _find(client, ref)
    spec = found["Spec"] | {"Role": role}
    client.post(f"/nodes/{found['ID']}/update", spec, version=found["Version"]["Index"])


def _hostname(item: dict[str, Any]) -> str:
    return str(item.get("Description", {}).get("Hostname", ""))


def _row(item: dict[str, Any], here: str, *, mark: bool) -> tuple[str, ...]:
    manager = item.get("ManagerStatus") or {}
    status = "Leader" if manager.get("Leader") else fmt.state(manager.get("Reachability", ""))
    return (
        item["ID"] + (" *" if mark and item["ID"] == here else ""),
        _hostname(item),
        fmt.state(item["Status"]["State"]),
        fmt.state(item["Spec"]["Availability"]),
        status,
        item.get("Description", {}).get("Engine", {}).get("EngineVersion", ""),
    )
