"""The keeper: parent of all containers of one daemon.

    python -I -S keeper.py RUN_DIR CONTAINERS_DIR READY_FD

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
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":  # -I leaves the script's own folder out
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from worker.runtime import cgroups, launch, logfile, plan, record, relay, wire
from worker.runtime import syscalls as sc
from worker.runtime.reactor import READ, URGENT, Reactor

SOCKET = "keeper.sock"
_LONELY_S = 20.0  # how long to wait for a daemon that is gone, when nothing runs
_WAITING_MESSAGES = 4096
_REAP_RETRY_S = 0.02
_LIST_RETRY_S = 0.01
_ENDS_TO_COLLECT = 32


class Refusal(Exception):
    """An operation that cannot be done. `code` is the exit code for a start, 0 otherwise."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Process:
    """One child: a container's first process or an exec."""

    def __init__(self, pid: int, pidfd: int, report: int = -1) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.report = report
        self.number = 0  # of the request that waits for the start …
        self.session = 0  # … and the daemon's connection that it came by
        self.failure: launch.Failure | None = None
        self.attempts = 0  # to learn the exit code of an adopted process
        self.mine = True  # False: adopted, so another process reaps it


class Container:
    def __init__(self, identity: str, folder: str, stdio: relay.Relay) -> None:
        self.id = identity
        self.folder = folder
        self.relay = stdio
        self.process: Process | None = None
        self.record: record.Record | None = None
        self.cgroup = ""
        self.oom: tuple[int, ...] = ()
        self.followed = False
        self.execs: dict[str, Process] = {}


class Keeper:
    def __init__(self, directory: str, hierarchy: cgroups.Hierarchy, server: socket.socket) -> None:
        self._directory = directory
        self._hierarchy = hierarchy
        self._server = server
        self._launcher = launch.Launcher(hierarchy)
        self._reactor = Reactor()
        self._containers: dict[str, Container] = {}
        self._waiting_viewers: dict[str, relay.Relay] = {}  # attached before the start
        self._daemon: socket.socket | None = None
        self._outbox: list[dict[str, Any]] = []
        self._session = 0  # counts connections: an answer goes only to who asked
        self._left = False  # the daemon said goodbye
        self._ends = 0  # of processes
        self._boot_id = record.boot_id()
        self._parents: set[str] = set()  # cgroups above those of containers
        self._grown: set[str] = set()  # logs with news in this turn

    def run(self) -> None:
        self._reactor.watch(self._server.fileno(), READ, self._accept)
        self._adopt()
        self._reactor.later(_LONELY_S, self._check_lonely)
        self._reactor.run(self._after_turn)
        for parent in self._parents:
            self._hierarchy.discard_empty(parent)

    # --- the daemon

    def _accept(self, _: int) -> None:
        try:
            connection, _address = self._server.accept()
        except BlockingIOError:
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", credentials)[1] != os.getuid():
            connection.close()
            return
        self._drop_daemon()
        self._daemon, self._left = wire.enlarge(connection), False
        self._session += 1
        self._reactor.watch(connection.fileno(), READ, self._on_daemon)

    def _drop_daemon(self) -> None:
        if self._daemon is None:
            return
        self._reactor.forget(self._daemon.fileno())
        self._daemon.close()
        self._daemon, self._outbox = None, []
        for container in self._containers.values():
            container.followed = False
        self._reactor.later(_LONELY_S, self._check_lonely)

    def _on_daemon(self, events: int) -> None:
        assert self._daemon is not None
        if events & select.EPOLLOUT:
            self._flush()
            if self._daemon is None or not events & ~select.EPOLLOUT:
                return
        for _ in range(32):  # others get their turn too
            try:
                request, fds = wire.receive(self._daemon)
            except BlockingIOError:
                return
            except (EOFError, OSError):
                self._drop_daemon()
                return
            self._handle(request, fds)
            if self._daemon is None:
                return

    def _handle(self, request: dict[str, Any], fds: list[int]) -> None:
        number, op = request.get("n", 0), request.get("op", "")
        action: Callable[..., Any] | None = getattr(self, f"op_{op}", None)
        try:
            if action is None:
                raise Refusal(f"the keeper knows no operation {op!r}")
            answer = action(request, fds)
        except Refusal as error:
            self._fail(number, str(error), error.code)
        except (OSError, ValueError, KeyError) as error:
            text = error.strerror if isinstance(error, OSError) else None
            self._fail(number, text or str(error), 128)
        else:
            if answer is not None:
                self._send({"n": number, "ok": answer})
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _fail(self, number: int, message: str, code: int) -> None:
        self._send({"n": number, "error": message, "code": code})

    def _send(self, message: dict[str, Any]) -> None:
        if self._daemon is None:
            return
        self._outbox.append(message)
        if len(self._outbox) == 1:
            self._flush()
        elif len(self._outbox) > _WAITING_MESSAGES:
            self._drop_daemon()  # it will come back and ask for everything

    def _flush(self) -> None:
        assert self._daemon is not None
        sent = 0
        try:
            for message in self._outbox:
                wire.send(self._daemon, message)
                sent += 1
        except BlockingIOError:
            del self._outbox[:sent]
            self._reactor.change(self._daemon.fileno(), READ | select.EPOLLOUT)
        except OSError:
            self._drop_daemon()
        else:
            self._outbox.clear()
            self._reactor.change(self._daemon.fileno(), READ)

    def _after_turn(self) -> None:
        for identity in self._grown:
            self._send({"event": "log", "container": identity})
        self._grown.clear()
        if self._left and self._idle():
            self._reactor.running = False

    def _idle(self) -> bool:
        return all(container.process is None for container in self._containers.values())

    def _check_lonely(self) -> None:
        if self._daemon is None and self._idle():
            self._reactor.running = False
        elif self._daemon is None:
            self._reactor.later(_LONELY_S, self._check_lonely)

    # --- operations

    def op_hello(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"pid": os.getpid(), "cgroup": self._hierarchy.version}

    def op_bye(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The daemon stops in good order. The keeper stays only for what runs."""
        self._left = True
        return {}

    def op_list(self, request: dict[str, Any], fds: list[int]) -> None:
        """One `container` event for each that runs or whose end was not told, then the reply.

        What another daemon began is waited for: it may yet fail.
        """
        self._list(request["n"], self._session)

    def _list(self, number: int, session: int, attempts: int = 500) -> None:
        if session != self._session:
            return
        processes = [c.process for c in self._containers.values() if c.process is not None]
        if attempts and any(p.report >= 0 or p.failure is not None for p in processes):
            again = attempts - 1
            self._reactor.later(_LIST_RETRY_S, lambda: self._list(number, session, again))
            return
        for container in self._containers.values():
            if container.record is not None:
                self._send(self._describe("container", container))
        self._send({"n": number, "ok": {}})

    def op_start(self, request: dict[str, Any], fds: list[int]) -> None:
        """`container`. Reply: pid, started_ns, once the process has executed."""
        identity = request["container"]
        present = self._containers.get(identity)
        if present is not None and present.process is not None:
            raise Refusal(f"container {identity} is running already")
        folder = f"{self._directory}/{identity}"
        steps = self._read_plan(folder)
        # A viewer may have come before the start; the folder's old record is overwritten below.
        stdio = self._waiting_viewers.pop(identity, None) or self._new_relay(identity)
        container = Container(identity, folder, stdio)
        container.cgroup = steps.cgroup
        self._containers[identity] = container
        try:
            self._start(container, steps, request["n"])
        except (OSError, ValueError):
            stdio.finish()
            self._leave_cgroup(container)
            del self._containers[identity]
            raise

    def _read_plan(self, folder: str) -> plan.Plan:
        with open(f"{folder}/config.json") as file:
            return plan.plan(json.load(file))

    def _start(self, container: Container, steps: plan.Plan, number: int) -> None:
        self._parents.add(os.path.dirname(steps.cgroup))
        self._hierarchy.create(steps.cgroup, steps.resources)
        self._watch_oom(container, steps)
        log = None
        if steps.log is not None:
            log = logfile.Writer(f"{container.folder}/{logfile.NAME}", *steps.log)
        container.relay.log_to(log)
        ends = _Ends()
        try:
            stdio = self._stdio(container, steps, ends)
            report, reported = ends.pipe()
            pid, pidfd = self._launcher.start(steps, stdio, reported)
            ends.keep(report)
        finally:
            ends.close()
        process = Process(pid, pidfd, report)
        process.number, process.session = number, self._session
        container.process = process
        self._watch(process, lambda _: self._started(container), lambda _: self._ended(container))
        container.record = record.Record(pid, record.start_time(pid), self._boot_id, time.time_ns())
        try:
            record.save(container.folder, container.record)
        except OSError as error:  # another keeper could not find it: it must not run
            process.failure = launch.Failure(128, f"cannot write its record: {error.strerror}")
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _stdio(self, container: Container, steps: plan.Plan, ends: "_Ends") -> launch.Stdio:
        """The child's ends, closed by `ends` after the fork; ours are given to the relay."""
        once = steps.stdin == "once"
        if steps.process.tty:
            null = ends.add(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ends.add(theirs.detach())
            self._reactor.watch(ours.fileno(), READ, lambda _: self._take_terminal(container, ours))
            return launch.Stdio(null, null, null, ends.last)
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
        return launch.Stdio(theirs_in, fifos[logfile.STDOUT], fifos[logfile.STDERR])

    def _take_terminal(self, container: Container, channel: socket.socket) -> None:
        self._reactor.forget(channel.fileno())
        _, fds, _, _ = socket.recv_fds(channel, 16, 1)
        channel.close()
        if fds:
            os.set_inheritable(fds[0], False)
            container.relay.connect_terminal(fds[0])

    def _watch(
        self, process: Process, started: Callable[[int], None], ended: Callable[[int], None]
    ) -> None:
        if process.report >= 0:
            self._reactor.watch(process.report, READ, started)
        self._reactor.watch(process.pidfd, READ, ended)

    def _watch_oom(self, container: Container, steps: plan.Plan) -> None:
        if (steps.resources.get("memory") or {}).get("limit"):
            container.oom = self._hierarchy.watch_oom(steps.cgroup)
            events = READ if self._hierarchy.version == 1 else URGENT
            self._reactor.watch(container.oom[0], events, lambda _: self._on_oom(container))

    def op_exec(self, request: dict[str, Any], fds: list[int]) -> None:
        """`container`, `exec`, `process`, `notes`; descriptors: stdin, stdout, stderr, or one
        socket to which a terminal's master is sent. Reply: pid."""
        container = self._running(request["container"])
        assert container.process is not None
        steps = plan.process(request["process"], request.get("notes") or {})
        ends = _Ends()
        try:
            if steps.tty:
                null = ends.add(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                stdio = launch.Stdio(null, null, null, fds[0])
            else:
                stdio = launch.Stdio(*fds[:3])
            report, reported = ends.pipe()
            pid, pidfd = self._launcher.execute(
                steps, container.process.pidfd, container.cgroup, stdio, reported
            )
            ends.keep(report)
        finally:
            ends.close()
        name, process = request["exec"], Process(pid, pidfd, report)
        process.number, process.session = request["n"], self._session
        container.execs[name] = process
        self._watch(
            process,
            lambda _: self._exec_started(container, name),
            lambda _: self._exec_ended(container, name),
        )

    def op_signal(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`container`, `signal`, and `exec` for one of its other processes."""
        container = self._running(request["container"])
        process = container.process
        if name := request.get("exec"):
            process = container.execs.get(name)
        if process is None:
            raise Refusal(f"exec {name} is not running")
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

    # --- what happens to processes

    def _started(self, container: Container) -> None:
        """The report pipe has closed: the process has executed, or said why not."""
        process = container.process
        assert process is not None
        if self._has_started(process) and process.session == self._session:
            self._send({"n": process.number, "ok": self._describe("started", container)})

    def _has_started(self, process: Process) -> bool:
        """A failure is answered when the child is reaped, so that the next start finds no trace."""
        self._reactor.forget(process.report)
        text = os.read(process.report, 4096)
        os.close(process.report)
        process.report = -1
        process.failure = process.failure or launch.failure(text)
        return process.failure is None

    def _ended(self, container: Container) -> None:
        process = container.process
        assert process is not None
        if process.report >= 0:
            self._started(container)
        code = self._reap(process, container.record)
        if code is None and process.mine:
            return
        if code is None and self._retry_reap(process, lambda: self._ended(container)):
            return
        self._close(process)
        container.process = None
        container.relay.finish()
        oom = self._oom_kills(container) > 0
        self._leave_cgroup(container)
        if process.failure is not None:
            self._start_failed(container, process.failure, process)
            return
        assert container.record is not None
        container.record = container.record._replace(
            finished_ns=time.time_ns(), exit_code=code, oom_killed=oom
        )
        with contextlib.suppress(OSError):  # a full disk: the daemon is told nevertheless
            record.save(container.folder, container.record)
        self._send(self._describe("exit", container))

    def _start_failed(
        self, container: Container, failure: launch.Failure, process: Process
    ) -> None:
        record.forget(container.folder)
        del self._containers[container.id]
        if process.session == self._session:
            self._fail(process.number, failure.message, failure.code)
        elif container.record is not None:  # another daemon was told that it runs
            container.record = container.record._replace(
                finished_ns=time.time_ns(), exit_code=failure.code
            )
            self._send(self._describe("exit", container))

    def _reap(self, process: Process, kept: record.Record | None = None) -> int | None:
        """The exit code as a shell gives it; None if it is not to be known (yet)."""
        if process.mine:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid == 0:
                return None
        else:
            known = sc.pidfd_exit_status(process.pidfd)
            if known is None and kept is not None:
                known = record.zombie_status(kept)
            if known is None:
                return None
            status = known
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _retry_reap(self, process: Process, again: Callable[[], None]) -> bool:
        """An adopted process is reaped by another; the kernel tells its code only then."""
        process.attempts += 1
        if process.attempts > 50:
            return False
        self._reactor.forget(process.pidfd)
        self._reactor.later(_REAP_RETRY_S, again)
        return True

    def _close(self, process: Process) -> None:
        self._reactor.forget(process.pidfd)
        os.close(process.pidfd)
        self._ends += 1
        if self._ends % _ENDS_TO_COLLECT == 0:
            gc.collect()  # the automatic one is off: it would copy pages in every child

    def _exec_started(self, container: Container, name: str) -> None:
        process = container.execs[name]
        if self._has_started(process) and process.session == self._session:
            self._send({"n": process.number, "ok": {"pid": process.pid}})

    def _exec_ended(self, container: Container, name: str) -> None:
        process = container.execs[name]
        if process.report >= 0:
            self._exec_started(container, name)
        code = self._reap(process)
        if code is None:
            return
        self._close(process)
        del container.execs[name]
        if process.failure is not None:
            if process.session == self._session:
                self._fail(process.number, process.failure.message, process.failure.code)
            return
        self._send({"event": "exec", "container": container.id, "exec": name, "code": code})

    def _on_oom(self, container: Container) -> None:
        if self._hierarchy.version == 1:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(container.oom[0])
        else:
            os.pread(container.oom[0], 4096, 0)
        self._send({"event": "oom", "container": container.id})

    def _oom_kills(self, container: Container) -> int:
        with contextlib.suppress(OSError):
            return self._hierarchy.oom_kills(container.cgroup)
        return 0

    def _leave_cgroup(self, container: Container) -> None:
        for fd in container.oom:
            self._reactor.forget(fd)
            os.close(fd)
        container.oom = ()
        self._remove_cgroup(container.cgroup, container.id)

    def _remove_cgroup(self, path: str, identity: str, attempts: int = 100) -> None:
        """Repeated for a while: the kernel lets go of dead processes when it has time."""
        again = self._containers.get(identity)
        if again is not None and again.process is not None:
            return  # started anew meanwhile, in the same cgroup
        try:
            gone = self._hierarchy.remove(path)
        except OSError:
            return
        if not gone and attempts:
            self._reactor.later(0.02, lambda: self._remove_cgroup(path, identity, attempts - 1))

    def _describe(self, event: str, container: Container) -> dict[str, Any]:
        assert container.record is not None
        kept = container.record
        return {
            "event": event,
            "container": container.id,
            "running": container.process is not None,
            "pid": kept.pid,
            "started_ns": kept.started_ns,
            "finished_ns": kept.finished_ns,
            "code": kept.exit_code,
            "oom": kept.oom_killed,
        }

    # --- after another keeper

    def _adopt(self) -> None:
        for entry in os.scandir(self._directory):
            kept = record.load(entry.path) if entry.is_dir(follow_symlinks=False) else None
            if kept is None:
                continue
            container = Container(entry.name, entry.path, self._new_relay(entry.name))
            container.record = kept
            with contextlib.suppress(OSError, ValueError):
                container.cgroup = self._read_plan(entry.path).cgroup
                self._parents.add(os.path.dirname(container.cgroup))
            self._containers[entry.name] = container
            if not (record.lives(kept) and self._adopt_living(container, kept)):
                self._adopt_dead(container, kept)

    def _adopt_living(self, container: Container, kept: record.Record) -> bool:
        try:
            pidfd = sc.pidfd_open(kept.pid)
            if record.start_time(kept.pid) != kept.start_time:
                os.close(pidfd)
                return False
            steps = self._read_plan(container.folder)
        except (OSError, ValueError):
            return False
        process = Process(kept.pid, pidfd)
        process.mine = False
        container.process = process
        path = f"{container.folder}/{logfile.NAME}"
        logfile.repair(path)
        log = None if steps.log is None else logfile.Writer(path, *steps.log)
        container.relay.log_to(log)
        if not steps.process.tty:
            container.relay.connect(relay.open_fifos(container.folder))
        with contextlib.suppress(OSError):
            self._watch_oom(container, steps)
        self._watch(process, lambda _: None, lambda _: self._ended(container))
        return True

    def _adopt_dead(self, container: Container, kept: record.Record) -> None:
        """It ended while no keeper looked. What its pipes still hold is gone with their readers."""
        logfile.repair(f"{container.folder}/{logfile.NAME}")
        if not kept.finished_ns:
            oom = self._oom_kills(container) > 0
            container.record = kept._replace(finished_ns=time.time_ns(), oom_killed=oom)
            record.save(container.folder, container.record)
        if container.cgroup:
            self._leave_cgroup(container)


class _Ends:
    """Descriptors for a child, closed here once it has them."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self.last = -1

    def add(self, fd: int) -> int:
        self._fds.append(fd)
        self.last = fd
        return fd

    def pipe(self) -> tuple[int, int]:
        ours, theirs = os.pipe()
        return self.add(ours), self.add(theirs)

    def keep(self, fd: int) -> None:
        self._fds.remove(fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def main() -> int:
    run_dir, directory, ready = sys.argv[1], sys.argv[2], int(sys.argv[3])
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
    try:
        keeper = Keeper(directory, cgroups.detect(), wire.listen(run_dir, SOCKET))
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
