"""shoal service: what runs in the cluster."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import format as fmt
from cli import options
from cli.client import Client, CliError
from cli.context import filter_option, for_each, given, output_option, pass_client, quiet_option
from cli.logs import log_options, show_logs
from cli.options import CPUS, DURATION, SIZE
from cli.plan import dry_run_option, show_plan
from cli.progress import wait_converged
from cli.rebalance import rebalance_services
from cli.revisions import show_history
from cli.secret import references
from cli.service_exec import exec_in_service
from cli.service_spec import created, mode_name, rescale, updated
from cli.tasks import show_tasks
from cli.wishes import wish_options

F = TypeVar("F", bound=Callable[..., Any])
MODES = ("replicated", "global", "replicated-job", "global-job")
CONSTRAINT_HELP = (
    "Where tasks may go: node.role==worker, node.labels.zone!=a, also KEY in (A, B), "
    "KEY notin (A, B), KEY>=NUMBER, KEY=~web-*, KEY!~web-*, KEY exists, KEY notexists."
)


@click.group()
def service() -> None:
    """Create, look at and change services."""


def _policy_options(kind: str) -> list[Callable[[F], F]]:
    actions = ["pause", "continue"] + (["rollback"] if kind == "update" else [])
    return [
        click.option(f"--{kind}-parallelism", type=int, help="Tasks at a time; 0: all at once."),
        click.option(f"--{kind}-delay", type=DURATION, help="Between tasks."),
        click.option(f"--{kind}-order", type=click.Choice(["stop-first", "start-first"])),
        click.option(f"--{kind}-failure-action", type=click.Choice(actions)),
        click.option(f"--{kind}-monitor", type=DURATION, help="How long a failure still counts."),
        click.option(f"--{kind}-max-failure-ratio", type=float, help="Failures that are borne."),
    ]


def spec_options(command: F) -> F:
    """The flags that create and update have in common."""
    choices: list[Callable[[F], F]] = [
        click.option("--replicas", type=int, help="How many tasks; of a job, completions."),
        click.option("--max-concurrent", type=int, help="Tasks of a job at a time; default: all."),
        click.option("--entrypoint", help="In place of the image's entrypoint."),
        click.option("--hostname", help="May hold {{.Task.Slot}} and the like."),
        click.option("-u", "--user", metavar="NAME|UID[:GROUP|GID]"),
        click.option("-w", "--workdir", metavar="DIR"),
        click.option("-t", "--tty", is_flag=True, help="Give the tasks a terminal."),
        click.option("--read-only", is_flag=True, help="Mount the image read-only."),
        click.option("--init", is_flag=True, help="Run a small init as process 1."),
        click.option("--stop-signal", metavar="SIGNAL"),
        click.option("--stop-grace-period", type=DURATION, help="From stop signal to kill."),
        click.option("--limit-cpu", type=CPUS, help="CPUs at the most."),
        click.option("--limit-memory", type=SIZE, help="Memory at the most."),
        click.option("--limit-pids", type=int, help="Processes at the most."),
        click.option("--reserve-cpu", type=CPUS, help="CPUs that a node must have free."),
        click.option("--reserve-memory", type=SIZE, help="Memory that a node must have free."),
        click.option("--restart-condition", type=click.Choice(["none", "on-failure", "any"])),
        click.option("--restart-delay", type=DURATION),
        click.option("--restart-max-attempts", type=int),
        click.option("--restart-window", type=DURATION),
        click.option("--replicas-max-per-node", type=int),
        click.option("--endpoint-mode", type=click.Choice(["vip", "dnsrr"])),
        click.option("--health-cmd", help="A shell command; the task runs once it succeeds."),
        click.option("--health-interval", type=DURATION),
        click.option("--health-timeout", type=DURATION),
        click.option("--health-retries", type=int),
        click.option("--health-start-period", type=DURATION),
        click.option("--health-start-interval", type=DURATION),
        click.option("--no-healthcheck", is_flag=True, help="Not even the image's."),
        *_policy_options("update"),
        *_policy_options("rollback"),
        *wish_options(),
        click.option("-d", "--detach", is_flag=True, help="Don't wait until the tasks run."),
        click.option("-q", "--quiet", is_flag=True, help="Wait without showing progress."),
    ]
    for choice in reversed(choices):
        command = choice(command)
    return command


@service.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", help="A DNS label.")
@click.option("--mode", type=click.Choice(MODES))
@click.option("--image", "image_flag", help="The image, when not given as an argument.")
@click.option("--command", "command_flag", help="The command, when not given as arguments.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE")
@click.option("--env-file", multiple=True, metavar="FILE")
@click.option("-l", "--label", multiple=True, metavar="NAME=VALUE", help="Of the service.")
@click.option("--container-label", multiple=True, metavar="NAME=VALUE")
@click.option("--mount", multiple=True, metavar="type=…,source=…,target=…")
@click.option("-p", "--publish", multiple=True, metavar="PUBLISHED:TARGET")
@click.option("--network", multiple=True, metavar="NAME")
@click.option("--secret", multiple=True, metavar="NAME", help="Or source=…,target=…,mode=….")
@click.option("--config", multiple=True, metavar="NAME", help="As --secret.")
@click.option("--constraint", multiple=True, metavar="EXPRESSION", help=CONSTRAINT_HELP)
@click.option("--placement-pref", multiple=True, metavar="spread=node.labels.NAME")
@spec_options
@dry_run_option
@click.argument("image", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def create(ctx: click.Context, /, **_: Any) -> None:
    """Run IMAGE, with COMMAND as its arguments, on the cluster."""
    client: Client = ctx.obj
    flags = _with_image(given(ctx), required=True)
    spec = created(flags, dict(os.environ))
    for kind in ("secret", "config"):
        if texts := flags.get(kind):
            found = references(client, kind, texts)
            spec["TaskTemplate"]["ContainerSpec"][f"{kind.capitalize()}s"] = found
    if output := ctx.params["dry_run"]:
        show_plan(client.post("/services/create", spec, dryRun=True), output)
        return
    answer = client.post("/services/create", spec)
    click.echo(answer["ID"])
    _wait(client, answer["ID"], flags)


@service.command()
@click.option("--image", help="The new image.")
@click.option("--args", help="The new arguments of the command.")
@click.option("--force", is_flag=True, help="Replace the tasks though nothing changes.")
@click.option("--rollback", is_flag=True, help="Go back to the spec before the last update.")
@click.option("--env-add", multiple=True, metavar="NAME=VALUE")
@click.option("--env-rm", multiple=True, metavar="NAME")
@click.option("--label-add", multiple=True, metavar="NAME=VALUE")
@click.option("--label-rm", multiple=True, metavar="NAME")
@click.option("--container-label-add", multiple=True, metavar="NAME=VALUE")
@click.option("--container-label-rm", multiple=True, metavar="NAME")
@click.option("--mount-add", multiple=True, metavar="type=…,source=…,target=…")
@click.option("--mount-rm", multiple=True, metavar="TARGET")
@click.option("--publish-add", multiple=True, metavar="PUBLISHED:TARGET")
@click.option("--publish-rm", multiple=True, metavar="TARGET")
@click.option("--network-add", multiple=True, metavar="NAME")
@click.option("--network-rm", multiple=True, metavar="NAME")
@click.option("--secret-add", multiple=True, metavar="NAME", help="Or source=…,target=…,mode=….")
@click.option("--secret-rm", multiple=True, metavar="NAME")
@click.option("--config-add", multiple=True, metavar="NAME", help="As --secret-add.")
@click.option("--config-rm", multiple=True, metavar="NAME")
@click.option("--constraint-add", multiple=True, metavar="EXPRESSION", help="As --constraint.")
@click.option("--constraint-rm", multiple=True, metavar="EXPRESSION")
@spec_options
@dry_run_option
@click.argument("ref", metavar="SERVICE")
@click.pass_context
def update(ctx: click.Context, /, **_: Any) -> None:
    """Change SERVICE; its tasks are replaced step by step where they must be."""
    client: Client = ctx.obj
    flags = given(ctx)
    found = client.get(f"/services/{flags['ref']}")
    dry: str | None = ctx.params["dry_run"]
    if flags.get("rollback"):
        _send(client, found, found["Spec"], dry, rollback="previous")
    else:
        if "args" in flags:
            flags["args"] = options.words("--args", flags["args"])
        if networks := flags.get("network_rm"):
            flags["network_rm"] = (*networks, *(_network_id(client, name) for name in networks))
        for kind in ("secret", "config"):
            if texts := flags.get(f"{kind}_add"):
                flags[f"{kind}_add"] = references(client, kind, texts)
        _send(client, found, updated(found["Spec"], flags, dict(os.environ)), dry)
    if dry:
        return
    click.echo(flags["ref"])
    _wait(client, found["ID"], flags)


@service.command()
@quiet_option
@output_option
@click.argument("ref", metavar="SERVICE")
@pass_client
def history(client: Client, quiet: bool, output: str, ref: str) -> None:
    """List the revisions of SERVICE: when its spec changed, why, and in what."""
    show_history(client, ref, quiet=quiet, output=output)


@service.command()
@click.option("--to", type=int, metavar="REVISION", help="One of `service history`.")
@click.option("-d", "--detach", is_flag=True, help="Don't wait until the tasks run.")
@click.option("-q", "--quiet", is_flag=True, help="Wait without showing progress.")
@dry_run_option
@click.argument("ref", metavar="SERVICE")
@pass_client
def rollback(
    client: Client, to: int | None, detach: bool, quiet: bool, dry_run: str | None, ref: str
) -> None:
    """Go back to the spec that SERVICE had before its last update, or to that of a revision."""
    found = client.get(f"/services/{ref}")
    if to is None:
        _send(client, found, found["Spec"], dry_run, rollback="previous")
    else:
        _send(client, found, found["Spec"], dry_run, rollback_to=to)
    if dry_run:
        return
    click.echo(ref)
    _wait(client, found["ID"], {"detach": detach, "quiet": quiet, "rollback": True})


@service.command()
@click.option("-d", "--detach", is_flag=True, help="Don't wait until the tasks run.")
@dry_run_option
@click.argument("targets", metavar="SERVICE=REPLICAS", nargs=-1, required=True)
@pass_client
def scale(client: Client, detach: bool, dry_run: str | None, targets: tuple[str, ...]) -> None:
    """Set the number of tasks of replicated services, or of a job, which runs again."""
    changed = []
    for target in targets:
        ref, _, text = target.partition("=")
        if not text.isdigit():
            raise click.BadParameter(f"{target!r}: write SERVICE=REPLICAS, as in web=5")
        found = client.get(f"/services/{ref}")
        if not rescale(found["Spec"]["Mode"], {"replicas": int(text)}):
            raise CliError(f"{ref} is not a replicated service or job, so it can't be scaled")
        _send(client, found, found["Spec"], dry_run)
        if dry_run:
            continue
        click.echo(f"{ref} scaled to {text}")
        changed.append(found["ID"])
    for service_id in changed:
        _wait(client, service_id, {"detach": detach})


@service.command("ls")
@filter_option
@quiet_option
@output_option
@pass_client
def list_services(client: Client, wanted: tuple[str, ...], quiet: bool, output: str) -> None:
    """List the services."""
    services = client.get("/services", filters=options.filters(wanted), status=True)
    show_services(services, quiet=quiet, output=output)


def show_services(services: list[dict[str, Any]], *, quiet: bool, output: str) -> None:
    """Print services, sorted by name; they were asked for with their status."""
    services.sort(key=lambda item: item["Spec"]["Name"])
    headings = ("ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS")
    rows = [_row(item) for item in services]
    fmt.show(headings, rows, services, quiet=quiet, output=output)


@service.command()
@click.option("--no-trunc", is_flag=True, help="Show whole ids and errors.")
@filter_option
@quiet_option
@output_option
@click.argument("services", nargs=-1, required=True)
@pass_client
def ps(
    client: Client,
    no_trunc: bool,
    wanted: tuple[str, ...],
    quiet: bool,
    output: str,
    services: tuple[str, ...],
) -> None:
    """List the tasks of SERVICES."""
    wishes = options.filters(wanted) or {}
    wishes["service"] = [client.get(f"/services/{ref}")["ID"] for ref in services]
    tasks = client.get("/tasks", filters=wishes)
    show_tasks(client, tasks, quiet=quiet, output=output, whole=no_trunc)


@service.command()
@click.argument("services", nargs=-1, required=True)
@pass_client
def inspect(client: Client, services: tuple[str, ...]) -> None:
    """Show all that is known of SERVICES."""
    fmt.show_json([client.get(f"/services/{ref}") for ref in services])


@service.command()
@log_options
@click.argument("ref", metavar="SERVICE|TASK")
@pass_client
def logs(client: Client, /, ref: str, **choices: Any) -> None:
    """Show what the tasks of SERVICE, or TASK, have printed."""
    show_logs(client, ref, **choices)


@service.command("rm")
@click.argument("services", nargs=-1, required=True)
@pass_client
def remove(client: Client, services: tuple[str, ...]) -> None:
    """Remove SERVICES and stop their tasks."""
    for_each(services, lambda ref: client.delete(f"/services/{ref}"))


service.add_command(rebalance_services)
service.add_command(exec_in_service)


def _with_image(flags: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """`flags` with image and args, wherever the user put them."""
    image = flags.pop("image_flag", None) or flags.get("image")
    arguments = list(flags.pop("command", ()))
    if "image" in flags and image != flags["image"]:
        arguments.insert(0, flags["image"])
    if required and not image:
        raise click.UsageError("name the image: shoal service create [OPTIONS] IMAGE [COMMAND]...")
    if text := flags.pop("command_flag", None):
        arguments = [*options.words("--command", text), *arguments]
    flags["image"] = image
    if arguments:
        flags["args"] = arguments
    return flags


def _send(
    client: Client,
    found: dict[str, Any],
    spec: dict[str, Any],
    dry_run: str | None = None,
    *,
    rollback: str | None = None,
    rollback_to: int | None = None,
) -> None:
    """Send an update; with `dry_run` show what it would do."""
    plan = client.post(
        f"/services/{found['ID']}/update",
        spec,
        version=found["Version"]["Index"],
        rollback=rollback,
        rollbackTo=rollback_to,
        **({"dryRun": True} if dry_run else {}),
    )
    if dry_run:
        show_plan(plan, dry_run)


def _wait(client: Client, service_id: str, flags: dict[str, Any]) -> None:
    if not flags.get("detach"):
        wait_converged(
            client,
            service_id,
            quiet=bool(flags.get("quiet")),
            rollback=bool(flags.get("rollback")),
        )


def _network_id(client: Client, name: str) -> str:
    return str(client.get(f"/networks/{name}")["Id"])


def _replicas(item: dict[str, Any]) -> str:
    status = item.get("ServiceStatus") or {}
    desired = status.get("DesiredTasks", 0)
    text = f"{status.get('RunningTasks', 0)}/{desired}"
    mode = item["Spec"]["Mode"]
    if not mode_name(mode).endswith("-job"):
        return text
    completed = status.get("CompletedTasks", 0)
    total = mode.get("ReplicatedJob", {}).get("TotalCompletions", desired + completed)
    return f"{text} ({completed}/{total} completed)"


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    ports = (item.get("Endpoint") or {}).get("Ports") or []
    return (
        fmt.short(item["ID"]),
        item["Spec"]["Name"],
        mode_name(item["Spec"]["Mode"]),
        _replicas(item),
        item["Spec"]["TaskTemplate"].get("ContainerSpec", {}).get("Image", ""),
        ", ".join(
            f"*:{port.get('PublishedPort', 0)}->{port.get('TargetPort', 0)}/{port['Protocol']}"
            for port in ports
            if port["PublishMode"] == "ingress"
        ),
    )
