"""Containers from OCI bundles, without a daemon or a keeper: what `shoal-runtime` does.

Each has a folder below the runtime's root with its state. A container that is created waits in its
own process until it is started. Who calls is answerable for reaping it.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from worker.runtime import bundle as bundles
from worker.runtime import cgroups, child, execution, hooks, launch, plan, record, seccomp_profile
from worker.runtime import syscalls as sc
from worker.runtime.steps import Plan

_STATE, _CONFIG, _FIFO, _FILTER = "state.json", "config.json", "start.fifo", "filter.bpf"
_GONE_S = 10.0


class RuntimeFailure(Exception):
    """One line for the user. `code`: the exit code it comes to."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Kept(NamedTuple):
    """`state.json`."""

    id: str
    bundle: str
    pid: int
    start_time: int
    boot_id: str
    created_ns: int

    @property
    def _record(self) -> record.Record:
        return record.Record(self.pid, self.start_time, self.boot_id, self.created_ns)

    @property
    def lives(self) -> bool:
        return bool(self.pid) and record.lives(self._record)


class Console(NamedTuple):
    """What `create` is given besides the bundle."""

    socket: str = ""
    pid_file: str = ""
    preserved: int = 0


class Containers:
    """All containers below `root`."""

    def __init__(self, root: str, hierarchy: cgroups.Hierarchy) -> None:
        self._root = root
        self._hierarchy = hierarchy

    def _folder(self, identity: str) -> str:
        return f"{self._root}/{bundles.check_id(identity)}"

    # --- create and start

    def create(self, identity: str, bundle: str, console: Console) -> int:
        """Returns its pid once all is prepared. Raises RuntimeFailure, OSError, ValueError; nothing
        is left then."""
        folder = self._folder(identity)
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            raise RuntimeFailure(f"container {identity} exists already") from None
        config: dict[str, Any] = {}
        try:
            config = self._read_bundle(folder, bundle, identity)
            return self._create(folder, identity, bundle, config, console)
        except BaseException:
            self._clear(folder, config)
            raise

    def _read_bundle(self, folder: str, bundle: str, identity: str) -> dict[str, Any]:
        with open(f"{bundle}/config.json") as file:
            given = json.load(file)
        config = bundles.convert(given, bundle, identity, f"{folder}/{_FILTER}")
        hooks.check(config.get("hooks") or {})
        if profile := (config.get("linux") or {}).get("seccomp"):
            with open(f"{folder}/{_FILTER}", "wb") as file_:
                file_.write(seccomp_profile.compile_oci(profile))
        with open(f"{folder}/{_CONFIG}", "w") as kept:
            json.dump(config, kept)
        return config

    def _create(
        self, folder: str, identity: str, bundle: str, config: dict[str, Any], console: Console
    ) -> int:
        steps = plan.plan(config)
        if steps.process.tty and not console.socket:
            raise RuntimeFailure("process.terminal is true: give --console-socket")
        os.mkfifo(f"{folder}/{_FIFO}", 0o600)
        known = hooks_of(config)
        shown = bundles.state(identity, "creating", 0, bundle, notes_of(config))
        with contextlib.ExitStack() as stack:
            ready, go = _pipe(stack)
            report, reported = _pipe(stack)
            start = stack.enter_context(_opened(f"{folder}/{_FIFO}", os.O_RDWR))
            stdio = _stdio(stack, steps.process.tty, console.socket)
            gate = hooks.Gate(ready, start, known, shown, console.preserved)
            pid, pidfd = launch.Launcher(self._hierarchy).start(
                steps,
                stdio,
                reported,
                lambda: self._hierarchy.create(steps.cgroup, steps.resources),
                gate,
            )
            stack.callback(os.close, pidfd)
            os.close(reported)
            try:
                self._save(folder, identity, bundle, pid)
                hooks.run(known, "prestart", shown | {"pid": pid})
                hooks.run(known, "createRuntime", shown | {"pid": pid})
                os.write(go, b"g")
                _await_created(report)
                if console.pid_file:
                    _write_whole(console.pid_file, str(pid))
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        return pid

    def _save(self, folder: str, identity: str, bundle: str, pid: int) -> None:
        kept = Kept(identity, bundle, pid, record.start_time(pid), record.boot_id(), time.time_ns())
        _write_whole(f"{folder}/{_STATE}", json.dumps(kept._asdict()))

    def start(self, identity: str) -> list[str]:
        """Let a created container go; what its poststart hooks complain of. Raises
        RuntimeFailure."""
        kept, folder = self._kept(identity), self._folder(identity)
        if self._status(kept) != "created":
            raise RuntimeFailure(f"container {identity} is {self._status(kept)}, not created")
        try:
            fifo = os.open(f"{folder}/{_FIFO}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise RuntimeFailure(f"container {identity} has ended before its start") from None
        os.write(fifo, b"s")
        os.close(fifo)
        os.unlink(f"{folder}/{_FIFO}")
        config = self._config(identity)
        return hooks.run_leniently(hooks_of(config), "poststart", self._shown(kept, config))

    # --- look

    def _kept(self, identity: str) -> Kept:
        try:
            with open(f"{self._folder(identity)}/{_STATE}") as file:
                return Kept(**json.load(file))
        except (FileNotFoundError, ValueError, TypeError):
            raise RuntimeFailure(f"container {identity} does not exist") from None

    def _config(self, identity: str) -> dict[str, Any]:
        with open(f"{self._folder(identity)}/{_CONFIG}") as file:
            config: dict[str, Any] = json.load(file)
        return config

    def process(self, identity: str) -> dict[str, Any]:
        """OCI's `process` of its first one."""
        process: dict[str, Any] = self._config(identity).get("process") or {}
        return process

    def plan(self, identity: str) -> Plan:
        return plan.plan(self._config(identity))

    def _status(self, kept: Kept) -> str:
        if not kept.lives:
            return "stopped"
        return "created" if os.path.exists(f"{self._folder(kept.id)}/{_FIFO}") else "running"

    def _shown(self, kept: Kept, config: dict[str, Any]) -> dict[str, Any]:
        return bundles.state(kept.id, self._status(kept), kept.pid, kept.bundle, notes_of(config))

    def state(self, identity: str) -> dict[str, Any]:
        """As OCI's `state` prints it. Raises RuntimeFailure."""
        return self._shown(self._kept(identity), self._config(identity))

    def all(self) -> list[dict[str, Any]]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self._root), key=lambda entry: entry.name):
                with contextlib.suppress(RuntimeFailure, OSError):
                    created = self._kept(entry.name).created_ns
                    found.append(self.state(entry.name) | {"created_ns": created})
        return found

    def living(self, identity: str) -> Kept:
        """Raises RuntimeFailure if it does not live."""
        kept = self._kept(identity)
        if not kept.lives:
            raise RuntimeFailure(f"container {identity} is not running")
        return kept

    def pids(self, identity: str) -> "list[int]":
        return self._hierarchy.pids(self.plan(identity).cgroup)

    # --- change and end

    def kill(self, identity: str, number: int, everyone: bool = False) -> None:
        """Raises RuntimeFailure if it does not live."""
        if everyone:
            for pid in self.pids(identity):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return
        kept = self.living(identity)
        with _pidfd(kept.pid) as pidfd:
            if kept.lives:  # the pid is still its own
                signal.pidfd_send_signal(pidfd, number)

    def freeze(self, identity: str, frozen: bool) -> None:
        self.living(identity)
        self._hierarchy.freeze(self.plan(identity).cgroup, frozen)

    def update(self, identity: str, resources: dict[str, Any]) -> None:
        self.living(identity)
        self._hierarchy.update(self.plan(identity).cgroup, resources)

    def execute(self, identity: str, process: dict[str, Any], console: Console) -> tuple[int, int]:
        """Start another process in it: (pid, pidfd)."""
        kept, config = self.living(identity), self._config(identity)
        steps = plan.process(process, config["annotations"])
        if steps.tty and not console.socket:
            raise RuntimeFailure("the process wants a terminal: give --console-socket")
        with contextlib.ExitStack() as stack:
            report, reported = _pipe(stack)
            stdio = _stdio(stack, steps.tty, console.socket)
            container = stack.enter_context(_pidfd(kept.pid))
            pid, pidfd = launch.Launcher(self._hierarchy).execute(
                steps, container, self.plan(identity).cgroup, stdio, reported
            )
            os.close(reported)
            failure = execution.failure(os.read(report, 4096))
            if failure is not None:
                os.waitpid(pid, 0)
                raise RuntimeFailure(failure.message, failure.code)
            if console.pid_file:
                _write_whole(console.pid_file, str(pid))
        return pid, pidfd

    def delete(self, identity: str, force: bool) -> "list[str]":
        """What its poststop hooks complain of. Raises RuntimeFailure while it lives, unless forced:
        then it is killed."""
        kept, folder = self._kept(identity), self._folder(identity)
        if kept.lives:
            if not force:
                status = self._status(kept)
                raise RuntimeFailure(f"container {identity} is {status}: stop it, or use --force")
            self._kill(kept)
        config = self._config(identity)
        shown = self._shown(kept, config) | {"status": "stopped"}
        self._clear(folder, config)
        return hooks.run_leniently(hooks_of(config), "poststop", shown)

    def _kill(self, kept: Kept) -> None:
        with _pidfd(kept.pid) as pidfd:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not select.select([pidfd], [], [], _GONE_S)[0]:
                raise RuntimeFailure(f"container {kept.id} does not end")

    def _clear(self, folder: str, config: dict[str, Any]) -> None:
        path = (config.get("linux") or {}).get("cgroupsPath")
        if path:
            deadline = time.monotonic() + _GONE_S
            while not self._remove(path) and time.monotonic() < deadline:
                time.sleep(0.01)
            self._hierarchy.discard_empty(os.path.dirname(path))
        shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, path: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            if self._hierarchy.remove(path):
                return True
            self._hierarchy.kill(path)  # without a pid namespace of its own others may be left
        return False


def hooks_of(config: dict[str, Any]) -> hooks.Hooks:
    found: hooks.Hooks = config.get("hooks") or {}
    return found


def notes_of(config: dict[str, Any]) -> dict[str, str]:
    """The user's own annotations."""
    notes = config.get("annotations") or {}
    return {name: value for name, value in notes.items() if not name.startswith(plan.PREFIX)}


def _await_created(report: int) -> None:
    text = os.read(report, 4096)
    if text == hooks.CREATED:
        return
    failure = execution.failure(text)
    if failure is None:
        raise RuntimeFailure("the container's process ended before it was created")
    raise RuntimeFailure(failure.message, failure.code)


def _stdio(stack: contextlib.ExitStack, tty: bool, console: str) -> child.Stdio:
    """Our own, or a terminal whose master goes to who listens at `console`."""
    if not tty:
        return child.Stdio(0, 1, 2)
    null = stack.enter_context(_opened("/dev/null", os.O_RDWR))
    peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        peer.connect(console)
    except OSError as error:
        raise RuntimeFailure(f"--console-socket {console}: {error.strerror}") from error
    return child.Stdio(null, null, null, peer.fileno())


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for fd in ends:
        stack.callback(_close, fd)
    return ends


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    try:
        fd = sc.pidfd_open(pid)
    except ProcessLookupError:
        raise RuntimeFailure(f"process {pid} is gone") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _write_whole(path: str, text: str) -> None:
    temporary = f"{path}.new"
    with open(temporary, "w") as file:
        file.write(text)
    os.rename(temporary, path)
