"""`make demo`: the main job on three machines of this computer, in plain words."""

import time

import click

from lab.box import LabError
from lab.cluster import Cluster
from lab.story import REPLICAS, Answers, Story, evenness


def run(cluster: Cluster) -> None:
    """Play the whole story, print its figures, and remove all that was made."""
    figures: list[tuple[str, str]] = []
    began = time.monotonic()
    try:
        _play(Story(cluster, click.echo), figures)
    finally:
        _title("Cleaning up")
        cluster.down()
        click.echo("Machines, containers, networks, cgroups and folders are gone.")
    _title("Figures")
    for what, figure in figures:
        click.echo(f"  {what:<58}{figure}")
    click.echo(f"\nAll in {time.monotonic() - began:.0f} s.")
    click.echo(
        "\nTo go on by hand:\n"
        "  make lab                          leave such a cluster up\n"
        "  export DOCKER_HOST=unix:///…      as `make lab` prints it; shoal and docker read it\n"
        "  .venv/bin/shoal node ls           or: docker node ls\n"
        "  .venv/bin/python -m lab --help    cut, heal, kill and start machines\n"
        "  make lab-down                     remove it"
    )


def _play(story: Story, figures: list[tuple[str, str]]) -> None:
    cluster = story.cluster

    def note(what: str, figure: str) -> None:
        figures.append((what, figure))

    _title("Three machines, all managers")
    began = time.monotonic()
    cluster.up(3)
    note("three machines booted and joined", f"{time.monotonic() - began:.1f} s")
    m1, _m2, m3 = cluster.machines
    story.shoal(m1, "node", "ls")

    _title("The service's image, versions 1 and 2, made from this computer's own files")
    story.load_images()
    story.shoal(m1, "image", "ls")

    _title("A service of six replicas on an overlay network, published on port 8080")
    note("create to 6 running and healthy", f"{story.create():.2f} s")
    story.shoal(m1, "service", "ls")
    story.shoal(m1, "service", "ps", "web")
    click.echo(f"Replicas on each machine: {story.spread()}")

    _title("Requests through the service's virtual IP, from a container")
    story.create_client()
    _report("virtual IP", story.ask_virtual_ip())

    _title("Requests through the published port of every machine")
    for machine in cluster.machines:
        _report(f"{machine.name}:8080", story.ask_port(machine))

    _title("A rolling update to version 2 while requests keep flowing")
    seconds, answers = story.update(2)
    _report("during the update", answers)
    note("rolling update of 6, two at a time, start-first", f"{seconds:.2f} s")
    note("requests failed during the update", f"{answers.failed} of {answers.answered}")
    story.shoal(m1, "service", "ps", "web", "--filter", "desired-state=running")

    _title("Draining m3")
    seconds, answers = story.drain(m3)
    _report("during the drain", answers)
    note("m3 drained", f"{seconds:.2f} s")
    note("requests failed during the drain", f"{answers.failed} of {answers.answered}")
    click.echo(f"Replicas on each machine: {story.spread()}")
    story.activate(m3)

    _title("The leader's machine loses its power")
    dead, seconds = story.kill_leader()
    click.echo(f"{cluster.leader().name} leads now; the next write took {seconds:.2f} s")
    note("leader killed to next write", f"{seconds:.2f} s")
    replaced = seconds + story.wait_replaced(dead)
    note("its tasks replaced", f"{replaced:.2f} s")
    back = story.bring_back(dead)
    note("its machine back and ready", f"{back:.2f} s")

    _title("A machine is cut off")
    leader, places = cluster.leader(), story.spread()
    victim = next(
        machine for machine in cluster.machines if machine is not leader and machine.name in places
    )
    seconds = story.cut(victim)
    note("machine cut off to its tasks replaced", f"{seconds:.2f} s")
    click.echo(f"Replicas on each machine: {story.spread()}")

    _title(f"{victim.name} comes back and is used again")
    story.bring_back(victim)
    story.use_again(victim, REPLICAS + 3)
    click.echo(f"Replicas on each machine: {story.spread()}")
    _report("published port", story.ask_port(victim))
    story.shoal(m1, "node", "ls")
    story.remove()


def _title(text: str) -> None:
    click.echo(f"\n== {text}")


def _report(what: str, answers: Answers) -> None:
    counts = ", ".join(str(count) for count in evenness(answers))
    click.echo(
        f"{what}: {answers.answered} answered by {answers.responders} replicas ({counts}), "
        f"{answers.failed} failed"
    )
    for reason, count in answers.failures.items():
        click.echo(f"    {count} x {reason}")
    if answers.answered == 0:
        raise LabError(f"{what}: nobody answered")
