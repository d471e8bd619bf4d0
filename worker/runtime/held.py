"""What the keeper holds of each container: its processes, its stdio, its record."""

import os
from collections.abc import Callable

from worker.runtime import execution, oomlog, record, relay


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
        self.failure: execution.Failure | None = None
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
        self.oom_count = 0  # kills that were noticed (cgroup version 2)
        self.oom_looks = 0  # how often yet to look who it was that was killed
        self.oom_named = False  # one of the present looks has found somebody
        self.oom_told = False  # the daemon has heard of one
        self.victim: oomlog.Killed | None = None  # the last that was killed
        self.runtime = ""  # path of another OCI runtime that started it
        self.on_end: Callable[[Callable[[], None]], None] | None = None  # before its end is told
        self.own_pids = True  # its other processes end with the first
        self.followed = False
        self.execs: dict[str, Process] = {}


class Ends:
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
