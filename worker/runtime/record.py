"""What the keeper writes down of a container, so that another keeper can tell what became of it."""

import contextlib
import json
import os
from typing import NamedTuple

from worker.runtime import syscalls as sc

NAME = "keeper.json"


class Record(NamedTuple):
    """A start, and later its end. `exit_code` None: it runs, or nobody saw how it ended."""

    pid: int
    start_time: int  # the kernel's, in ticks since boot: tells a process from its pid's next owner
    boot_id: str
    started_ns: int
    finished_ns: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    oom_process: str = ""  # the name of who was killed last, if that is known
    oom_pid: int = 0


def save(folder: str, record: Record) -> None:
    """Atomic, but not synced: a power cut ends the container anyway, and the boot id tells so."""
    temporary = f"{folder}/.{NAME}"
    with open(temporary, "w") as file:
        json.dump(record._asdict(), file)
    os.rename(temporary, f"{folder}/{NAME}")


def load(folder: str) -> Record | None:
    """None if there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError), open(f"{folder}/{NAME}") as file:
        return Record(**json.load(file))
    return None


def forget(folder: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{folder}/{NAME}")


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """Raises FileNotFoundError or ProcessLookupError if the process is gone."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def zombie_status(record: Record) -> int | None:
    """The wait status of a dead process that its parent has not reaped yet; None: not so."""
    try:
        with open(f"/proc/{record.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] != "Z" or int(fields[19]) != record.start_time:
        return None
    return int(fields[49])


def foreign_status(pidfd: int, record: Record | None) -> int | None:
    """The wait status of a dead process that is no child of this one; None: not known (yet)."""
    known = sc.pidfd_exit_status(pidfd)
    return zombie_status(record) if known is None and record is not None else known


def lives(record: Record) -> bool:
    """Whether the process of `record` is there and not merely waiting to be reaped."""
    if record.finished_ns or record.boot_id != boot_id():
        return False
    try:
        with open(f"/proc/{record.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == record.start_time and fields[0] not in "ZX"
