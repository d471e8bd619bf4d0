"""The `shoal` command."""

import http.client
import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from cli.client import Client, CliError, default_host

# Command -> module and attribute. Imported when used, so that each command starts fast.
_COMMANDS = {
    "swarm": "cli.swarm:swarm",
    "node": "cli.node:node",
    "service": "cli.service:service",
    "network": "cli.network:network",
    "secret": "cli.secret:secret",
    "config": "cli.secret:config",
    "stack": "cli.stack:stack",
    "image": "cli.image:image",
    "container": "cli.container:container",
    "volume": "cli.volume:volume",
    "system": "cli.system:system",
    "debug": "cli.debug:debug",
    "info": "cli.system:info",
    "version": "cli.system:show_version",
    "events": "cli.system:events",
    "completion": "cli.completion:completion",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def release() -> str:
    """The installed version of Shoal."""
    try:
        return version("shoal")
    except PackageNotFoundError:
        return "unknown"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(release(), prog_name="shoal")
@click.option(
    "-H",
    "--host",
    metavar="URL",
    help="The daemon: unix://PATH or tcp://HOST:PORT (also SHOAL_HOST or DOCKER_HOST).",
)
@click.pass_context
def shoal(ctx: click.Context, host: str | None) -> None:
    """Run containers across machines as if they were one."""
    ctx.obj = Client(host or default_host(), lambda line: click.echo(line, err=True))


def main() -> None:
    """Run the command line; every failure is one line on stderr and a non-zero exit code."""
    try:
        code = shoal.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except CliError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        click.echo(f"Error: the daemon went away in the middle of its answer ({why})", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
