"""What every command has at hand."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from cli.client import ApiError, Client, CliError

F = TypeVar("F", bound=Callable[..., Any])

pass_client = click.make_pass_decorator(Client)


def given(ctx: click.Context) -> dict[str, Any]:
    """The parameters that the user gave, without those that only have their default."""
    source = click.core.ParameterSource
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) not in (source.DEFAULT, source.DEFAULT_MAP)
    }


def for_each(
    refs: Iterable[str], act: Callable[[str], object], *, say: str | None = "{ref}"
) -> None:
    """Do `act` for each of `refs` and print `say` for it; one that is refused does not keep the
    others from it. Raises CliError at the end if any was."""
    refused = []
    for ref in dict.fromkeys(refs):
        try:
            act(ref)
        except ApiError as error:
            refused.append(str(error))
        else:
            if say is not None:
                click.echo(say.format(ref=ref))
    if refused:
        raise CliError("\nError: ".join(refused))


def output_option(command: F) -> F:
    """--format table|json."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        help="How to print: a table, or JSON objects, one a line.",
    )(command)


def quiet_option(command: F) -> F:
    return click.option("-q", "--quiet", is_flag=True, help="Print ids only.")(command)


def filter_option(command: F) -> F:
    return click.option(
        "-f", "--filter", "wanted", multiple=True, metavar="NAME=VALUE", help="Show only some."
    )(command)
