"""`shoal-runtime`: the OCI command line of the built-in runtime.

    shoal-runtime create --bundle DIR ID        shoal-runtime start ID
    shoal-runtime state ID                      shoal-runtime kill ID [SIGNAL]
    shoal-runtime delete [--force] ID           shoal-runtime run --bundle DIR ID

It needs no daemon. It runs with the standard library alone, from a read-only view of the
interpreter, so that a container that gets hold of its binary cannot write to it (CVE-2019-5736).
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from typing import Any

if __name__ == "__main__":  # executed with -I, which leaves the script's own folder out
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from worker.runtime import bundle as bundles
from worker.runtime import cgroups, wait
from worker.runtime.standalone import Console, Containers, RuntimeFailure
from worker.runtime.syscalls import read_only_copy

_ROOT = "/run/shoal-runtime"
_VERSION = "0.1.0"


def main() -> None:
    """The console script: goes over into a bare interpreter."""
    binary = os.path.realpath(sys.executable)
    copy = read_only_copy(binary)
    path = binary if copy < 0 else f"/proc/self/fd/{copy}"
    if copy >= 0:
        os.set_inheritable(copy, True)
    os.execv(path, [sys.executable, "-I", "-S", os.path.abspath(__file__), *sys.argv[1:]])


def run(arguments: list[str]) -> int:
    """Returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.systemd_cgroup:
            raise RuntimeFailure("--systemd-cgroup is not supported: cgroups are made directly")
        containers = Containers(options.root, cgroups.detect())
        return int(options.action(containers, options) or 0)
    except RuntimeFailure as error:
        _complain(options, str(error))
        return error.code
    except OSError as error:
        _complain(options, _describe(error))
    except ValueError as error:
        _complain(options, str(error))
    return 1


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


def _complain(options: argparse.Namespace, text: str) -> None:
    print(f"shoal-runtime: {text}", file=sys.stderr)  # noqa: T201
    if not options.log:
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{now}" level=error msg={json.dumps(text)}'
    if options.log_format == "json":
        line = json.dumps({"level": "error", "msg": text, "time": now})
    with contextlib.suppress(OSError), open(options.log, "a") as file:
        file.write(line + "\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="shoal-runtime", description="runs OCI bundles")
    version = f"shoal-runtime version {_VERSION}\nspec: {bundles.VERSION}"
    top.add_argument("-v", "--version", action=_Version, nargs=0, text=version)
    top.add_argument("--root", default=_ROOT, help="where states are kept (default %(default)s)")
    top.add_argument("--log", default="", help="a file for errors")
    top.add_argument("--log-format", choices=("text", "json"), default="text")
    top.add_argument("--debug", action="store_true", help="taken for other runtimes' sake")
    top.add_argument("--systemd-cgroup", action="store_true", help="refused")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    for name, action, text in (
        ("create", _create, "prepare a container up to its start"),
        ("run", _run, "create, start, wait and delete"),
    ):
        command = _command(commands, name, action, text)
        command.add_argument("-b", "--bundle", default=".")
        command.add_argument("--no-pivot", action="store_true", help="refused")
        _console_options(command)
    command.add_argument("-d", "--detach", action="store_true")
    _command(commands, "start", _start, "execute what was created")
    _command(commands, "state", _state, "print the state")
    command = _command(commands, "kill", _kill, "send a signal")
    command.add_argument("signal", nargs="?", default="TERM")
    command.add_argument("-a", "--all", action="store_true", help="to all processes in it")
    command = _command(commands, "delete", _delete, "remove what is left of it")
    command.add_argument("-f", "--force", action="store_true", help="kill it if it lives")
    command = _command(commands, "exec", _exec, "run another process in it")
    command.add_argument("-p", "--process", default="", help="a file with the OCI process")
    command.add_argument("-t", "--tty", action="store_true")
    command.add_argument("-d", "--detach", action="store_true")
    command.add_argument("--cwd", default="")
    command.add_argument("-e", "--env", action="append", default=[])
    _console_options(command)
    command.add_argument("args", nargs=argparse.REMAINDER)
    _command(commands, "pause", _pause, "stop all its processes for a while")
    _command(commands, "resume", _resume, "let them go on")
    _command(commands, "ps", _ps, "its processes")
    command = _command(commands, "update", _update, "change its limits")
    command.add_argument("-r", "--resources", default="-", help="OCI resources: a file, or -")
    command = commands.add_parser("list", help="all containers")
    command.add_argument("-f", "--format", choices=("table", "json"), default="table")
    command.add_argument("-q", "--quiet", action="store_true")
    command.set_defaults(action=_list)
    command = commands.add_parser("spec", help="write a configuration to begin with")
    command.add_argument("-b", "--bundle", default=".")
    command.set_defaults(action=_spec)
    return top


class _Version(argparse.Action):
    def __init__(self, text: str, **options: Any) -> None:
        super().__init__(**options)
        self._text = text

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(self._text)  # noqa: T201
        parser.exit()


def _command(commands: Any, name: str, action: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text)
    command.add_argument("id")
    command.set_defaults(action=action)
    return command


def _console_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--console-socket", default="", help="is sent the terminal's master")
    command.add_argument("--pid-file", default="")
    command.add_argument("--preserve-fds", type=int, default=0, metavar="N")


def _console(options: argparse.Namespace) -> Console:
    return Console(options.console_socket, options.pid_file, options.preserve_fds)


def _create(containers: Containers, options: argparse.Namespace) -> None:
    if options.no_pivot:
        raise RuntimeFailure("--no-pivot is not supported: the container could leave its root")
    containers.create(options.id, os.path.abspath(options.bundle), _console(options))


def _start(containers: Containers, options: argparse.Namespace) -> None:
    for complaint in containers.start(options.id):
        _complain(options, complaint)


def _run(containers: Containers, options: argparse.Namespace) -> int:
    waiting = wait.Forwarding()
    _create(containers, options)
    pid = containers.living(options.id).pid
    _start(containers, options)
    if options.detach:
        return 0
    code = waiting.until_end(pid)
    _delete(containers, options)
    return code


def _state(containers: Containers, options: argparse.Namespace) -> None:
    print(json.dumps(containers.state(options.id), indent=2))  # noqa: T201


def _kill(containers: Containers, options: argparse.Namespace) -> None:
    containers.kill(options.id, _signal(options.signal), options.all)


def _signal(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65:
        return int(text)
    name = text.upper().removeprefix("SIG")
    number = getattr(signal, f"SIG{name}", None)
    if not isinstance(number, signal.Signals):
        raise RuntimeFailure(f"{text!r} is no signal")
    return int(number)


def _delete(containers: Containers, options: argparse.Namespace) -> None:
    for complaint in containers.delete(options.id, getattr(options, "force", False)):
        _complain(options, complaint)


def _exec(containers: Containers, options: argparse.Namespace) -> int:
    if options.process:
        with open(options.process) as file:
            process = json.load(file)
    else:
        process = containers.process(options.id) | {
            "args": options.args,
            "terminal": options.tty,
        }
        process["env"] = [*(process.get("env") or ()), *options.env]
        process["cwd"] = options.cwd or process.get("cwd") or "/"
    waiting = wait.Forwarding()
    pid, _ = containers.execute(options.id, process, _console(options))
    return 0 if options.detach else waiting.until_end(pid)


def _pause(containers: Containers, options: argparse.Namespace) -> None:
    containers.freeze(options.id, True)


def _resume(containers: Containers, options: argparse.Namespace) -> None:
    containers.freeze(options.id, False)


def _ps(containers: Containers, options: argparse.Namespace) -> None:
    print(json.dumps(containers.pids(options.id)))  # noqa: T201


def _update(containers: Containers, options: argparse.Namespace) -> None:
    if options.resources == "-":
        resources = json.load(sys.stdin)
    else:
        with open(options.resources) as file:
            resources = json.load(file)
    containers.update(options.id, resources)


def _list(containers: Containers, options: argparse.Namespace) -> None:
    rows = containers.all()
    if options.format == "json":
        print(json.dumps(rows))  # noqa: T201
        return
    if options.quiet:
        print("\n".join(row["id"] for row in rows))  # noqa: T201
        return
    print(f"{'ID':<24} {'PID':<8} {'STATUS':<9} BUNDLE")  # noqa: T201
    for row in rows:
        print(f"{row['id']:<24} {row.get('pid', 0):<8} {row['status']:<9} {row['bundle']}")  # noqa: T201


def _spec(containers: Containers, options: argparse.Namespace) -> None:
    with open(f"{options.bundle}/config.json", "x") as file:
        json.dump(bundles.template(), file, indent=2)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
