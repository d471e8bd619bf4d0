"""Containers that another OCI runtime starts (`--runtime crun`): prepared, followed, reaped here.

The child mounts the overlay in a mount namespace of its own and executes the runtime there, so that
nothing is mounted on the machine. The runtime detaches; the container's process then becomes the
keeper's child, since the keeper is a subreaper, and is followed like any other. A process for an
exec is started by the built-in runtime.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from worker.runtime import child, execution, interior, launch, mounts, record, users
from worker.runtime import syscalls as sc
from worker.runtime.held import Container, Ends, Process
from worker.runtime.link import Link
from worker.runtime.plan import PREFIX, PlanError
from worker.runtime.reactor import READ, Reactor
from worker.runtime.steps import Plan
from worker.runtime.supervisor import Supervisor

FOLDER = "oci"  # in the container's own: the bundle, and what the runtime writes
_PID, _LOG, _CONFIG = "pid", "log", "config.json"
_STRAYS_S = 5.0
_VERSION = "1.0.2"


def configuration(
    config: dict[str, Any], account: users.Account, available: list[str]
) -> dict[str, Any]:
    """Our configuration as any OCI runtime takes it: without our annotations, with the user's
    numbers and with capabilities that the machine can give. Pure. Raises PlanError."""
    for mount in config.get("mounts") or ():
        if mount.get("type") == "shm-of":
            raise PlanError("another container's /dev/shm is shared by the built-in runtime only")
    mounts = [
        mount | {"options": [word for word in mount.get("options") or () if word != "idmap"]}
        for mount in config.get("mounts") or ()
    ]
    process, linux = dict(config["process"]), dict(config.get("linux") or {})
    process["user"] = {
        "uid": account.uid,
        "gid": account.gid,
        "additionalGids": list(account.groups),
    }
    if not any(line.startswith("HOME=") for line in process.get("env") or ()):
        process["env"] = [*(process.get("env") or ()), f"HOME={account.home}"]
    held = process.get("capabilities") or {}
    process["capabilities"] = {
        kind: [name for name in names if name in available] for kind, names in held.items()
    }
    if process.get("oomScoreAdj") is None:
        process.pop("oomScoreAdj", None)
    resources = linux.get("resources") or {}
    everything = {"allow": True, "access": "rwm"}  # others deny all devices where nothing is said
    linux["resources"] = resources | {"devices": resources.get("devices") or [everything]}
    linux["cgroupsPath"] = "/" + linux["cgroupsPath"].strip("/")
    plain = {key: value for key, value in config.items() if key != "hostname" or value}
    plain.pop("domainname", None)  # newer than the version that all runtimes take
    notes = config.get("annotations") or {}
    plain["annotations"] = {k: v for k, v in notes.items() if not k.startswith(PREFIX)}
    return plain | {"ociVersion": _VERSION, "mounts": mounts, "process": process, "linux": linux}


def complaint(log: str) -> execution.Failure:
    """What a runtime wrote of its failure, with the exit code that Docker gives for it. Pure."""
    messages = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal"):
                messages.append(str(entry.get("msg")))
    text = messages[-1] if messages else log.strip()[-500:] or "it said nothing of the reason"
    lower = text.lower()
    code = 128
    if "executable file not found" in lower or "no such file or directory" in lower:
        code = 127
    elif "permission denied" in lower or "is a directory" in lower:
        code = 126
    return execution.Failure(code, text)


class Foreign:
    """All that is done for other runtimes; made at the first start through one."""

    def __init__(
        self,
        run_dir: str,
        reactor: Reactor,
        launcher: launch.Launcher,
        supervisor: Supervisor,
        link: Link,
        take_terminal: Callable[[Container, socket.socket], None],
    ) -> None:
        self._take_terminal = take_terminal
        self._consoles: dict[str, socket.socket] = {}  # by container, while it starts
        self._run_dir = run_dir
        self._reactor = reactor
        self._launcher = launcher
        self._supervisor = supervisor
        self._link = link
        self._tools: dict[int, int] = {}  # pid -> pidfd of runtimes that clean up
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        reactor.later(_STRAYS_S, self._reap_strays)

    def start(
        self, container: Container, steps: Plan, stdio: child.Stdio, number: int, connected: int
    ) -> None:
        """Spawn the runtime, once the pipe `connected` (or -1) says that its network is there. The
        answer to request `number` comes when it has ended."""
        folder = f"{container.folder}/{FOLDER}"
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder, 0o700)
        self._delete_state(container.id, steps.runtime)
        console = self._listen(container) if steps.process.tty else ""
        command = self._command(steps.runtime, container.id, folder, console)
        ends = Ends()
        try:
            report, reported = ends.pipe()
            keeper = os.getpid()
            pid, pidfd = self._launcher.prepare(
                lambda: _become(container.folder, steps, stdio, command, connected, keeper),
                reported,
            )
            ends.keep(report)
        finally:
            ends.close()
        starter = Process(pid, pidfd, report)
        starter.number, starter.session = number, self._link.session
        container.process = starter
        self._reactor.watch(pidfd, READ, lambda _: self._done(container, steps))
        begun = record.Record(pid, record.start_time(pid), record.boot_id(), time.time_ns())
        record.save(container.folder, begun)  # so that another keeper looks for what came of it

    def _listen(self, container: Container) -> str:
        """For the terminal's master. The path is short, since a socket's is limited."""
        path = f"{self._run_dir}/c-{container.id[:12]}.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._consoles[container.id] = server
        try:
            server.bind(path)
            server.listen(1)
        except OSError:
            self._close_console(container)
            raise
        self._reactor.watch(server.fileno(), READ, lambda _: self._connected(container, server))
        return path

    def _connected(self, container: Container, server: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            channel, _ = server.accept()
            self._close_console(container)
            self._reactor.watch(
                channel.fileno(), READ, lambda _: self._take_terminal(container, channel)
            )

    def _close_console(self, container: Container) -> None:
        server = self._consoles.pop(container.id, None)
        if server is not None:
            self._reactor.forget(server.fileno())
            with contextlib.suppress(OSError):
                os.unlink(server.getsockname())
            server.close()

    def _root(self, runtime: str) -> str:
        root = f"{self._run_dir}/{os.path.basename(runtime)}"
        os.makedirs(root, mode=0o700, exist_ok=True)
        return root

    def _command(self, runtime: str, identity: str, folder: str, console: str) -> list[str]:
        words = [runtime, "--root", self._root(runtime)]
        words += ["--log", f"{folder}/{_LOG}", "--log-format", "json"]
        words += ["run", "--detach", "--bundle", folder, "--pid-file", f"{folder}/{_PID}"]
        if console:
            words += ["--console-socket", console]
        return [*words, identity]

    def _done(self, container: Container, steps: Plan) -> None:
        starter = container.process
        assert starter is not None
        status = os.waitpid(starter.pid, os.WNOHANG)
        if status[0] == 0:
            return
        self._reactor.forget(starter.pidfd)
        os.close(starter.pidfd)
        failure = execution.failure(os.read(starter.report, 4096))
        os.close(starter.report)
        starter.report = -1
        folder = f"{container.folder}/{FOLDER}"
        if failure is None and os.waitstatus_to_exitcode(status[1]) != 0:
            failure = complaint(_text(f"{folder}/{_LOG}"))
        process = None
        if failure is None:
            process = _open(_text(f"{folder}/{_PID}"))
            failure = None if process else execution.Failure(128, "the runtime left no process")
        if process is None or failure is not None:
            self._failed(container, steps, starter, failure or execution.Failure(128, ""))
            return
        process.number, process.session = starter.number, starter.session
        self.adopt(container, steps)
        self._supervisor.begin(container, process)
        with contextlib.suppress(OSError):
            self._supervisor.watch_oom(container, steps)
        if starter.session == self._link.session:
            answer = self._supervisor.describe("started", container)
            self._link.send({"n": starter.number, "ok": answer})

    def _failed(
        self, container: Container, steps: Plan, starter: Process, failure: execution.Failure
    ) -> None:
        self._close_console(container)

        def told() -> None:
            container.process = None
            record.forget(container.folder)
            container.relay.finish()
            self._supervisor.leave_cgroup(container)
            self._supervisor.containers.pop(container.id, None)
            if starter.session == self._link.session:
                self._link.fail(starter.number, failure.message, failure.code)

        self._delete(container, steps.runtime, told)

    # --- afterwards

    def adopt(self, container: Container, steps: Plan) -> None:
        """Its runtime is to forget it when it has ended."""
        container.on_end = lambda then: self._delete(container, steps.runtime, then)

    def discard(self, identity: str, steps: Plan) -> None:
        """It ended, or never began, while no keeper looked."""
        with contextlib.suppress(OSError):
            self._delete_state(identity, steps.runtime)

    def _delete_state(self, identity: str, runtime: str) -> None:
        """What an earlier start left, if a keeper died over it."""
        left = f"{self._root(runtime)}/{identity}"
        if os.path.isdir(left):
            pid = self._spawn_delete(identity, runtime)
            os.waitpid(pid, 0)
            shutil.rmtree(left, ignore_errors=True)

    def _delete(self, container: Container, runtime: str, then: Callable[[], None]) -> None:
        """Have the runtime forget it, then go on."""
        try:
            pid = self._spawn_delete(container.id, runtime)
            pidfd = sc.pidfd_open(pid)
        except OSError:  # it was uninstalled meanwhile
            then()
            return

        def ended(_: int) -> None:
            os.waitpid(pid, 0)
            self._reactor.forget(pidfd)
            os.close(pidfd)
            del self._tools[pid]
            then()

        self._tools[pid] = pidfd
        self._reactor.watch(pidfd, READ, ended)

    def _spawn_delete(self, identity: str, runtime: str) -> int:
        command = [runtime, "--root", self._root(runtime), "delete", "--force", identity]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
            return os.posix_spawn(runtime, command, os.environ, file_actions=actions)
        finally:
            os.close(null)

    def _reap_strays(self) -> None:
        """Whoever loses its parent and has no init of its own comes to be a subreaper's child."""
        known = set(self._tools)
        for container in self._supervisor.containers.values():
            processes = [container.process, *container.execs.values()]
            known |= {process.pid for process in processes if process is not None}
        with contextlib.suppress(ChildProcessError):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while (found := os.waitid(os.P_ALL, 0, options)) and found.si_pid not in known:
                os.waitpid(found.si_pid, os.WNOHANG)
        self._reactor.later(_STRAYS_S, self._reap_strays)


def find_left(container: Container, cgroup_pids: list[int]) -> record.Record | None:
    """The process of a container whose keeper died between its start and its record."""
    with contextlib.suppress(ValueError, OSError):
        pid = int(_text(f"{container.folder}/{FOLDER}/{_PID}"))
        if pid in cgroup_pids:
            return record.Record(pid, record.start_time(pid), record.boot_id(), 0)
    return None


def _become(
    folder: str,
    steps: Plan,
    stdio: child.Stdio,
    command: list[str],
    connected: int,
    keeper: int,
) -> None:
    """In the child: mount the root where only the runtime sees it, and execute that.

    The runtime dies with the keeper: what it made after another keeper had looked, nobody would
    know of.
    """
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for target, fd in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
        os.dup2(fd, target)
    sc.unshare(sc.CLONE_NEWNS)
    sc.make_private("/")
    with contextlib.suppress(OSError):  # crun refuses machines that have both versions of cgroups
        sc.unmount("/sys/fs/cgroup/unified", sc.MNT_DETACH)
    mounts.prepare_root(steps)
    account = interior.account_in(steps.process, steps.root)
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    available = interior.available_names()
    with open(f"{folder}/{FOLDER}/{_CONFIG}", "w") as file:
        json.dump(configuration(config, account, available), file)
    if connected >= 0:
        interior.await_network(connected)
    os.chdir("/")
    sc.close_on_exec_from(3)
    os.execve(command[0], command, {"PATH": os.environ.get("PATH", os.defpath)})


def _open(text: str) -> Process | None:
    """The process that a pid file names: our child by now, perhaps a dead one."""
    with contextlib.suppress(ValueError, OSError):
        pid = int(text)
        return Process(pid, sc.pidfd_open(pid))
    return None


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return file.read(1 << 16)
    return ""
