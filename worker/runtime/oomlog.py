"""Which processes the kernel killed for want of memory: it says so in its log only.

Used by the keeper, so: standard library only.
"""

import os
import re
from collections import deque
from typing import NamedTuple

KMSG = "/dev/kmsg"
_RECORD = 8192  # the longest that the kernel hands out
_KEPT = 64
# "oom-kill:constraint=…,oom_memcg=/shoal/ID,task_memcg=/shoal/ID,task=NAME,pid=N,uid=N"
# (dump_oom_victim in mm/oom_kill.c). A process chooses its own name, so the end is matched first.
_LINE = re.compile(r";oom-kill:.*?,task_memcg=(/.*?),task=(.*),pid=(\d+),uid=\d+$", re.MULTILINE)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


class Killed(NamedTuple):
    """A process that was killed; `pid` as the machine counts."""

    name: str
    pid: int


def parse(record: str) -> tuple[str, Killed] | None:
    """(cgroup, process) if the record of /dev/kmsg tells of a kill."""
    match = _LINE.search(record)
    if match is None:
        return None
    return match[1], Killed(_printable(match[2]), int(match[3]))


def _printable(name: str) -> str:
    """A name for users' eyes: what the kernel wrote as \\xNN is no text."""
    return _ESCAPED.sub("?", name)


class OomLog:
    """Reads on from where the kernel's log ended when this was made. Without the right to read it
    (CAP_SYSLOG, or an open kernel.dmesg_restrict) it knows nothing."""

    def __init__(self, path: str = KMSG) -> None:
        self._fd = -1
        self._killed: deque[tuple[str, Killed]] = deque(maxlen=_KEPT)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self.close()

    def take(self, cgroup: str) -> list[Killed]:
        """Who of `cgroup` and below was killed since this was asked last, oldest first."""
        self._read()
        inside = f"/{cgroup}/"
        taken = [entry for entry in self._killed if inside in f"{entry[0]}/"]
        for entry in taken:
            self._killed.remove(entry)
        return [killed for _, killed in taken]

    def _read(self) -> None:
        while self._fd >= 0:
            try:
                record = os.read(self._fd, _RECORD)
            except BrokenPipeError:  # the log was faster; reading goes on at its oldest record
                continue
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if not record:
                return
            found = parse(record.decode(errors="replace"))
            if found is not None:
                self._killed.append(found)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
