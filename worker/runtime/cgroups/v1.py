"""Cgroup version 1: one folder for each controller, each with its own tree."""

import contextlib
import errno
import itertools
import os
from typing import Any

from worker.runtime.cgroups.base import (
    Disk,
    Unsupported,
    Usage,
    Write,
    cpuset_writes,
    disks,
    fields,
    kill_each,
    mkdir,
    number,
    pids_writes,
    read,
    read_if,
    rmdir,
    throttles,
    until,
    write,
    write_all,
)

_THROTTLES = {
    "rbps": "read_bps_device",
    "wbps": "write_bps_device",
    "riops": "read_iops_device",
    "wiops": "write_iops_device",
}
_UNLIMITED = 1 << 62


def writes(resources: dict[str, Any], swap_first: bool = False) -> list[Write]:
    """The files that say what `resources` says, in an order the kernel accepts.

    `swap_first`: memory and swap together may never be less than memory alone, so that limit is
    raised before.
    """
    return [
        *_memory(resources.get("memory") or {}, swap_first),
        *_cpu(resources.get("cpu") or {}),
        *pids_writes(resources.get("pids") or {}),
        *_block(resources.get("blockIO") or {}),
        *_raw(resources.get("unified") or {}),
    ]


def _memory(memory: dict[str, Any], swap_first: bool) -> list[Write]:
    limits = []
    if limit := memory.get("limit"):
        limits.append(Write("memory", "memory.limit_in_bytes", str(limit)))
    if swap := memory.get("swap"):
        limits.append(Write("memory", "memory.memsw.limit_in_bytes", str(swap), optional=True))
    if swap_first:
        limits.reverse()
    if reservation := memory.get("reservation"):
        limits.append(Write("memory", "memory.soft_limit_in_bytes", str(reservation)))
    if memory.get("disableOOMKiller") is not None:
        value = str(int(memory["disableOOMKiller"]))
        limits.append(Write("memory", "memory.oom_control", value))
    if memory.get("swappiness") is not None:
        limits.append(Write("memory", "memory.swappiness", str(memory["swappiness"])))
    return limits


def _cpu(cpu: dict[str, Any]) -> list[Write]:
    found = []
    if shares := cpu.get("shares"):
        found.append(Write("cpu", "cpu.shares", str(shares)))
    if period := cpu.get("period"):
        found.append(Write("cpu", "cpu.cfs_period_us", str(period)))
    if quota := cpu.get("quota"):
        found.append(Write("cpu", "cpu.cfs_quota_us", str(quota)))
    return found + cpuset_writes(cpu)


def _block(block: dict[str, Any]) -> list[Write]:
    """Since Linux 5.0 only BFQ has weights. A weight of 0 is that of all devices again."""
    found = []
    if weight := block.get("weight"):
        found.append(_weight("weight", str(weight)))
    found += [
        _weight("weight_device", f"{e['major']}:{e['minor']} {e['weight']}")
        for e in block.get("weightDevice") or ()
    ]
    found += [
        Write("blkio", f"blkio.throttle.{_THROTTLES[kind]}", f"{major}:{minor} {rate}")
        for kind, major, minor, rate in throttles(block)
    ]
    return found


def _weight(name: str, value: str) -> Write:
    return Write("blkio", f"blkio.bfq.{name}", value, instead=(f"blkio.{name}", value))


def _raw(unified: dict[str, str]) -> list[Write]:
    """Files of version 2 by name: here there are none."""
    return [Write("memory", name, value) for name, value in unified.items()]


def device_writes(rules: "list[dict[str, Any]] | tuple[()]") -> list[Write]:
    """`devices.deny` and `devices.allow`, in the order of the rules."""
    return [
        Write("devices", "devices.allow" if rule["allow"] else "devices.deny", device_rule(rule))
        for rule in rules
    ]


def device_rule(rule: dict[str, Any]) -> str:
    """`c 1:3 rwm`; `a` alone for all devices."""
    kind = rule.get("type") or "a"
    if kind == "a" and "major" not in rule:
        return "a"
    major, minor = (-1 if rule.get(part) is None else rule[part] for part in ("major", "minor"))
    numbers = f"{'*' if major < 0 else major}:{'*' if minor < 0 else minor}"
    return f"{kind} {numbers} {rule.get('access') or 'rwm'}"


class V1:
    """The controllers below one folder, as systems mount them."""

    version = 1

    def __init__(self, root: str, controllers: tuple[str, ...]) -> None:
        self._root = root
        self.controllers = controllers
        self._parents: set[str] = set()

    @property
    def filters_devices(self) -> bool:
        return "devices" in self.controllers

    def _dir(self, controller: str, path: str) -> str:
        return f"{self._root}/{controller}/{path}"

    def create(self, path: str, resources: dict[str, Any]) -> None:
        parent = os.path.dirname(path)
        if parent and parent not in self._parents:
            self._make_parent(parent)
        for controller in self.controllers:
            try:
                mkdir(self._dir(controller, path))
            except FileNotFoundError:  # somebody removed the parent meanwhile
                self._make_parent(parent)
                mkdir(self._dir(controller, path))
        self._apply(path, writes(resources))
        if self.filters_devices:
            self._allow(path, resources.get("devices") or [])

    def update(self, path: str, resources: dict[str, Any]) -> None:
        limit = (resources.get("memory") or {}).get("limit") or 0
        file = f"{self._dir('memory', path)}/memory.memsw.limit_in_bytes"
        both = int(read_if(file, str(_UNLIMITED)))
        self._apply(path, writes(resources, swap_first=limit > both or limit < 0))

    def _apply(self, path: str, entries: list[Write]) -> None:
        for entry in entries:
            if entry.controller not in self.controllers and not entry.optional:
                text = f"this machine has no {entry.controller} controller for {entry.file}"
                raise Unsupported(errno.ENOENT, text)
            write(f"{self._dir(entry.controller, path)}/{entry.file}", entry)

    def _allow(self, path: str, rules: list[dict[str, Any]]) -> None:
        """In order; neighbours of one kind by one descriptor, for there are a dozen at a start."""
        for file, entries in itertools.groupby(device_writes(rules), lambda entry: entry.file):
            write_all(f"{self._dir('devices', path)}/{file}", list(entries))

    def _make_parent(self, parent: str) -> None:
        """Children of a cpuset inherit its values only if told so before they are made."""
        done = ""
        for part in parent.split("/"):
            done = f"{done}/{part}" if done else part
            for controller in self.controllers:
                mkdir(self._dir(controller, done))
            if "cpuset" in self.controllers:
                self._inherit_cpuset(done)
        self._parents.add(parent)

    def _inherit_cpuset(self, path: str) -> None:
        folder = self._dir("cpuset", path)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not read(f"{folder}/{file}").strip():
                value = read(f"{os.path.dirname(folder)}/{file}").strip()
                write(f"{folder}/{file}", Write("cpuset", file, value))
        inherit = Write("cpuset", "cgroup.clone_children", "1", True)
        write(f"{folder}/cgroup.clone_children", inherit)

    def join(self, path: str) -> None:
        """By `tasks`: `cgroup.procs` would wait for an RCU grace period, about 10 ms each."""
        for controller in self.controllers:
            write(f"{self._dir(controller, path)}/tasks", Write(controller, "tasks", "0"))

    def clone_fd(self, path: str) -> int:
        return -1

    def bind_sources(self, path: str, whole: bool = False) -> list[tuple[str, str]]:
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
            write(f"{folder}/cgroup.event_control", line)
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        return (event,)

    def oom_kills(self, path: str) -> int:
        return fields(read(f"{self._dir('memory', path)}/memory.oom_control")).get("oom_kill", 0)

    def pids(self, path: str) -> list[int]:
        return [int(pid) for pid in read(f"{self._dir('pids', path)}/cgroup.procs").split()]

    def freeze(self, path: str, frozen: bool) -> None:
        wanted = "FROZEN" if frozen else "THAWED"
        file = f"{self._dir('freezer', path)}/freezer.state"

        def attempt() -> bool:  # FREEZING may need another push (kernel's freezer-subsystem.rst)
            write(file, Write("freezer", "freezer.state", wanted))
            return read(file).strip() == wanted

        until(attempt, f"{path} did not become {wanted}")

    def kill(self, path: str) -> None:
        kill_each(lambda: self.pids(path))

    def usage(self, path: str) -> Usage:
        cpu = fields(read(f"{self._dir('cpuacct', path)}/cpuacct.stat"))
        throttle = fields(read(f"{self._dir('cpu', path)}/cpu.stat"))
        memory, tick = self._dir("memory", path), 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        limit = int(read(f"{memory}/memory.limit_in_bytes"))
        return Usage(
            cpu_ns=int(read(f"{self._dir('cpuacct', path)}/cpuacct.usage")),
            cpu_user_ns=cpu.get("user", 0) * tick,
            cpu_system_ns=cpu.get("system", 0) * tick,
            throttled_periods=throttle.get("nr_throttled", 0),
            throttled_ns=throttle.get("throttled_time", 0),
            periods=throttle.get("nr_periods", 0),
            memory=int(read(f"{memory}/memory.usage_in_bytes")),
            memory_limit=0 if limit >= _UNLIMITED else limit,
            memory_stat=fields(read(f"{memory}/memory.stat")),
            pids=int(read(f"{self._dir('pids', path)}/pids.current")),
            pids_limit=number(read(f"{self._dir('pids', path)}/pids.max")),
            disks=self._disks(path),
        )

    def _disks(self, path: str) -> tuple[Disk, ...]:
        folder, rows = self._dir("blkio", path), []
        for what, file in (("bytes", "io_service_bytes"), ("ios", "io_serviced")):
            rows += disk_rows(what, read_if(f"{folder}/blkio.throttle.{file}_recursive", ""))
        return disks(rows)

    def discard_empty(self, path: str) -> None:
        self._parents.discard(path)
        for name in self._hierarchies():
            with contextlib.suppress(OSError):
                os.rmdir(self._dir(name, path))

    def remove(self, path: str) -> bool:
        gone = [rmdir(self._dir(name, path)) for name in self._hierarchies()]
        return all(gone)

    def _hierarchies(self) -> list[str]:
        """Also those that are none of ours: other runtimes join them, and may die over it."""
        return os.listdir(self._root)


def disk_rows(what: str, text: str) -> list[tuple[int, int, str, str, int]]:
    """Lines such as `254:0 Read 4096`; the sums of them are left out."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in ("Read", "Write"):
            major, _, minor = words[0].partition(":")
            rows.append((int(major), int(minor), what, words[1].lower(), int(words[2])))
    return rows
