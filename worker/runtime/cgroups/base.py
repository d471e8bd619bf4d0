"""What both versions have in common: the interface, what is measured, and access to files."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

ROOT = "/sys/fs/cgroup"
_KILL_ROUNDS = 50


class Unsupported(OSError):
    """The machine's cgroups have no such limit."""


class Write(NamedTuple):
    """One value for one file. An `optional` one may be missing: swap accounting can be off.
    `instead`: (file, value) where the machine has another file for the same."""

    controller: str
    file: str
    value: str
    optional: bool = False
    instead: tuple[str, str] | None = None


class Disk(NamedTuple):
    """What was read from and written to one block device."""

    major: int
    minor: int
    read_bytes: int
    write_bytes: int
    reads: int
    writes: int


class Usage(NamedTuple):
    """What a cgroup has used: nanoseconds, bytes, counts. A limit of 0 is no limit."""

    cpu_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    throttled_periods: int
    throttled_ns: int
    periods: int
    memory: int
    memory_limit: int
    memory_stat: dict[str, int]
    pids: int
    pids_limit: int
    disks: tuple[Disk, ...] = ()


class Hierarchy(Protocol):
    """What the keeper and the engine do with cgroups. Every call is safe to repeat."""

    version: int

    @property
    def filters_devices(self) -> bool:
        """Whether it can say which devices a container may open."""

    def create(self, path: str, resources: dict[str, Any]) -> None:
        """Make the cgroup and set its limits. Raises OSError naming the file."""

    def update(self, path: str, resources: dict[str, Any]) -> None:
        """Change limits of a living cgroup, in an order that the kernel accepts; which devices it
        may use stays. Raises OSError naming the file."""

    def join(self, path: str) -> None:
        """Move the calling process, which has one thread, into the cgroup."""

    def clone_fd(self, path: str) -> int:
        """A descriptor for CLONE_INTO_CGROUP, or -1 where the child must `join`."""

    def bind_sources(self, path: str, whole: bool = False) -> list[tuple[str, str]]:
        """(directory, name below /sys/fs/cgroup) of what a container is shown: its own cgroup, or
        with `whole` the tree that it is part of, if that is one tree."""

    def watch_oom(self, path: str) -> tuple[int, ...]:
        """Descriptors to watch: the first becomes readable (v1) or urgent (v2) at each OOM."""

    def oom_kills(self, path: str) -> int:
        """Processes that were killed for want of memory."""

    def pids(self, path: str) -> list[int]:
        """Processes in the cgroup, seen from the caller's pid namespace."""

    def freeze(self, path: str, frozen: bool) -> None:
        """Stop or continue all processes; returns when they did. Raises TimeoutError."""

    def kill(self, path: str) -> None:
        """SIGKILL to every process in it, also to those that fork meanwhile."""

    def usage(self, path: str) -> Usage:
        """What the cgroup used. Raises FileNotFoundError if it is gone."""

    def remove(self, path: str) -> bool:
        """Remove the cgroup. False: processes are still leaving it, try again later."""

    def discard_empty(self, path: str) -> None:
        """Remove a parent that nobody uses any more; one that is in use stays."""


# --- limits that both versions write alike --------------------------------------------------------


def pids_writes(pids: dict[str, Any]) -> list[Write]:
    """OCI's `pids`. No limit, or 0, stays what it is; a negative one is none at all."""
    limit = pids.get("limit")
    if not limit:
        return []
    return [Write("pids", "pids.max", "max" if limit < 0 else str(limit))]


def cpuset_writes(cpu: dict[str, Any]) -> list[Write]:
    """The CPUs and the memory nodes of OCI's `cpu`."""
    files = (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems"))
    return [Write("cpuset", file, cpu[name]) for name, file in files if cpu.get(name)]


# --- files ---------------------------------------------------------------------------------------


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def read_if(path: str, default: str) -> str:
    """`default` where the controller is not there."""
    try:
        return read(path)
    except FileNotFoundError:
        return default


def write(path: str, entry: Write) -> None:
    """Raises Unsupported if the file is missing and not optional, else OSError naming it."""
    write_all(path, [entry])


def write_all(path: str, entries: list[Write]) -> None:
    """The same for several of one file, one write(2) each."""
    entry = entries[0]
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for entry in entries:
                os.write(fd, entry.value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        if entry.optional:
            return
        if entry.instead is not None:
            other = entry._replace(file=entry.instead[0], value=entry.instead[1], instead=None)
            write(f"{os.path.dirname(path)}/{other.file}", other)
            return
        if not os.path.isdir(os.path.dirname(path)):
            raise
        text = f"this machine's cgroups have no {entry.file}, so {entry.value} cannot be set"
        raise Unsupported(errno.ENOENT, text) from None
    except OSError as error:
        message = f"writing {entry.value!r} to {entry.file}: {error.strerror}"
        raise OSError(error.errno, message) from error


def mkdir(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)


def rmdir(path: str) -> bool:
    """False: it is in use."""
    try:
        _remove_children(path)
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _remove_children(path: str) -> None:
    """A privileged container may have made cgroups of its own below."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            _remove_children(entry.path)
            os.rmdir(entry.path)


def fields(text: str) -> dict[str, int]:
    """Lines of `name number`."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def number(text: str) -> int:
    """A limit's file: 0 for "max"."""
    return 0 if text.strip() == "max" else int(text)


def kill_each(pids: Callable[[], list[int]]) -> None:
    """SIGKILL, round by round, until no process is left that had not been told."""
    told: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        new = [pid for pid in pids() if pid not in told]
        if not new:
            return
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        told.update(new)


def until(attempt: Callable[[], bool], complaint: str, seconds: float = 2.0) -> None:
    """Raises TimeoutError with `complaint`."""
    deadline = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.001)


def throttles(block: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """(kind, major, minor, rate) of an OCI `blockIO`; the kinds are rbps, wbps, riops, wiops."""
    names = {
        "throttleReadBpsDevice": "rbps",
        "throttleWriteBpsDevice": "wbps",
        "throttleReadIOPSDevice": "riops",
        "throttleWriteIOPSDevice": "wiops",
    }
    return [
        (kind, entry["major"], entry["minor"], entry["rate"])
        for name, kind in names.items()
        for entry in block.get(name) or ()
    ]


def disks(rows: list[tuple[int, int, str, str, int]]) -> tuple[Disk, ...]:
    """Joins (major, minor, "bytes" or "ios", "read" or "write", value) by device."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for major, minor, what, direction, value in rows:
        found.setdefault((major, minor), {})[f"{direction} {what}"] = value
    return tuple(
        Disk(
            *device,
            sums.get("read bytes", 0),
            sums.get("write bytes", 0),
            sums.get("read ios", 0),
            sums.get("write ios", 0),
        )
        for device, sums in sorted(found.items())
    )
