"""shoal completion: what a shell needs to complete our commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands in SHELL.

    In bash: source <(shoal completion bash)
    """
    found = get_completion_class(shell)
    assert found is not None  # one of click's own
    # Not `source()`: that of bash runs bash to see which version it is.
    script = found(ctx.find_root().command, {}, "shoal", "_SHOAL_COMPLETE")
    click.echo(script.source_template % script.source_vars())
