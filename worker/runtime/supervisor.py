"""Follows the keeper's processes: that they have started, how they end, what they leave."""

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from worker.runtime import cgroups, execution, record
from worker.runtime.held import Container, Process
from worker.runtime.link import Link
from worker.runtime.oomlog import Killed, OomLog
from worker.runtime.reactor import READ, URGENT, Reactor
from worker.runtime.steps import Plan

_REAP_RETRY_S = 0.02
_REAP_ATTEMPTS = 50
_ENDS_TO_COLLECT = 32
_OOM_LOOK_S = 0.01  # the kernel tells of the want of memory before it chooses whom to kill
_OOM_LOOKS = 20
_KILLED = 137
_REMOVE_RETRY_S = 0.02
_REMOVE_ATTEMPTS = 100


class Supervisor:
    """`containers`: all that run, and those whose end the daemon has not taken note of."""

    def __init__(self, reactor: Reactor, hierarchy: cgroups.Hierarchy, link: Link) -> None:
        self._reactor = reactor
        self._hierarchy = hierarchy
        self._link = link
        self.containers: dict[str, Container] = {}
        self.parents: set[str] = set()  # cgroups above those of containers
        self._boot_id = record.boot_id()
        self._ends = 0  # of processes
        self._oom_log = OomLog()
        self._leaving: set[str] = set()  # cgroups that some process has yet to leave

    @property
    def idle(self) -> bool:
        running = any(container.process is not None for container in self.containers.values())
        return not running and not self._leaving

    @property
    def settled(self) -> bool:
        """No start is under way."""
        processes = [c.process for c in self.containers.values() if c.process is not None]
        return not any(p.report >= 0 or p.failure is not None for p in processes)

    # --- from the start …

    def begin(self, container: Container, process: Process) -> None:
        """Follow a container's first process. If its record cannot be written it is ended: another
        keeper could not find it."""
        container.process = process
        self.follow(container, process)
        container.record = record.Record(
            process.pid, record.start_time(process.pid), self._boot_id, time.time_ns()
        )
        try:
            record.save(container.folder, container.record)
        except OSError as error:
            process.failure = execution.Failure(128, f"cannot write its record: {error.strerror}")
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)

    def follow(self, container: Container, process: Process) -> None:
        if process.report >= 0:
            self._reactor.watch(process.report, READ, lambda _: self._started(container))
        self._reactor.watch(process.pidfd, READ, lambda _: self._ended(container))

    def begin_exec(self, container: Container, name: str, process: Process) -> None:
        container.execs[name] = process
        self._reactor.watch(process.report, READ, lambda _: self._exec_started(container, name))
        self._reactor.watch(process.pidfd, READ, lambda _: self._exec_ended(container, name))

    def watch_oom(self, container: Container, steps: Plan) -> None:
        if (steps.resources.get("memory") or {}).get("limit"):
            container.oom = self._hierarchy.watch_oom(steps.cgroup)
            events = READ if self._hierarchy.version == 1 else URGENT
            if events == URGENT:
                container.oom_count = self.oom_kills(container)
            self._reactor.watch(container.oom[0], events, lambda _: self._on_oom(container))

    def _started(self, container: Container) -> None:
        """The report pipe has closed: the process has executed, or said why not."""
        process = container.process
        assert process is not None
        if self._has_started(process) and process.session == self._link.session:
            self._link.send({"n": process.number, "ok": self.describe("started", container)})

    def _has_started(self, process: Process) -> bool:
        """A failure is answered when the child is reaped, so that the next start finds no trace."""
        self._reactor.forget(process.report)
        text = os.read(process.report, 4096)
        os.close(process.report)
        process.report = -1
        process.failure = process.failure or execution.failure(text)
        return process.failure is None

    # --- … to the end

    def _ended(self, container: Container) -> None:
        process = container.process
        assert process is not None
        if process.report >= 0:
            self._started(container)
        name = self._name(container, process)
        code = self._reap(process, container.record)
        if code is None and process.mine:
            return
        if code is None and self._retry_reap(process, lambda: self._ended(container)):
            return
        self._close(process)
        if code == _KILLED and name and self.oom_kills(container):
            container.victim = Killed(name, process.pid)
        if container.on_end is not None:
            container.on_end(lambda: self._finish(container, process, code))
        else:
            self._finish(container, process, code)

    def _finish(self, container: Container, process: Process, code: int | None) -> None:
        container.process = None
        if not container.own_pids:
            self.kill_all(container)
        container.relay.finish()
        oom = self.oom_kills(container) > 0
        self._tell_last_kills(container, oom)
        self.leave_cgroup(container)
        if process.failure is not None:
            self._start_failed(container, process.failure, process)
            return
        assert container.record is not None
        container.record = container.record._replace(
            finished_ns=time.time_ns(), exit_code=code, oom_killed=oom
        )
        if oom and container.victim is not None:
            killed = container.victim
            container.record = container.record._replace(
                oom_process=killed.name, oom_pid=killed.pid
            )
        with contextlib.suppress(OSError):  # a full disk: the daemon is told nevertheless
            record.save(container.folder, container.record)
        self._link.send(self.describe("exit", container))

    def _start_failed(
        self, container: Container, failure: execution.Failure, process: Process
    ) -> None:
        record.forget(container.folder)
        del self.containers[container.id]
        if process.session == self._link.session:
            self._link.fail(process.number, failure.message, failure.code)
        elif container.record is not None:  # another daemon was told that it runs
            container.record = container.record._replace(
                finished_ns=time.time_ns(), exit_code=failure.code
            )
            self._link.send(self.describe("exit", container))

    def _reap(self, process: Process, kept: record.Record | None = None) -> int | None:
        """The exit code as a shell gives it; None if it is not to be known (yet)."""
        if process.mine:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid == 0:
                return None
        else:
            known = record.foreign_status(process.pidfd, kept)
            if known is None:
                return None
            status = known
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _retry_reap(self, process: Process, again: Callable[[], None]) -> bool:
        """An adopted process is reaped by another; the kernel tells its code only then."""
        process.attempts += 1
        if process.attempts > _REAP_ATTEMPTS:
            return False
        self._reactor.forget(process.pidfd)
        self._reactor.later(_REAP_RETRY_S, again)
        return True

    def _close(self, process: Process) -> None:
        self._reactor.forget(process.pidfd)
        os.close(process.pidfd)
        process.pidfd = -1
        self._ends += 1
        if self._ends % _ENDS_TO_COLLECT == 0:
            gc.collect()  # the automatic one is off: it would copy pages in every child

    def _exec_started(self, container: Container, name: str) -> None:
        process = container.execs[name]
        if self._has_started(process) and process.session == self._link.session:
            self._link.send({"n": process.number, "ok": {"pid": process.pid}})

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
            if process.session == self._link.session:
                self._link.fail(process.number, process.failure.message, process.failure.code)
            return
        self._link.send({"event": "exec", "container": container.id, "exec": name, "code": code})

    def describe(self, event: str, container: Container) -> dict[str, Any]:
        """What the daemon is told of it."""
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
            "oom_process": kept.oom_process,
            "oom_pid": kept.oom_pid,
        }

    # --- its cgroup

    def _on_oom(self, container: Container) -> None:
        if self._hierarchy.version == 1:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(container.oom[0])
        else:
            os.pread(container.oom[0], 4096, 0)
            kills, known = self.oom_kills(container), container.oom_count
            container.oom_count = kills
            if kills <= known:
                return  # the file tells also of a limit that was reached and could be kept
        if container.oom_looks == 0:
            container.oom_looks, container.oom_named = _OOM_LOOKS, False
            self._look_for_kills(container)

    def _look_for_kills(self, container: Container) -> None:
        """Tells of each that was killed, or after a while that somebody wants memory in vain."""
        if container.process is None or container.oom_looks == 0:
            return
        self._tell_kills(container)
        container.oom_looks -= 1
        if container.oom_looks:
            self._reactor.later(_OOM_LOOK_S, lambda: self._look_for_kills(container))
        elif not container.oom_named:
            self._tell_oom(container, None)

    def _tell_kills(self, container: Container) -> None:
        for killed in self._oom_log.take(container.cgroup):
            container.victim, container.oom_named = killed, True
            self._tell_oom(container, killed)

    def _tell_last_kills(self, container: Container, oom: bool) -> None:
        """It has ended: what the kernel's log does not say is told of its first process."""
        self._tell_kills(container)
        waiting = container.oom_looks > 0 and not container.oom_named
        if waiting or (oom and not container.oom_told):
            self._tell_oom(container, container.victim)
        container.oom_looks = 0

    def _tell_oom(self, container: Container, killed: Killed | None) -> None:
        container.oom_told = True
        who = {"process": killed.name, "pid": killed.pid} if killed is not None else {}
        self._link.send({"event": "oom", "container": container.id, **who})

    def _name(self, container: Container, process: Process) -> str:
        """Of a process that has ended and may have been killed for want of memory; it is gone once
        it is reaped."""
        if container.oom:
            with contextlib.suppress(OSError), open(f"/proc/{process.pid}/comm") as file:
                return file.read().rstrip("\n")
        return ""

    def pids(self, container: Container) -> list[int]:
        with contextlib.suppress(OSError):
            return self._hierarchy.pids(container.cgroup)
        return []

    def contains(self, container: Container, pid: int) -> bool:
        return pid in self.pids(container)

    def kill_all(self, container: Container) -> None:
        """Every process in its cgroup, also those that are none of its first process's."""
        with contextlib.suppress(OSError):
            self._hierarchy.kill(container.cgroup)

    def oom_kills(self, container: Container) -> int:
        with contextlib.suppress(OSError):
            return self._hierarchy.oom_kills(container.cgroup)
        return 0

    def leave_cgroup(self, container: Container) -> None:
        for fd in container.oom:
            self._reactor.forget(fd)
            os.close(fd)
        container.oom = ()
        self._remove_cgroup(container.cgroup, container.id)

    def _remove_cgroup(self, path: str, identity: str, attempts: int = _REMOVE_ATTEMPTS) -> None:
        """Repeated for a while: the kernel lets go of dead processes when it has time."""
        self._leaving.discard(path)
        again = self.containers.get(identity)
        if again is not None and again.process is not None:
            return  # started anew meanwhile, in the same cgroup
        try:
            gone = self._hierarchy.remove(path)
        except OSError:
            return
        if not gone and attempts:
            left = attempts - 1
            self._leaving.add(path)
            self._reactor.later(_REMOVE_RETRY_S, lambda: self._remove_cgroup(path, identity, left))

    def discard_parents(self) -> None:
        for parent in self.parents:
            self._hierarchy.discard_empty(parent)
