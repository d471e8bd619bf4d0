"""Processes found again: an id alone may be somebody else's by now, so its start counts too."""

import contextlib
import os
import select
import signal
from pathlib import Path

import msgspec

from lab.files import write_atomically


class Process(msgspec.Struct, frozen=True):
    """One process of this boot: its id and the clock ticks after boot at which it started."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process runs; one that is dead and not yet reaped does not."""
        return _start_of(self.pid) == self.started

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def wait(self, deadline_s: float) -> bool:
        """Whether it is gone within the time given."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive:
                return True
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(deadline_s * 1000))
        finally:
            os.close(descriptor)


def of(pid: int) -> Process | None:
    """The process that has this id now."""
    started = _start_of(pid)
    return None if started is None else Process(pid, started)


def record(path: Path, process: Process) -> None:
    """Write down a process, so that a later run of the lab finds it."""
    write_atomically(path, msgspec.json.encode(process))


def recorded(path: Path) -> Process | None:
    """The process written down, if it still runs."""
    try:
        process = msgspec.json.decode(path.read_bytes(), type=Process)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return process if process.alive else None


def inside(init: Process) -> dict[int, Process]:
    """All processes of the machine that `init` began, by their process id on that machine."""
    try:
        namespace = os.readlink(f"/proc/{init.pid}/ns/pid")
    except OSError:
        return {}
    found: dict[int, Process] = {}
    for pid in pids():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") == namespace and (process := of(pid)):
                found[_inner_pid(pid)] = process
    return found


def pids() -> list[int]:
    """Ids of all processes that can be seen from here."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _inner_pid(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise ProcessLookupError(f"no NSpid for process {pid}")


def _start_of(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
