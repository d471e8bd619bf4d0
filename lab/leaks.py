"""What daemons, containers and labs could leave behind on this computer, listed and compared."""

import contextlib
import os
import subprocess
from pathlib import Path

import msgspec

from lab import cgroups, process

_OURS = ("node.main", "shoald", "keeper", "lab/init.py", "worker/runtime", "worker.runtime")


class Snapshot(msgspec.Struct, frozen=True):
    """Everything of each kind, as lines that a person can read."""

    processes: frozenset[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    tables: frozenset[str]


def snapshot(prefix: str = "") -> Snapshot:
    """What is there now; of processes, mounts and cgroups only those of one lab if one is named.

    Links, named network namespaces and nftables tables are those of the host's own namespace.
    """
    return Snapshot(
        processes=frozenset(_processes(prefix)),
        mounts=frozenset(_mounts(prefix)),
        namespaces=frozenset(_names(Path("/run/netns"))),
        links=frozenset(_names(Path("/sys/class/net"))),
        cgroups=frozenset(_cgroups(prefix)),
        tables=frozenset(_tables()),
    )


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What is there after and was not before, one line each; empty is good."""
    lines = []
    for kind in msgspec.structs.fields(Snapshot):
        new = getattr(after, kind.name) - getattr(before, kind.name)
        lines += [f"{kind.name}: {item}" for item in sorted(new)]
    return lines


def _processes(prefix: str) -> list[str]:
    """Daemons, keepers, lab machines, and whatever runs in a process id namespace of its own."""
    here = os.readlink("/proc/self/ns/pid")
    found = []
    for pid in process.pids():
        with contextlib.suppress(OSError):
            command = _command(pid)
            elsewhere = os.readlink(f"/proc/{pid}/ns/pid") != here
            ours = pid != os.getpid() and any(word in command for word in _OURS)
            if process.of(pid) and (elsewhere or ours) and _belongs(pid, command, prefix):
                found.append(f"{pid} {command}")
    return found


def _belongs(pid: int, command: str, prefix: str) -> bool:
    if not prefix or f"/{prefix}/" in command:
        return True
    return any(
        f"/{prefix}/" in line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    )


def _command(pid: int) -> str:
    raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _mounts(prefix: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split(" ", 3)[3] for line in lines if not prefix or f"/{prefix}/" in line]


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _cgroups(prefix: str) -> list[str]:
    if prefix:
        return [str(path) for path in cgroups.present(prefix)]
    return [
        folder
        for hierarchy in cgroups.hierarchies()
        for folder, _, _ in os.walk(hierarchy)
        if folder != str(hierarchy)
    ]


def _tables() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, check=False)
        return done.stdout.decode().splitlines()
    return []
