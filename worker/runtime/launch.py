"""Starts a process in new namespaces, or in those of a running container.

The child runs Python between the fork and the exec, with the keeper's memory: it must end by exec
or `os._exit`, never by returning. What fails is told over a pipe that the exec closes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from worker.runtime import child, mounts, userns
from worker.runtime import syscalls as sc
from worker.runtime.cgroups import Hierarchy
from worker.runtime.child import Held, Stage, Stdio
from worker.runtime.spare import Spares
from worker.runtime.steps import Plan, Process, ground

if TYPE_CHECKING:
    from worker.runtime.hooks import Gate  # the keeper need not load what runs hooks


class Launcher:
    """Holds what all starts share. One to a keeper; not for several threads."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._users = userns.UserNamespaces()
        self._filters: dict[str, bytes] = {}
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._child = child.Child(hierarchy)
        self._spares = Spares()

    def start(
        self,
        plan: Plan,
        stdio: Stdio,
        report: int,
        make_cgroup: Callable[[], None],
        gate: "Gate | None" = None,
        connected: int = -1,
    ) -> tuple[int, int]:
        """Start a container: (pid, pidfd). `report` closes at the exec, or at the `gate` if there
        is one. Mounts are made at once; if `connected` is a pipe, the rest waits for a byte from
        it, which says that the network is ready. Raises OSError, also what `make_cgroup` does.
        """
        users = self._users.get(plan.process.mapping)
        others: dict[int, int] = {}
        try:
            for join in plan.joins:
                others[join.kind] = os.open(join.path, os.O_RDONLY | os.O_CLOEXEC)
            network = others.get(sc.CLONE_NEWNET, -1)
            held = Held(report, *stdio, connected, network, users)
            stage = Stage(
                plan, ground(plan), self._filter(plan.process), held, self._hierarchy.version == 1
            )
            taken = None
            if gate is None and stage.join:
                taken = self._spares.take(stage, make_cgroup)
            if taken is None:
                make_cgroup()
                taken = self._fork(stage, others, gate)
            return taken
        finally:
            for fd in others.values():
                os.close(fd)

    def _fork(self, stage: Stage, others: dict[int, int], gate: "Gate | None") -> tuple[int, int]:
        def body() -> None:
            if gate is not None:
                gate.await_runtime()
            for kind, fd in others.items():
                if kind not in (sc.CLONE_NEWPID, sc.CLONE_NEWNET):
                    sc.setns(fd, kind)
            place = mounts.open_place(stage.plan.root)
            sc.make_private("/")
            laid = child.lay_ground(stage.ground, place)
            self._child.container(stage, laid, lambda: None, gate)

        flags = stage.ground.namespaces
        if stage.join:
            flags &= ~sc.CLONE_NEWCGROUP  # entered once the child is where its root shall be
        into = self._hierarchy.clone_fd(stage.plan.cgroup)
        try:
            with self._children_in(others.get(sc.CLONE_NEWPID, -1)):
                pid, pidfd = sc.clone3(flags, into)
                if pid == 0:
                    child.run(stage.held.report, body)
        finally:
            if into >= 0:
                os.close(into)
        return pid, pidfd

    def replenish(self) -> None:
        """Have a child ready for the next start like the last one, if that was of a kind for it."""
        self._spares.replenish(self._child)

    def prepare(self, body: Callable[[], None], report: int) -> tuple[int, int]:
        """A child that does `body`, which must execute something: (pid, pidfd)."""
        pid, pidfd = sc.clone3(0)
        if pid == 0:
            child.run(report, body)
        return pid, pidfd

    @contextlib.contextmanager
    def _children_in(self, pids: int) -> Iterator[None]:
        """Children made within are in the pid namespace of a descriptor."""
        if pids < 0:
            yield
            return
        try:
            sc.setns(pids, sc.CLONE_NEWPID)
            yield
        finally:
            sc.setns(self._own_pids, sc.CLONE_NEWPID)

    def execute(
        self, process: Process, container: int, cgroup: str, stdio: Stdio, report: int
    ) -> tuple[int, int]:
        """Start a process in the container of pidfd `container`: (pid, pidfd)."""
        into = self._hierarchy.clone_fd(cgroup)
        filter_ = self._filter(process)
        try:
            with self._children_in(container):
                pid, pidfd = sc.clone3(0, into)
                if pid == 0:
                    child.run(
                        report,
                        lambda: self._child.visitor(
                            process, container, cgroup, stdio, filter_, into < 0
                        ),
                    )
        finally:
            if into >= 0:
                os.close(into)
        return pid, pidfd

    def _filter(self, process: Process) -> bytes:
        if not process.seccomp:
            return b""
        if process.seccomp not in self._filters:
            with open(process.seccomp, "rb") as file:
                self._filters[process.seccomp] = file.read()
        return self._filters[process.seccomp]
