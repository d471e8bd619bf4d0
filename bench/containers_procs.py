"""What processes and the kernel use, read from /proc."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
# Not the part of the slabs that caches files and is given back when memory is short.
_KERNEL = ("SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:")
_CGROUPS = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """In MB. `pss` shares out pages that several processes map."""

    pss: float
    rss: float


def mentioning(text: str) -> list[int]:
    """Processes that have `text` in their command line; not the caller's own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
    return found


def name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def memory(pids: Iterable[int]) -> Memory:
    """Together."""
    sizes = {"Pss:": 0.0, "Rss:": 0.0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                words = line.split()
                if words[0] in sizes:
                    sizes[words[0]] += int(words[1]) / 1024
    return Memory(sizes["Pss:"], sizes["Rss:"])


def kernel_memory() -> float:
    """MB the kernel of this machine uses for its own objects, whoever caused them."""
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    return sum(int(words[1]) for words in lines if words[0] in _KERNEL) / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used so far, with children that were waited for."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def mounts(pid: int) -> int:
    """In the process's mount namespace."""
    return len(Path(f"/proc/{pid}/mounts").read_text().splitlines())


def cgroups(parent: str) -> int:
    """Groups below `parent` in all hierarchies."""
    return sum(1 for path in _CGROUPS.glob(f"*/{parent}/*") if path.is_dir())


def remove_cgroup(parent: str) -> None:
    """An empty one, in all hierarchies."""
    for path in _CGROUPS.glob(f"*/{parent}"):
        with contextlib.suppress(OSError):
            path.rmdir()
