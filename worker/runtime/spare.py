"""A child forked ahead: it has laid its ground and waits for the container that it is to be.

Most of a start's time goes for the fork, the memory that is copied after it, and mounts that are
the same for all containers. So one child, like the one started last, is made after each start. It
shares no descriptor with the keeper but a socket, sees nothing of the machine's mounts (or an
unmounted disk would stay in use), and ends when the socket closes, so also if the keeper is killed.
"""

import contextlib
import errno
import os
import pickle
import signal
import socket
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from worker.runtime import child, mounts, targets
from worker.runtime import syscalls as sc
from worker.runtime.child import Child, Held, Stage
from worker.runtime.steps import GROUND_TOPS, Ground
from worker.runtime.wire import LARGEST

_PLACE = "/root"


class Spare(NamedTuple):
    """The child as the keeper sees it."""

    ground: Ground
    pid: int
    pidfd: int
    channel: socket.socket

    def give(self, stage: Stage) -> bool:
        """Have it become that container. False: it is gone, or the message is too long."""
        data, fds = pack(stage)
        try:
            socket.send_fds(self.channel, [data], fds)
        except OSError:
            return False
        return True

    def go_on(self) -> None:
        """The cgroup that it is to enter is there."""
        with contextlib.suppress(OSError):  # it is dead, which its pidfd tells
            self.channel.send(b"\1")
        self.channel.close()

    def end(self) -> None:
        """It has nothing to finish; it is yet to be waited for."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        self.channel.close()


class Spares:
    """At most one spare, for the ground of the last start."""

    def __init__(self) -> None:
        self._spare: Spare | None = None
        self._last: Stage | None = None
        self._ended: list[int] = []  # pids to wait for

    def take(self, stage: Stage, make_cgroup: Callable[[], None]) -> tuple[int, int] | None:
        """Start a container in the spare: (pid, pidfd); None if there is none that fits. It is at
        work while its cgroup is made. Raises what `make_cgroup` does."""
        self._last = stage
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        if spare.ground != stage.ground or not spare.give(stage):
            self._discard(spare)
            return None
        try:
            make_cgroup()
        except BaseException:
            self._discard(spare)
            raise
        spare.go_on()
        return spare.pid, spare.pidfd

    def _discard(self, spare: Spare) -> None:
        spare.end()
        self._ended.append(spare.pid)

    def replenish(self, children: Child) -> None:
        """Make another one for what was started last, if that can have one."""
        self._ended = [pid for pid in self._ended if not _reaped(pid)]
        if self._spare is not None or self._last is None or not _fits(self._last.ground):
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            flags = self._last.ground.namespaces & ~sc.CLONE_NEWCGROUP  # comes with the cgroup
            pid, pidfd = sc.clone3(flags)
            if pid == 0:
                _wait(children, self._last, theirs.fileno())
        except OSError:
            ours.close()  # a start makes its child itself
            return
        finally:
            theirs.close()
        pack(self._last)  # as in `_wait`: it writes to memory that is to be copied first
        self._spare = Spare(self._last.ground, pid, pidfd, ours)


def _reaped(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _fits(ground: Ground) -> bool:
    """Whether it depends on no other container, and needs none of the machine's mounts."""
    tops = {mount.target for mount in ground.mounts}
    return not ground.joins and tops.issuperset(GROUND_TOPS)


def _wait(children: Child, model: Stage, channel: int) -> NoReturn:
    """The spare itself, for a start like `model`."""
    laid, failure = None, None
    try:
        sc.close_all_but(channel, children.machine)
        connection = socket.socket(fileno=channel)
        try:
            laid = child.lay_ground(model.ground, _alone())
            unpack(*pack(model))  # what it writes to is copied now rather than then
        except OSError as error:
            failure = error
        data, fds, _, _ = socket.recv_fds(connection, LARGEST, len(Held._fields))
        if not data:
            os._exit(0)
        stage = unpack(data, fds)
    except BaseException:  # noqa: BLE001 - nothing may return into the keeper's loop
        os._exit(127)

    def cgroup_made() -> None:
        if not connection.recv(1):
            raise OSError(errno.ECANCELED, "the start was given up")

    def body() -> None:
        if laid is None:
            raise failure or OSError(errno.EINVAL, "no ground")
        children.container(stage, laid, cgroup_made)

    child.run(stage.held.report, body)


def _alone() -> int:
    """Leave the machine's mounts for an empty root; where in it the container's is to be."""
    sc.make_private("/")
    root = mounts.filesystem("tmpfs", (("mode", "700"), ("nr_inodes", "8")), 0)
    for path in (*GROUND_TOPS, _PLACE):
        os.mkdir(path.lstrip("/"), 0o700, dir_fd=root)
    sc.move_mount(root, sc.AT_FDCWD, "/")
    mounts.enter(root)
    os.close(root)
    return os.open(_PLACE, targets.DIRECTORY)


def pack(stage: Stage) -> tuple[bytes, list[int]]:
    """`stage` for another process: its descriptors apart, and their places in what goes along."""
    fds = [fd for fd in stage.held if fd >= 0]
    places = iter(range(len(fds)))
    held = Held(*(next(places) if fd >= 0 else -1 for fd in stage.held))
    return pickle.dumps(stage._replace(held=held), pickle.HIGHEST_PROTOCOL), fds


def unpack(data: bytes, fds: list[int]) -> Stage:
    stage: Stage = pickle.loads(data)
    return stage._replace(held=Held(*(fds[at] if at >= 0 else -1 for at in stage.held)))
