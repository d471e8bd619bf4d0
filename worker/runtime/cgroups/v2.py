"""Cgroup version 2: one tree for all controllers; devices by a program (`devices`)."""

import contextlib
import errno
import os
from typing import Any

from worker.runtime.cgroups import devices
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
)

_HANDED_DOWN = {"cpu", "cpuset", "memory", "pids", "io"}


def writes(resources: dict[str, Any]) -> list[Write]:
    """The files that say what `resources` says: weights instead of shares, swap apart from memory.

    Raises Unsupported for what version 2 does not have.
    """
    return [
        *_memory(resources.get("memory") or {}),
        *_cpu(resources.get("cpu") or {}),
        *pids_writes(resources.get("pids") or {}),
        *_block(resources.get("blockIO") or {}),
        *(Write("", name, value) for name, value in (resources.get("unified") or {}).items()),
    ]


def _memory(memory: dict[str, Any]) -> list[Write]:
    found = []
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit:
        found.append(Write("memory", "memory.max", "max" if limit < 0 else str(limit)))
    if swap:
        value = "max" if swap < 0 else str(max(swap - (limit or 0), 0))
        found.append(Write("memory", "memory.swap.max", value, optional=True))
    if reservation := memory.get("reservation"):
        found.append(Write("memory", "memory.low", str(reservation)))
    for name, usual in (("disableOOMKiller", (None, False)), ("swappiness", (None,))):
        if memory.get(name) not in usual:
            raise Unsupported(errno.EOPNOTSUPP, f"memory.{name} does not exist in cgroup version 2")
    return found


def _cpu(cpu: dict[str, Any]) -> list[Write]:
    found = []
    if shares := cpu.get("shares"):
        found.append(Write("cpu", "cpu.weight", str(weight(shares))))
    quota, period = cpu.get("quota") or 0, cpu.get("period")
    if quota or period:
        amount = "max" if quota <= 0 else str(quota)
        found.append(Write("cpu", "cpu.max", f"{amount} {period or 100_000}"))
    return found + cpuset_writes(cpu)


def _block(block: dict[str, Any]) -> list[Write]:
    """BFQ's weights where that is there, else those of io.cost. A weight of 0 is that of all
    devices again, a rate of 0 is none."""
    found = []
    if given := block.get("weight"):
        found.append(_weight("default", given))
    found += [
        _weight(f"{e['major']}:{e['minor']}", e["weight"]) for e in block.get("weightDevice") or ()
    ]
    found += [
        Write("io", "io.max", f"{major}:{minor} {kind}={rate or 'max'}")
        for kind, major, minor, rate in throttles(block)
    ]
    return found


def _weight(what: str, given: int) -> Write:
    other = str(io_weight(given)) if given else "default"
    return Write("io", "io.bfq.weight", f"{what} {given}", instead=("io.weight", f"{what} {other}"))


def weight(shares: int) -> int:
    """Version 1's cpu.shares (2 … 262144) as version 2's cpu.weight (1 … 10000), as crun does."""
    return 1 + ((max(shares, 2) - 2) * 9999) // 262142


def io_weight(given: int) -> int:
    """Version 1's blkio.weight (10 … 1000) as version 2's io.weight (1 … 10000)."""
    return 1 + (max(given, 10) - 10) * 9999 // 990


class V2:
    """The tree mounted at `root`."""

    version = 2

    def __init__(self, root: str) -> None:
        self._root = root
        self._parents: set[str] = set()
        self._programs = devices.Programs()

    @property
    def filters_devices(self) -> bool:
        return self._programs.available

    def create(self, path: str, resources: dict[str, Any]) -> None:
        parent = os.path.dirname(path)
        if parent not in self._parents:
            self._make_parent(parent)
        folder = f"{self._root}/{path}"
        try:
            mkdir(folder)
        except FileNotFoundError:
            self._make_parent(parent)
            mkdir(folder)
        self.update(path, resources)
        rules = resources.get("devices")
        if rules and self.filters_devices:
            self._programs.attach(folder, rules)

    def update(self, path: str, resources: dict[str, Any]) -> None:
        for entry in writes(resources):
            write(f"{self._root}/{path}/{entry.file}", entry)

    def _make_parent(self, parent: str) -> None:
        """Each folder on the way must hand its controllers down."""
        folder = self._root
        for part in ("", *parent.split("/")):
            folder = f"{folder}/{part}" if part else folder
            mkdir(folder)
            available = set(read(f"{folder}/cgroup.controllers").split())
            wanted = sorted(available & _HANDED_DOWN)
            text = " ".join(f"+{name}" for name in wanted)
            if text:
                file = "cgroup.subtree_control"
                write(f"{folder}/{file}", Write("", file, text))
        self._parents.add(parent)

    def join(self, path: str) -> None:
        write(f"{self._root}/{path}/cgroup.procs", Write("", "cgroup.procs", "0"))

    def clone_fd(self, path: str) -> int:
        return os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def bind_sources(self, path: str, whole: bool = False) -> list[tuple[str, str]]:
        return [(self._root if whole else f"{self._root}/{path}", "")]

    def watch_oom(self, path: str) -> tuple[int, ...]:
        return (os.open(f"{self._root}/{path}/memory.events", os.O_RDONLY | os.O_CLOEXEC),)

    def oom_kills(self, path: str) -> int:
        return fields(read_if(f"{self._root}/{path}/memory.events", "")).get("oom_kill", 0)

    def pids(self, path: str) -> list[int]:
        return [int(pid) for pid in read(f"{self._root}/{path}/cgroup.procs").split()]

    def freeze(self, path: str, frozen: bool) -> None:
        folder, wanted = f"{self._root}/{path}", int(frozen)
        write(f"{folder}/cgroup.freeze", Write("", "cgroup.freeze", str(wanted)))

        def attempt() -> bool:
            return fields(read(f"{folder}/cgroup.events")).get("frozen") == wanted

        until(attempt, f"{path} did not {'freeze' if frozen else 'thaw'}")

    def kill(self, path: str) -> None:
        try:
            write(f"{self._root}/{path}/cgroup.kill", Write("", "cgroup.kill", "1"))
        except Unsupported:  # a kernel before 5.14
            kill_each(lambda: self.pids(path))

    def usage(self, path: str) -> Usage:
        folder = f"{self._root}/{path}"
        cpu = fields(read(f"{folder}/cpu.stat"))
        return Usage(
            cpu_ns=cpu.get("usage_usec", 0) * 1000,
            cpu_user_ns=cpu.get("user_usec", 0) * 1000,
            cpu_system_ns=cpu.get("system_usec", 0) * 1000,
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_ns=cpu.get("throttled_usec", 0) * 1000,
            periods=cpu.get("nr_periods", 0),
            memory=number(read_if(f"{folder}/memory.current", "0")),
            memory_limit=number(read_if(f"{folder}/memory.max", "max")),
            memory_stat=fields(read_if(f"{folder}/memory.stat", "")),
            pids=number(read_if(f"{folder}/pids.current", "0")),
            pids_limit=number(read_if(f"{folder}/pids.max", "max")),
            disks=disk_list(read_if(f"{folder}/io.stat", "")),
        )

    def discard_empty(self, path: str) -> None:
        self._parents.discard(path)
        with contextlib.suppress(OSError):
            os.rmdir(f"{self._root}/{path}")

    def remove(self, path: str) -> bool:
        return rmdir(f"{self._root}/{path}")


def disk_list(text: str) -> tuple[Disk, ...]:
    """Lines such as `254:0 rbytes=4096 wbytes=0 rios=1 wios=0`."""
    kinds = {"rbytes": ("bytes", "read"), "wbytes": ("bytes", "write"), "rios": ("ios", "read"),
             "wios": ("ios", "write")}  # fmt: skip
    rows = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for name, _, value in (pair.partition("=") for pair in pairs):
            if name in kinds:
                rows.append((int(major), int(minor), *kinds[name], int(value)))
    return disks(rows)
