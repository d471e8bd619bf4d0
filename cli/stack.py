"""shoal stack: services that were deployed together, by `docker stack deploy`."""

from collections import Counter
from typing import Any

import click

from cli import format as fmt
from cli.client import ApiError, Client, CliError
from cli.context import output_option, pass_client, quiet_option
from cli.service import show_services
from cli.tasks import show_tasks

LABEL = "com.docker.stack.namespace"
# What holds others up goes first: networks, secrets and configs are in use by services.
_KINDS = ("services", "networks", "secrets", "configs")


@click.group()
def stack() -> None:
    """Look at and remove stacks; `docker stack deploy` makes them."""


@stack.command("ls")
@output_option
@pass_client
def list_stacks(client: Client, output: str) -> None:
    """List the stacks."""
    found = Counter(
        item["Spec"]["Labels"][LABEL] for item in client.get("/services", filters=_having())
    )
    items = [{"Name": name, "Services": found[name]} for name in sorted(found)]
    rows = [(item["Name"], item["Services"]) for item in items]
    fmt.show(("NAME", "SERVICES"), rows, items, quiet=False, output=output)


@stack.command()
@quiet_option
@output_option
@click.argument("name", metavar="STACK")
@pass_client
def services(client: Client, quiet: bool, output: str, name: str) -> None:
    """List the services of STACK."""
    show_services(_services(client, name), quiet=quiet, output=output)


@stack.command()
@click.option("--no-trunc", is_flag=True, help="Show whole ids and errors.")
@quiet_option
@output_option
@click.argument("name", metavar="STACK")
@pass_client
def ps(client: Client, no_trunc: bool, quiet: bool, output: str, name: str) -> None:
    """List the tasks of STACK."""
    ids = [item["ID"] for item in _services(client, name)]
    tasks = client.get("/tasks", filters={"service": ids})
    show_tasks(client, tasks, quiet=quiet, output=output, whole=no_trunc)


@stack.command("rm")
@click.argument("names", metavar="STACK...", nargs=-1, required=True)
@pass_client
def remove(client: Client, names: tuple[str, ...]) -> None:
    """Remove all that belongs to STACKS."""
    refused = []
    for name in names:
        found = [(kind, item) for kind in _KINDS for item in _items(client, kind, name)]
        if not found:
            refused.append(f"there is no stack {name}")
        for kind, item in found:
            try:
                client.delete(f"/{kind}/{item.get('ID') or item['Id']}")
            except ApiError as error:
                refused.append(str(error))
            else:
                click.echo(
                    f"{kind[:-1]} {item['Name'] if 'Name' in item else item['Spec']['Name']}"
                )
    if refused:
        raise CliError("\nError: ".join(refused))


def _services(client: Client, name: str) -> list[dict[str, Any]]:
    found = client.get("/services", filters=_having(name), status=True)
    if not found:
        raise CliError(f"there is no stack {name}: see `shoal stack ls`")
    return list(found)


def _items(client: Client, kind: str, name: str) -> list[dict[str, Any]]:
    return list(client.get(f"/{kind}", filters=_having(name)))


def _having(name: str | None = None) -> dict[str, list[str]]:
    return {"label": [LABEL if name is None else f"{LABEL}={name}"]}
