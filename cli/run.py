"""shoal container run and create: a container of this node."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cli import options
from cli.client import ApiError, Client, CliError
from cli.context import given, pass_client
from cli.image import fetch
from cli.lifecycle import limits, restart_policy
from cli.network import endpoint
from cli.options import CPUS, SIZE
from cli.terminal import follow_size, join, raw_terminal

F = TypeVar("F", bound=Callable[..., Any])
_NOT_STARTED = 125  # exit code when no process ran; 126 and 127: no such program, as shells say it


def _create_options(command: F) -> F:
    pair = "NAME=VALUE"
    choices: list[Callable[[F], F]] = [
        click.option("--name", help="In place of a random one."),
        click.option("-i", "--interactive", is_flag=True, help="Give it our standard input."),
        click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
        click.option("--rm", "remove", is_flag=True, help="Remove it when it has ended."),
        click.option("-e", "--env", metavar=pair, multiple=True),
        click.option("--env-file", metavar="FILE", multiple=True),
        click.option("-l", "--label", metavar=pair, multiple=True),
        click.option("-v", "--volume", metavar="SOURCE:PATH[:ro]", multiple=True),
        click.option("--mount", metavar="type=…,source=…,target=…", multiple=True),
        click.option("-p", "--publish", metavar="[ADDR:]PORT:PORT[/PROTOCOL]", multiple=True),
        click.option("--network", metavar="NAME|host|none|container:NAME", multiple=True),
        click.option("--network-alias", metavar="NAME", multiple=True, help="On its networks."),
        click.option("--ip", metavar="ADDR", help="On its first network."),
        click.option("--link", metavar="CONTAINER[:NAME]", multiple=True),
        click.option("--pid", metavar="host|container:NAME"),
        click.option("--ipc", metavar="MODE", help="private, shareable, host, container:NAME."),
        click.option("--uts", metavar="host|container:NAME"),
        click.option("--userns", metavar="host"),
        click.option("--entrypoint", help="In place of the image's entrypoint."),
        click.option("--hostname"),
        click.option("-u", "--user", metavar="NAME|UID[:GROUP|GID]"),
        click.option("-w", "--workdir", metavar="DIR"),
        click.option("--init", is_flag=True, help="Run a small init as process 1."),
        click.option("--read-only", is_flag=True, help="Mount the image read-only."),
        click.option("--privileged", is_flag=True, help="With all rights of this machine's root."),
        click.option("--cap-add", metavar="NAME", multiple=True),
        click.option("--cap-drop", metavar="NAME", multiple=True),
        click.option("--device", metavar="PATH[:PATH[:rwm]]", multiple=True),
        click.option("--security-opt", metavar="seccomp=FILE", multiple=True),
        click.option("--tmpfs", metavar="PATH[:OPTIONS]", multiple=True),
        click.option("--log-driver", metavar="NAME", help="json-file, local or none."),
        click.option("--log-opt", metavar=pair, multiple=True, help="max-size=10m, tag={{.Name}}."),
        click.option("--annotation", metavar=pair, multiple=True, help="For the OCI runtime."),
        click.option("--runtime", metavar="NAME", help="crun or runc, where installed."),
        click.option("--stop-signal", metavar="SIGNAL"),
        click.option("--restart", metavar="POLICY", help="As of `container update`."),
        click.option("-m", "--memory", type=SIZE, help="Memory at the most."),
        click.option("--cpus", type=CPUS, help="CPUs at the most."),
        click.option("--pids-limit", type=int, help="Processes at the most; -1: no limit."),
        click.option("--blkio-weight", type=int, help="As of `container update`."),
    ]
    for choice in reversed(choices):
        command = choice(command)
    command = click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)
    return click.argument("image")(command)


@click.command(context_settings={"allow_interspersed_args": False})
@_create_options
@click.pass_context
def create(ctx: click.Context, /, **_: Any) -> None:
    """Make a container of IMAGE that runs COMMAND; `start` starts it."""
    click.echo(_create(ctx.obj, given(ctx), attached=False))


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Don't wait for it; print its id.")
@_create_options
@click.pass_context
def run(ctx: click.Context, /, **_: Any) -> int:
    """Run COMMAND in a new container of IMAGE; its exit code is ours."""
    client, flags = ctx.obj, given(ctx)
    if flags.get("tty") and flags.get("interactive") and not sys.stdin.isatty():
        raise click.UsageError("standard input is not a terminal: leave out --tty")
    detached = bool(flags.get("detach"))
    try:
        made = _create(client, flags, attached=not detached)
        if detached:
            client.post(f"/containers/{made}/start")
            click.echo(made)
            return 0
        return run_attached(
            client, made, stdin=bool(flags.get("interactive")), tty=bool(flags.get("tty"))
        )
    except CliError as error:
        click.echo(f"Error: {error}", err=True)
        return exit_code(str(error))


def exit_code(message: str) -> int:
    """That of a command which could not be run, as Docker gives it."""
    if "executable file not found" in message or "no such file or directory" in message:
        return 127
    return 126 if "permission denied" in message and "exec:" in message else _NOT_STARTED


def _create(client: Client, flags: dict[str, Any], *, attached: bool) -> str:
    asked, query = request(flags, dict(os.environ), attached), {"name": flags.get("name")}
    try:
        answer = client.post("/containers/create", asked, **query)
    except ApiError as error:
        if error.status != 404:
            raise
        click.echo(f"Unable to find image {flags['image']} here: fetching it", err=True)
        fetch(client, flags["image"], quiet=True)
        answer = client.post("/containers/create", asked, **query)
    for warning in answer.get("Warnings") or ():
        click.echo(f"Warning: {warning}", err=True)
    return str(answer["Id"])


def request(flags: dict[str, Any], present: dict[str, str], attached: bool) -> dict[str, Any]:
    """What is asked of the daemon. `present`: our own environment. Raises click.BadParameter."""
    stdin = bool(flags.get("interactive"))
    asked: dict[str, Any] = {
        "Image": flags["image"],
        "Tty": bool(flags.get("tty")),
        "OpenStdin": stdin,
        "StdinOnce": stdin and attached,
        "AttachStdin": stdin and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "Env": options.environment(flags.get("env", ()), flags.get("env_file", ()), present),
        "Labels": options.pairs(flags.get("label", ()), "--label"),
        "HostConfig": _host(flags),
    }
    if command := flags.get("command"):
        asked["Cmd"] = list(command)
    if "entrypoint" in flags:
        asked["Entrypoint"] = [flags["entrypoint"]] if flags["entrypoint"] else [""]
    for flag, field in (("hostname", "Hostname"), ("user", "User"), ("workdir", "WorkingDir"),
                        ("stop_signal", "StopSignal")):  # fmt: skip
        if flag in flags:
            asked[field] = flags[flag]
    if networks := flags.get("network"):
        asked["HostConfig"]["NetworkMode"] = networks[0]
    if points := _endpoints(flags):
        asked["NetworkingConfig"] = {"EndpointsConfig": points}
    if ports := flags.get("publish"):
        bindings = published(ports)
        asked["ExposedPorts"] = {key: {} for key in bindings}
        asked["HostConfig"]["PortBindings"] = bindings
    return asked


def _endpoints(flags: dict[str, Any]) -> dict[str, Any]:
    """Its networks, if there is more to say of them than one name."""
    networks = flags.get("network") or ("bridge",)
    aliases, links = flags.get("network_alias", ()), flags.get("link", ())
    if len(networks) == 1 and not (aliases or links or "ip" in flags):
        return {}
    first = endpoint(flags.get("ip"), aliases, links)
    return {name: endpoint(None, aliases, ()) for name in networks} | {networks[0]: first}


_HOST = {
    "remove": "AutoRemove",
    "pid": "PidMode",
    "ipc": "IpcMode",
    "uts": "UTSMode",
    "userns": "UsernsMode",
    "init": "Init",
    "read_only": "ReadonlyRootfs",
    "privileged": "Privileged",
    "runtime": "Runtime",
}


def _host(flags: dict[str, Any]) -> dict[str, Any]:
    host = {field: flags[flag] for flag, field in _HOST.items() if flag in flags}
    host |= limits({name: value for name, value in flags.items() if name != "restart"})
    for flag, field in (("volume", "Binds"), ("cap_add", "CapAdd"), ("cap_drop", "CapDrop")):
        if flag in flags:
            host[field] = list(flags[flag])
    if "restart" in flags:
        host["RestartPolicy"] = restart_policy(flags["restart"])
    if "mount" in flags:
        host["Mounts"] = [options.mount(text) for text in flags["mount"]]
    if "tmpfs" in flags:
        host["Tmpfs"] = dict(text.partition(":")[::2] for text in flags["tmpfs"])
    if "log_driver" in flags or "log_opt" in flags:
        host["LogConfig"] = {
            "Type": flags.get("log_driver", "json-file"),
            "Config": options.pairs(flags.get("log_opt", ()), "--log-opt"),
        }
    if "annotation" in flags:
        host["Annotations"] = options.pairs(flags["annotation"], "--annotation")
    if "device" in flags:
        host["Devices"] = [device(text) for text in flags["device"]]
    if "security_opt" in flags:
        host["SecurityOpt"] = [_security(text) for text in flags["security_opt"]]
    return host


def device(text: str) -> dict[str, str]:
    """PATH, PATH:INSIDE, PATH:INSIDE:rwm or PATH:rwm."""
    outside, *rest = text.split(":")
    rights = rest.pop() if rest and set(rest[-1]) <= set("rwm") else "rwm"
    inside = rest[0] if rest else outside
    return {"PathOnHost": outside, "PathInContainer": inside, "CgroupPermissions": rights}


def _security(text: str) -> str:
    """A seccomp profile's file is read here: the daemon takes what it holds."""
    name, _, file = text.partition("=")
    if name != "seccomp" or file in ("", "unconfined", "builtin"):
        return text
    try:
        return f"seccomp={Path(file).read_text(encoding='utf-8')}"
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not text"
        raise click.BadParameter(f"{file}: {why}", param_hint="--security-opt") from error


def published(texts: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    """[[ADDR:]PORT:]PORT[/PROTOCOL] as port bindings. Raises click.BadParameter."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        whole, _, protocol = text.partition("/")
        rest, _, inner = whole.rpartition(":")
        address, _, outer = rest.rpartition(":")
        if not inner.isdecimal() or (outer and not outer.isdecimal()):
            raise click.BadParameter(
                f"{text!r}: write [[ADDR:]PORT:]PORT[/PROTOCOL]", param_hint="--publish"
            )
        place = {"HostIp": address.strip("[]"), "HostPort": outer}
        bindings.setdefault(f"{inner}/{protocol or 'tcp'}", []).append(place)
    return bindings


def run_attached(client: Client, ref: str, *, stdin: bool, tty: bool) -> int:
    """Attach, start, and stay until the container ends: its exit code. Raises CliError; what could
    not start and would have removed itself is removed."""
    query = {"stdin": stdin, "stdout": True, "stderr": True, "stream": True}
    terminal = tty and sys.stdout.isatty()
    found = client.get(f"/containers/{ref}/json")["HostConfig"]
    try:
        raw, begun = client.hijack(f"/containers/{ref}/attach", None, **query)
        until = "removed" if found["AutoRemove"] else "next-exit"
        waiting = client.open("POST", f"/containers/{ref}/wait", query={"condition": until})
        client.post(f"/containers/{ref}/start")
    except CliError:
        if found["AutoRemove"]:
            with contextlib.suppress(ApiError):  # it may be gone already
                client.delete(f"/containers/{ref}", force=True)
        raise
    if terminal:
        follow_size(lambda height, width: _resize(client, ref, height, width))
    with contextlib.closing(raw), raw_terminal(terminal and stdin):
        join(raw, begun, stdin=stdin, is_tty=tty)
    return client.result(waiting)["StatusCode"]  # type: ignore[no-any-return]


def _resize(client: Client, ref: str, height: int, width: int) -> None:
    with contextlib.suppress(ApiError):  # it may have ended
        client.post(f"/containers/{ref}/resize", h=height, w=width)


@click.command()
@click.option("--no-stdin", is_flag=True, help="Only watch.")
@click.argument("ref", metavar="CONTAINER")
@pass_client
def attach(client: Client, no_stdin: bool, ref: str) -> int:
    """Join the terminal or pipes of a running CONTAINER; its exit code is ours."""
    found = client.get(f"/containers/{ref}/json")
    if not found["State"]["Running"]:
        raise CliError(f"container {ref} is not running: start it first")
    stdin, tty = found["Config"]["OpenStdin"] and not no_stdin, found["Config"]["Tty"]
    query = {"stdin": stdin, "stdout": True, "stderr": True, "stream": True}
    raw, begun = client.hijack(f"/containers/{found['Id']}/attach", None, **query)
    waiting = client.open("POST", f"/containers/{found['Id']}/wait")
    if tty and sys.stdout.isatty():
        follow_size(lambda height, width: _resize(client, found["Id"], height, width))
    with contextlib.closing(raw), raw_terminal(tty and stdin):
        join(raw, begun, stdin=stdin, is_tty=tty)
    return client.result(waiting)["StatusCode"]  # type: ignore[no-any-return]


COMMANDS = (run, create, attach)
