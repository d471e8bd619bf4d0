"""`python -m lab`: a cluster of several machines on this computer."""

import os
import sys
from pathlib import Path

import click

from lab import demo as story
from lab.box import LabError
from lab.cluster import Cluster
from lab.images import demo
from lab.machine import DaemonEnded, Machine


@click.group(help=__doc__)
@click.option("--prefix", default="shoal-lab", show_default=True, help="Name of this lab.")
@click.pass_context
def lab(context: click.Context, prefix: str) -> None:
    context.obj = Cluster(prefix)


@lab.command()
@click.option("--machines", default=3, show_default=True, help="How many machines.")
@click.option("--managers", type=int, help="How many of them are managers.  [default: all]")
@click.pass_obj
def up(cluster: Cluster, machines: int, managers: int | None) -> None:
    """Start the machines and join them to one cluster."""
    cluster.up(machines, managers)
    _show(cluster)
    click.echo("\nTalk to it with `shoal` or docker:")
    click.echo(f"  export DOCKER_HOST={cluster.machines[0].host}")
    click.echo(f"Or from a shell on a machine:  python -m lab --prefix {cluster.prefix} shell m1")


@lab.command("demo")
@click.pass_obj
def play(cluster: Cluster) -> None:
    """Play the main job on three machines, and remove them."""
    story.run(cluster)


@lab.command()
@click.pass_obj
def down(cluster: Cluster) -> None:
    """Remove everything the lab made."""
    cluster.down()


@lab.command()
@click.pass_obj
def status(cluster: Cluster) -> None:
    """Show the machines."""
    if not cluster.exists:
        raise LabError(f"lab {cluster.prefix} is not up")
    _show(cluster)


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def shell(cluster: Cluster, machine: str, command: tuple[str, ...]) -> None:
    """A shell (or COMMAND) on MACHINE."""
    chosen = cluster.machine(machine)
    argv = chosen.enter(command or [os.environ.get("SHELL", "/bin/sh")])
    sys.stdout.flush()
    os.execvpe(argv[0], argv, chosen.shell_environment())


@lab.command()
@click.argument("machine")
@click.option(
    "--direction",
    type=click.Choice(["both", "in", "out"]),
    default="both",
    show_default=True,
    help="What is lost: all, what it would hear, or what it says.",
)
@click.pass_obj
def cut(cluster: Cluster, machine: str, direction: str) -> None:
    """Pull MACHINE's network cable."""
    chosen = cluster.machine(machine)
    if direction == "both":
        chosen.cut()
    else:
        chosen.cut("in" if direction == "in" else "out")


@lab.command()
@click.argument("machine")
@click.pass_obj
def heal(cluster: Cluster, machine: str) -> None:
    """Plug MACHINE's network cable in again."""
    cluster.machine(machine).heal()


@lab.command()
@click.argument("machine")
@click.option("--daemon", is_flag=True, help="kill -9 for the daemon alone; containers go on.")
@click.pass_obj
def kill(cluster: Cluster, machine: str, daemon: bool) -> None:
    """Cut MACHINE's power."""
    chosen = cluster.machine(machine)
    if daemon:
        chosen.kill_daemon()
    else:
        chosen.kill()


@lab.command()
@click.argument("machine")
@click.pass_obj
def start(cluster: Cluster, machine: str) -> None:
    """Boot MACHINE, if it is off, and start its daemon, if it does not run."""
    cluster.machine(machine).start_daemon()


@lab.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--load", is_flag=True, help="Load them on the lab's machines, too.")
@click.pass_obj
def images(cluster: Cluster, folder: Path | None, load: bool) -> None:
    """Write archives of the demo's images to FOLDER (without one: the lab's own)."""
    made = demo(folder or cluster.folder / "images")
    if load:
        cluster.load(*made)
    for path in made:
        click.echo(path)


def _show(cluster: Cluster) -> None:
    click.echo(f"{'MACHINE':<9}{'ADDRESS':<17}{'STATE':<16}{'PROCESSES':<11}API")
    for machine in cluster.machines:
        state, count = _state(cluster, machine), len(machine.processes)
        click.echo(f"{machine.name:<9}{machine.ip:<17}{state:<16}{count:<11}{machine.host}")


def _state(cluster: Cluster, machine: Machine) -> str:
    if machine.init is None:
        return "off"
    if cluster.switch.is_cut(machine.name):
        return "cut off"
    return "running" if machine.daemon else "no daemon"


def main() -> None:
    """Errors meant for people are one line, and exit code 1."""
    try:
        lab(prog_name="python -m lab")
    except (LabError, DaemonEnded) as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(1)
    except PermissionError as error:
        click.echo(f"lab: {error}; the lab needs root", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
