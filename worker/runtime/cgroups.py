"""Control groups, version 1 and 2, behind one interface.

`writes_v1` and `writes_v2` decide (pure): an OCI `linux.resources` in, files and values out. The
two hierarchies carry it out. A cgroup is named by its path below the mount point: "shoal/<id>".
Used by the keeper, so: standard library only.
"""

import contextlib
import errno
import os
import time
from typing import Any, NamedTuple, Protocol

ROOT = "/sys/fs/cgroup"
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "devices", "blkio")


class Write(NamedTuple):
    """One value for one file. An `optional` one may be missing: swap accounting can be off."""

    controller: str
    file: str
    value: str
    optional: bool = False


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


class Hierarchy(Protocol):
    """What the keeper and the engine do with cgroups. Every call is safe to repeat."""

    version: int

    def create(self, path: str, resources: dict[str, Any]) -> None:
        """Make the cgroup and set its limits. Raises OSError naming the file."""

    def update(self, path: str, resources: dict[str, Any]) -> None:
        """Change limits of a living cgroup."""

    def join(self, path: str) -> None:
        """Move the calling process, which has one thread, into the cgroup."""

    def clone_fd(self, path: str) -> int:
        """A descriptor for CLONE_INTO_CGROUP, or -1 where the child must `join`."""

    def bind_sources(self, path: str) -> list[tuple[str, str]]:
        """(directory, name below /sys/fs/cgroup) of what a container is shown of itself."""

    def watch_oom(self, path: str) -> tuple[int, ...]:
        """Descriptors to watch: the first becomes readable (v1) or urgent (v2) at each OOM."""

    def oom_kills(self, path: str) -> int:
        """Processes that were killed for want of memory."""

    def pids(self, path: str) -> list[int]:
        """Processes in the cgroup, seen from the caller's pid namespace."""

    def freeze(self, path: str, frozen: bool) -> None:
        """Stop or continue all processes; returns when they did. Raises TimeoutError."""

    def usage(self, path: str) -> Usage:
        """What the cgroup used. Raises FileNotFoundError if it is gone."""

    def remove(self, path: str) -> bool:
        """Remove the cgroup. False: processes are still leaving it, try again later."""

    def discard_empty(self, path: str) -> None:
        """Remove a parent that nobody uses any more; one that is in use stays."""


def detect(root: str = ROOT) -> Hierarchy:
    """The hierarchy that this machine has at `root`. Raises OSError if there is none."""
    if os.path.exists(f"{root}/cgroup.controllers"):
        return V2(root)
    controllers = tuple(c for c in V1_CONTROLLERS if os.path.isdir(f"{root}/{c}"))
    if "memory" not in controllers or "pids" not in controllers:
        raise OSError(
            errno.ENOENT, f"no cgroup controllers at {root}: mount cgroup2 there, or cgroup v1"
        )
    return V1(root, controllers)


# --- version 1 -----------------------------------------------------------------------------------


def writes_v1(resources: dict[str, Any]) -> list[Write]:
    """The files of version 1 that say what `resources` says, in an order the kernel accepts."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    writes = []
    if limit := memory.get("limit"):
        writes.append(Write("memory", "memory.limit_in_bytes", str(limit)))
    if swap := memory.get("swap"):
        writes.append(Write("memory", "memory.memsw.limit_in_bytes", str(swap), optional=True))
    if reservation := memory.get("reservation"):
        writes.append(Write("memory", "memory.soft_limit_in_bytes", str(reservation)))
    if memory.get("disableOOMKiller"):
        writes.append(Write("memory", "memory.oom_control", "1"))
    if shares := cpu.get("shares"):
        writes.append(Write("cpu", "cpu.shares", str(shares)))
    if period := cpu.get("period"):
        writes.append(Write("cpu", "cpu.cfs_period_us", str(period)))
    if quota := cpu.get("quota"):
        writes.append(Write("cpu", "cpu.cfs_quota_us", str(quota)))
    if cpus := cpu.get("cpus"):
        writes.append(Write("cpuset", "cpuset.cpus", cpus))
    if mems := cpu.get("mems"):
        writes.append(Write("cpuset", "cpuset.mems", mems))
    limit = (resources.get("pids") or {}).get("limit")
    if limit:
        writes.append(Write("pids", "pids.max", "max" if limit < 0 else str(limit)))
    for rule in resources.get("devices") or ():
        file = "devices.allow" if rule["allow"] else "devices.deny"
        writes.append(Write("devices", file, device_rule(rule)))
    return writes


def device_rule(rule: dict[str, Any]) -> str:
    """`c 1:3 rwm`, as version 1 writes it; `a` alone for all devices."""
    kind = rule.get("type") or "a"
    if kind == "a" and "major" not in rule:
        return "a"
    major, minor = rule.get("major", -1), rule.get("minor", -1)
    numbers = f"{'*' if major < 0 else major}:{'*' if minor < 0 else minor}"
    return f"{kind} {numbers} {rule.get('access') or 'rwm'}"


class V1:
    """One folder for each controller, each with its own tree."""

    version = 1

    def __init__(self, root: str, controllers: tuple[str, ...]) -> None:
        self._root = root
        self.controllers = controllers
        self._parents: set[str] = set()

    def _dir(self, controller: str, path: str) -> str:
        return f"{self._root}/{controller}/{path}"

    def create(self, path: str, resources: dict[str, Any]) -> None:
        parent = os.path.dirname(path)
        if parent and parent not in self._parents:
            self._make_parent(parent)
        for controller in self.controllers:
            try:
                _mkdir(self._dir(controller, path))
            except FileNotFoundError:  # somebody removed the parent meanwhile
                self._make_parent(parent)
                _mkdir(self._dir(controller, path))
        self.update(path, resources)

    def update(self, path: str, resources: dict[str, Any]) -> None:
        for write in writes_v1(resources):
            if write.controller in self.controllers:
                _write(f"{self._dir(write.controller, path)}/{write.file}", write)

    def _make_parent(self, parent: str) -> None:
        """Children of a cpuset inherit its values only if told so before they are made."""
        done = ""
        for part in parent.split("/"):
            done = f"{done}/{part}" if done else part
            for controller in self.controllers:
                _mkdir(self._dir(controller, done))
            if "cpuset" in self.controllers:
                self._inherit_cpuset(done)
        self._parents.add(parent)

    def _inherit_cpuset(self, path: str) -> None:
        folder = self._dir("cpuset", path)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not _read(f"{folder}/{file}").strip():
                value = _read(f"{os.path.dirname(folder)}/{file}").strip()
                _write(f"{folder}/{file}", Write("cpuset", file, value))
        _write(
            f"{folder}/cgroup.clone_children", Write("cpuset", "cgroup.clone_children", "1", True)
        )

    def join(self, path: str) -> None:
        """By `tasks`: `cgroup.procs` would wait for an RCU grace period, about 10 ms each."""
        for controller in self.controllers:
            _write(f"{self._dir(controller, path)}/tasks", Write(controller, "tasks", "0"))

    def clone_fd(self, path: str) -> int:
        return -1

    def bind_sources(self, path: str) -> list[tuple[str, str]]:
        return [(self._dir(c, path), c) for c in self.controllers]

    def watch_oom(self, path: str) -> tuple[int, ...]:
        folder = self._dir("memory", path)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(event)
            raise
        line = Write("memory", "cgroup.event_control", f"{event} {control}")
        try:
            _write(f"{folder}/cgroup.event_control", line)
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        return (event,)

    def oom_kills(self, path: str) -> int:
        return _fields(_read(f"{self._dir('memory', path)}/memory.oom_control")).get("oom_kill", 0)

    def pids(self, path: str) -> list[int]:
        return [int(pid) for pid in _read(f"{self._dir('pids', path)}/cgroup.procs").split()]

    def freeze(self, path: str, frozen: bool) -> None:
        wanted = "FROZEN" if frozen else "THAWED"
        file = f"{self._dir('freezer', path)}/freezer.state"

        def attempt() -> bool:  # FREEZING may need another push (kernel's freezer-subsystem.rst)
            _write(file, Write("freezer", "freezer.state", wanted))
            return _read(file).strip() == wanted

        _until(attempt, f"{path} did not become {wanted}")

    def usage(self, path: str) -> Usage:
        cpu = _fields(_read(f"{self._dir('cpuacct', path)}/cpuacct.stat"))
        throttle = _fields(_read(f"{self._dir('cpu', path)}/cpu.stat"))
        memory, tick = self._dir("memory", path), 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        limit = int(_read(f"{memory}/memory.limit_in_bytes"))
        return Usage(
            cpu_ns=int(_read(f"{self._dir('cpuacct', path)}/cpuacct.usage")),
            cpu_user_ns=cpu.get("user", 0) * tick,
            cpu_system_ns=cpu.get("system", 0) * tick,
            throttled_periods=throttle.get("nr_throttled", 0),
            throttled_ns=throttle.get("throttled_time", 0),
            periods=throttle.get("nr_periods", 0),
            memory=int(_read(f"{memory}/memory.usage_in_bytes")),
            memory_limit=0 if limit >= 1 << 62 else limit,
            memory_stat=_fields(_read(f"{memory}/memory.stat")),
            pids=int(_read(f"{self._dir('pids', path)}/pids.current")),
            pids_limit=_number(_read(f"{self._dir('pids', path)}/pids.max")),
        )

    def discard_empty(self, path: str) -> None:
        self._parents.discard(path)
        for controller in self.controllers:
            with contextlib.suppress(OSError):
                os.rmdir(self._dir(controller, path))

    def remove(self, path: str) -> bool:
        gone = [_rmdir(self._dir(controller, path)) for controller in self.controllers]
        return all(gone)


# --- version 2 -----------------------------------------------------------------------------------


def writes_v2(resources: dict[str, Any]) -> list[Write]:
    """The same for version 2: weights instead of shares, swap apart from memory."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    writes = []
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit:
        writes.append(Write("memory", "memory.max", "max" if limit < 0 else str(limit)))
    if swap:
        value = "max" if swap < 0 else str(swap - (limit or 0))
        writes.append(Write("memory", "memory.swap.max", value, optional=True))
    if reservation := memory.get("reservation"):
        writes.append(Write("memory", "memory.low", str(reservation)))
    if shares := cpu.get("shares"):
        writes.append(Write("cpu", "cpu.weight", str(weight(shares))))
    if quota := cpu.get("quota"):
        amount = "max" if quota < 0 else str(quota)
        writes.append(Write("cpu", "cpu.max", f"{amount} {cpu.get('period') or 100_000}"))
    if cpus := cpu.get("cpus"):
        writes.append(Write("cpuset", "cpuset.cpus", cpus))
    if mems := cpu.get("mems"):
        writes.append(Write("cpuset", "cpuset.mems", mems))
    limit = (resources.get("pids") or {}).get("limit")
    if limit:
        writes.append(Write("pids", "pids.max", "max" if limit < 0 else str(limit)))
    return writes


def weight(shares: int) -> int:
    """Version 1's cpu.shares (2 … 262144) as version 2's cpu.weight (1 … 10000), as crun does."""
    return 1 + ((max(shares, 2) - 2) * 9999) // 262142


class V2:
    """One tree for all controllers."""

    version = 2

    def __init__(self, root: str) -> None:
        self._root = root
        self._parents: set[str] = set()

    def create(self, path: str, resources: dict[str, Any]) -> None:
        parent = os.path.dirname(path)
        if parent not in self._parents:
            self._make_parent(parent)
        try:
            _mkdir(f"{self._root}/{path}")
        except FileNotFoundError:
            self._make_parent(parent)
            _mkdir(f"{self._root}/{path}")
        self.update(path, resources)

    def update(self, path: str, resources: dict[str, Any]) -> None:
        for write in writes_v2(resources):
            _write(f"{self._root}/{path}/{write.file}", write)

    def _make_parent(self, parent: str) -> None:
        """Each folder on the way must hand its controllers down."""
        folder = self._root
        for part in ("", *parent.split("/")):
            folder = f"{folder}/{part}" if part else folder
            _mkdir(folder)
            available = set(_read(f"{folder}/cgroup.controllers").split())
            wanted = sorted(available & {"cpu", "cpuset", "memory", "pids", "io"})
            text = " ".join(f"+{name}" for name in wanted)
            if text:
                file = "cgroup.subtree_control"
                _write(f"{folder}/{file}", Write("", file, text))
        self._parents.add(parent)

    def join(self, path: str) -> None:
        _write(f"{self._root}/{path}/cgroup.procs", Write("", "cgroup.procs", "0"))

    def clone_fd(self, path: str) -> int:
        return os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def bind_sources(self, path: str) -> list[tuple[str, str]]:
        return [(f"{self._root}/{path}", "")]

    def watch_oom(self, path: str) -> tuple[int, ...]:
        return (os.open(f"{self._root}/{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC),)

    def oom_kills(self, path: str) -> int:
        return _fields(_read(f"{self._root}/{path}/memory.events")).get("oom_kill", 0)

    def pids(self, path: str) -> list[int]:
        return [int(pid) for pid in _read(f"{self._root}/{path}/cgroup.procs").split()]

    def freeze(self, path: str, frozen: bool) -> None:
        folder, wanted = f"{self._root}/{path}", int(frozen)
        _write(f"{folder}/cgroup.freeze", Write("", "cgroup.freeze", str(wanted)))

        def attempt() -> bool:
            return _fields(_read(f"{folder}/cgroup.events")).get("frozen") == wanted

        _until(attempt, f"{path} did not {'freeze' if frozen else 'thaw'}")

    def usage(self, path: str) -> Usage:
        folder = f"{self._root}/{path}"
        cpu = _fields(_read(f"{folder}/cpu.stat"))
        return Usage(
            cpu_ns=cpu.get("usage_usec", 0) * 1000,
            cpu_user_ns=cpu.get("user_usec", 0) * 1000,
            cpu_system_ns=cpu.get("system_usec", 0) * 1000,
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_ns=cpu.get("throttled_usec", 0) * 1000,
            periods=cpu.get("nr_periods", 0),
            memory=_number(_read(f"{folder}/memory.current")),
            memory_limit=_number(_read(f"{folder}/memory.max")),
            memory_stat=_fields(_read(f"{folder}/memory.stat")),
            pids=_number(_read(f"{folder}/pids.current")),
            pids_limit=_number(_read(f"{folder}/pids.max")),
        )

    def discard_empty(self, path: str) -> None:
        self._parents.discard(path)
        with contextlib.suppress(OSError):
            os.rmdir(f"{self._root}/{path}")

    def remove(self, path: str) -> bool:
        return _rmdir(f"{self._root}/{path}")


# --- files ---------------------------------------------------------------------------------------


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, write: Write) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, write.value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        if not write.optional:
            raise
    except OSError as error:
        message = f"writing {write.value!r} to {write.file}: {error.strerror}"
        raise OSError(error.errno, message) from error


def _mkdir(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)


def _rmdir(path: str) -> bool:
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


def _fields(text: str) -> dict[str, int]:
    """Lines of `name number`."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _number(text: str) -> int:
    return 0 if text.strip() == "max" else int(text)


def _until(attempt: "Any", complaint: str, seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.001)
