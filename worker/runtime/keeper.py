"""The keeper: parent of all containers of one daemon.

    python -I -S keeper.py RUN_DIR CONTAINERS_DIR READY_FD CGROUP_ROOT OPEN_FILES

One process, one thread, only the standard library. It starts containers, holds their stdio, writes
their logs, reaps them and tells the daemon over RUN_DIR/keeper.sock; the daemon may come and go.
Each container has a folder below CONTAINERS_DIR with its config.json; the keeper adds its record
and its log. It ends when the daemon has taken its leave, or has been away for a while, and nothing
runs.

Requests are objects with `op` and `n`; replies carry `n` and either `ok` or `error`. Events carry
`event`. What an op takes and gives stands at its method.
"""

import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # -I leaves the script's own folder out
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from worker.runtime import adoption, cgroups, child, launch, logfile, plan, record, relay, wire
from worker.runtime import syscalls as sc
from worker.runtime.held import Container, Ends, Process, Refusal
from worker.runtime.link import Link
from worker.runtime.reactor import READ, Reactor
from worker.runtime.steps import Plan
from worker.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from worker.runtime.foreign import Foreign

SOCKET = "keeper.sock"
_LONELY_S = 20.0  # how long to wait for a daemon that is gone, when nothing runs
_ANSWERED_S = 0.003  # a start's answer has left the daemon, which may be waiting for this core
_LIST_RETRY_S = 0.01
_LIST_ATTEMPTS = 500


class Keeper:
    """The operations. `link` brings them in, `supervisor` follows what they start."""

    def __init__(
        self, run_dir: str, directory: str, hierarchy: cgroups.Hierarchy, server: socket.socket
    ) -> None:
        self._run_dir = run_dir
        self._directory = directory
        self._foreign: Foreign | None = None
        self._hierarchy = hierarchy
        self._launcher = launch.Launcher(hierarchy)
        self._reactor = Reactor()
        self._link = Link(self._reactor, server, self._handle, self._on_daemon_gone)
        self._supervisor = Supervisor(self._reactor, hierarchy, self._link)
        self._containers = self._supervisor.containers
        self._waiting_viewers: dict[str, relay.Relay] = {}  # attached before the start
        self._grown: set[str] = set()  # logs with news in this turn
        self._started = ""  # the last container, until a child is made ready for the next

    def run(self) -> None:
        self._link.open()
        adoption.adopt_all(self._directory, self._supervisor, self._new_relay, self._others)
        self._reactor.later(_LONELY_S, self._check_lonely)
        self._reactor.run(self._after_turn)
        self._supervisor.discard_parents()

    def _handle(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        op = request.get("op", "")
        action: Callable[..., dict[str, Any] | None] | None = getattr(self, f"op_{op}", None)
        if action is None:
            raise Refusal(f"the keeper knows no operation {op!r}")
        return action(request, fds)

    def _on_daemon_gone(self) -> None:
        for container in self._containers.values():
            container.followed = False
        self._reactor.later(_LONELY_S, self._check_lonely)

    def _after_turn(self) -> None:
        for identity in self._grown:
            self._link.send({"event": "log", "container": identity})
        self._grown.clear()
        if self._started and self._supervisor.settled:
            folder, self._started = self._started, ""
            self._reactor.later(_ANSWERED_S, lambda: self._get_ready(folder))
        if self._link.left and self._supervisor.idle:
            self._reactor.running = False

    def _get_ready(self, folder: str) -> None:
        """For a start like that of the container in `folder`."""
        self._launcher.replenish()
        with contextlib.suppress(OSError, ValueError):
            adoption.read_plan(folder)  # the fork shares memory; what this writes to is copied now

    def _check_lonely(self) -> None:
        if self._link.connected:
            return
        if self._supervisor.idle:
            self._reactor.running = False
        else:
            self._reactor.later(_LONELY_S, self._check_lonely)

    # --- operations

    def op_hello(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"pid": os.getpid(), "cgroup": self._hierarchy.version}

    def op_bye(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The daemon stops in good order. The keeper stays only for what runs."""
        self._link.left = True
        return {}

    def op_list(self, request: dict[str, Any], fds: list[int]) -> None:
        """One `container` event for each that runs or whose end was not told, then the reply.

        What another daemon began is waited for: it may yet fail.
        """
        self._list(request["n"], self._link.session, _LIST_ATTEMPTS)

    def _list(self, number: int, session: int, attempts: int) -> None:
        if session != self._link.session:
            return
        if attempts and not self._supervisor.settled:
            left = attempts - 1
            self._reactor.later(_LIST_RETRY_S, lambda: self._list(number, session, left))
            return
        for container in self._containers.values():
            if container.record is not None:
                self._link.send(self._supervisor.describe("container", container))
        self._link.send({"n": number, "ok": {}})

    def op_start(self, request: dict[str, Any], fds: list[int]) -> None:
        """`container`; one descriptor, if its network is yet to be made (see `Launcher.start`).

        Reply: pid, started_ns, once the process has executed.
        """
        identity = request["container"]
        present = self._containers.get(identity)
        if present is not None and present.process is not None:
            raise Refusal(f"container {identity} is running already")
        folder = f"{self._directory}/{identity}"
        steps = adoption.read_plan(folder)
        self._check_required(steps)
        # A viewer may have come before the start; the folder's old record is overwritten below.
        stdio = self._waiting_viewers.pop(identity, None) or self._new_relay(identity)
        container = Container(identity, folder, stdio)
        adoption.prepare(container, steps)
        self._containers[identity] = container
        self._started = folder
        try:
            self._start(container, steps, request["n"], fds[0] if fds else -1)
        except (OSError, ValueError):
            stdio.finish()
            self._supervisor.leave_cgroup(container)
            del self._containers[identity]
            raise

    def _check_required(self, steps: Plan) -> None:
        """Whose namespaces are entered must run, with the pid that the paths name. Nothing ends
        before this request is done: it is reaped here."""
        processes = [self._running(other).process for other in steps.requires]
        known = {f"/proc/{process.pid}/" for process in processes if process is not None}
        paths = [join.path for join in steps.joins]
        paths += [mount.source for mount in steps.mounts if mount.kind == "shm-of"]
        for path in paths if known else ():
            if "/ns/" in path and not path.startswith(tuple(known)):
                raise Refusal(f"{path} is no longer of a container that runs; try again")

    def _start(self, container: Container, steps: Plan, number: int, connected: int) -> None:
        self._supervisor.parents.add(os.path.dirname(steps.cgroup))
        log = None
        if steps.log is not None:
            log = logfile.Writer(f"{container.folder}/{logfile.NAME}", *steps.log)
        container.relay.log_to(log)
        ends = Ends()
        try:
            if steps.runtime:
                self._start_foreign(container, steps, number, ends, connected)
                return
            stdio = self._stdio(container, steps, ends)
            report, reported = ends.pipe()

            def make_cgroup() -> None:
                self._hierarchy.create(steps.cgroup, steps.resources)
                self._supervisor.watch_oom(container, steps)

            pid, pidfd = self._launcher.start(
                steps, stdio, reported, make_cgroup, connected=connected
            )
            ends.keep(report)
        finally:
            ends.close()
        process = Process(pid, pidfd, report)
        process.number, process.session = number, self._link.session
        self._supervisor.begin(container, process)

    def _start_foreign(
        self, container: Container, steps: Plan, number: int, ends: Ends, connected: int
    ) -> None:
        if steps.process.tty:
            null = ends.add(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            stdio = child.Stdio(null, null, null)
        else:
            stdio = self._stdio(container, steps, ends)
        self._others().start(container, steps, stdio, number, connected)

    def _others(self) -> "Foreign":
        from worker.runtime.foreign import Foreign  # loaded only where another runtime is used

        if self._foreign is None:
            self._foreign = Foreign(
                self._run_dir, self._reactor, self._launcher, self._supervisor, self._link,
                self._take_terminal,
            )  # fmt: skip
        return self._foreign

    def _stdio(self, container: Container, steps: Plan, ends: Ends) -> child.Stdio:
        """The child's ends, closed by `ends` after the fork; ours are given to the relay."""
        once = steps.stdin == "once"
        if steps.process.tty:
            null = ends.add(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends.add(theirs.detach())
            self._reactor.watch(ours.fileno(), READ, lambda _: self._take_terminal(container, ours))
            return child.Stdio(null, null, null, ends.last)
        fifos = relay.make_fifos(container.folder)
        for fd in fifos.values():
            ends.add(fd)
        container.relay.connect(relay.open_fifos(container.folder))
        if steps.stdin:
            theirs_in, ours_in = os.pipe()
            ends.add(theirs_in)
            container.relay.connect_input(ours_in, once)
        else:
            theirs_in = ends.add(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        return child.Stdio(theirs_in, fifos[logfile.STDOUT], fifos[logfile.STDERR])

    def _take_terminal(self, container: Container, channel: socket.socket) -> None:
        self._reactor.forget(channel.fileno())
        _, fds, _, _ = socket.recv_fds(channel, 16, 1)
        channel.close()
        if fds:
            os.set_inheritable(fds[0], False)
            container.relay.connect_terminal(fds[0])

    def op_exec(self, request: dict[str, Any], fds: list[int]) -> None:
        """`container`, `exec`, `process`, `notes`; descriptors: stdin, stdout, stderr, or one
        socket to which a terminal's master is sent. Reply: pid."""
        container = self._running(request["container"])
        assert container.process is not None
        steps = plan.process(request["process"], request.get("notes") or {})
        ends = Ends()
        try:
            if steps.tty:
                null = ends.add(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                stdio = child.Stdio(null, null, null, fds[0])
            else:
                stdio = child.Stdio(*fds[:3])
            report, reported = ends.pipe()
            pid, pidfd = self._launcher.execute(
                steps, container.process.pidfd, container.cgroup, stdio, reported
            )
            ends.keep(report)
        finally:
            ends.close()
        process = Process(pid, pidfd, report)
        process.number, process.session = request["n"], self._link.session
        self._supervisor.begin_exec(container, request["exec"], process)

    def op_signal(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`container`, `signal`, and `exec` for one of its other processes."""
        container = self._running(request["container"])
        process = container.process
        if name := request.get("exec"):
            process = container.execs.get(name)
        if process is None:
            raise Refusal(f"exec {name} is not running")
        if process.pidfd < 0:
            return {}  # it has ended, and its runtime is about to forget it
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, request["signal"])
        return {}

    def op_attach(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`container`, `stdin`, `streams`; one descriptor, SOCK_SEQPACKET. Also before a start."""
        identity = request["container"]
        container = self._containers.get(identity)
        connection = socket.socket(fileno=os.dup(fds[0]))
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        if container is not None and container.process is not None:
            stdio = container.relay
        else:
            left = [name for name, r in self._waiting_viewers.items() if not r.attached]
            for name in left:
                del self._waiting_viewers[name]
            stdio = self._waiting_viewers.setdefault(identity, self._new_relay(identity))
            stdio.keep_input()
        stdio.attach(connection, frozenset(request["streams"]), bool(request.get("stdin")))
        return {}

    def op_resize(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._running(request["container"]).relay.resize(request["rows"], request["columns"])
        return {}

    def op_follow(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`container`, `on`: whether to send a `log` event when its log has grown."""
        container = self._containers.get(request["container"])
        if container is not None:
            container.followed = bool(request["on"])
        return {}

    def op_forget(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`container`: the daemon knows how it ended."""
        identity = request["container"]
        container = self._containers.get(identity)
        if container is not None and container.process is None:
            del self._containers[identity]
            record.forget(container.folder)
        if request.get("removed") and (stdio := self._waiting_viewers.pop(identity, None)):
            stdio.finish()
        return {}

    def _running(self, identity: str) -> Container:
        container = self._containers.get(identity)
        if container is None or container.process is None:
            raise Refusal(f"container {identity} is not running")
        return container

    def _new_relay(self, identity: str) -> relay.Relay:
        return relay.Relay(self._reactor, lambda: self._on_output(identity))

    def _on_output(self, identity: str) -> None:
        container = self._containers.get(identity)
        if container is not None and container.followed:
            self._grown.add(identity)


def main() -> int:
    run_dir, directory, ready, root = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    open_files = int(sys.argv[5])
    if os.fork():  # nobody's child but init's: the daemon may end without leaving a zombie
        os._exit(0)
    os.setsid()
    os.closerange(3, ready)
    os.closerange(ready + 1, 1 << 16)
    lock = os.open(f"{run_dir}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(ready, b"another keeper serves this run directory")
        return 3
    sc.set_name("shoal-keeper")  # it was executed by a descriptor's number
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    sc.trim_allocator()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files:  # what the launcher is to find; the daemon has raised its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(open_files, most), most))
    try:
        keeper = Keeper(run_dir, directory, cgroups.detect(root), wire.listen(run_dir, SOCKET))
    except OSError as error:
        os.write(ready, str(error).encode()[:1000])
        return 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.disable()
    gc.freeze()
    os.write(ready, b"ready")
    os.close(ready)
    keeper.run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{run_dir}/{SOCKET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
