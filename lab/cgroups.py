"""Removing cgroups, in every hierarchy of version 1 and in version 2."""

import contextlib
import os
import signal
import time
from pathlib import Path

from lab import process

_MOUNTS = Path("/proc/self/mounts")


def hierarchies() -> list[Path]:
    """Where the machine's cgroup hierarchies are mounted."""
    rows = [line.split() for line in _MOUNTS.read_text().splitlines()]
    return [Path(row[1]) for row in rows if row[2] in ("cgroup", "cgroup2")]


def present(name: str) -> list[Path]:
    """The cgroup `name` and all below it, children before parents, in every hierarchy."""
    found: list[Path] = []
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            found.append(Path(folder))
    return found


def remove(name: str, deadline_s: float = 10) -> list[Path]:
    """Kill what runs in the cgroup `name` and remove it; what is left after the deadline."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} is not a cgroup below the hierarchies")
    ends = time.monotonic() + deadline_s
    while left := present(name):
        for folder in left:
            with contextlib.suppress(OSError):
                folder.rmdir()
                continue
            _kill_members(folder)
        if time.monotonic() > ends:
            return present(name)
        if present(name):
            time.sleep(0.01)  # the kernel empties a cgroup some time after its members died
    return []


def _kill_members(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for line in (folder / "cgroup.procs").read_text().split():
            member = process.of(int(line))
            if member is not None and member.pid > 1:
                member.signal(signal.SIGKILL)
