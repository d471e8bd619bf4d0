"""What a container uses, and its processes: `docker stats` and `docker top`. Blocking."""

import datetime as dt
import os
import pwd
import shlex
import subprocess
from pathlib import Path
from typing import Any

from common.errors import Invalid, NotImplementedHere
from worker.engine.inspect import time
from worker.runtime.cgroups import Hierarchy, Usage

_PS_S = 10.0
_TICK = os.sysconf("SC_CLK_TCK")


def stats(
    usage: Usage | None, name: str, container_id: str, pid: int, now: dt.datetime
) -> dict[str, Any]:
    """One sample, without the previous one: the engine keeps that."""
    shown: dict[str, Any] = {
        "id": container_id,
        "name": f"/{name}",
        "read": time(now),
        "num_procs": 0,
        "storage_stats": {},
        "pids_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
        "cpu_stats": {"cpu_usage": {"total_usage": 0}, "throttling_data": {}},
        "memory_stats": {},
    }
    if usage is None:
        return shown
    shown["pids_stats"] = {"current": usage.pids}
    if usage.pids_limit:
        shown["pids_stats"]["limit"] = usage.pids_limit
    shown["cpu_stats"] = {
        "cpu_usage": {
            "total_usage": usage.cpu_ns,
            "usage_in_kernelmode": usage.cpu_system_ns,
            "usage_in_usermode": usage.cpu_user_ns,
        },
        "system_cpu_usage": _machine_cpu_ns(),
        "online_cpus": os.cpu_count() or 1,
        "throttling_data": {
            "periods": usage.periods,
            "throttled_periods": usage.throttled_periods,
            "throttled_time": usage.throttled_ns,
        },
    }
    shown["blkio_stats"] = {
        "io_service_bytes_recursive": [
            {"major": disk.major, "minor": disk.minor, "op": op, "value": value}
            for disk in usage.disks
            for op, value in (("read", disk.read_bytes), ("write", disk.write_bytes))
        ],
        "io_serviced_recursive": [
            {"major": disk.major, "minor": disk.minor, "op": op, "value": value}
            for disk in usage.disks
            for op, value in (("read", disk.reads), ("write", disk.writes))
        ],
    }
    limit = usage.memory_limit or _machine_memory()
    shown["memory_stats"] = {"usage": usage.memory, "limit": limit, "stats": usage.memory_stat}
    shown["networks"] = _networks(pid)
    return shown


def _machine_cpu_ns() -> int:
    with open("/proc/stat") as file:
        fields = file.readline().split()[1:9]
    return sum(map(int, fields)) * (1_000_000_000 // _TICK)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _networks(pid: int) -> dict[str, dict[str, int]]:
    """Counters of the interfaces in the process's network namespace, but loopback."""
    names = ("bytes", "packets", "errors", "dropped")
    found = {}
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return {}
    for line in lines:
        name, _, numbers = line.partition(":")
        fields = [int(number) for number in numbers.split()]
        if name.strip() != "lo" and len(fields) >= 16:
            received = {f"rx_{n}": v for n, v in zip(names, fields[:4], strict=True)}
            sent = {f"tx_{n}": v for n, v in zip(names, fields[8:12], strict=True)}
            found[name.strip()] = received | sent
    return found


def top(hierarchy: Hierarchy, cgroup: str, now: dt.datetime) -> dict[str, Any]:
    """`ps -ef` of the container's processes, as the host sees them."""
    rows = [row for pid in hierarchy.pids(cgroup) if (row := _process(pid, now)) is not None]
    titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    return {"Titles": titles, "Processes": rows}


def ps(hierarchy: Hierarchy, cgroup: str, arguments: str) -> dict[str, Any]:
    """The machine's own ps with `arguments`, of the container's processes only. Raises Invalid."""
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise Invalid(f"ps_args = {arguments[:80]!r}: {error}") from error
    own = {str(pid) for pid in hierarchy.pids(cgroup)}
    try:
        done = subprocess.run(
            ["ps", *words],
            capture_output=True,
            timeout=_PS_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise NotImplementedHere("the machine has no ps; leave the arguments out") from None
    except subprocess.TimeoutExpired:
        raise Invalid(f"ps {arguments[:80]} does not end") from None
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise Invalid(f"ps {arguments[:80]}: {text or 'it failed'}")
    return table(done.stdout.decode(errors="replace"), own)


def table(text: str, own: set[str]) -> dict[str, Any]:
    """What ps printed as Docker's rows, those of the processes `own`. Raises Invalid. Pure."""
    lines = text.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise Invalid("Couldn't find PID field in ps output: ask for the pid column too")
    place, last = titles.index("PID"), len(titles) - 1
    rows = [line.split(None, last) for line in lines[1:]]
    found = [row for row in rows if len(row) > place and row[place] in own]
    return {"Titles": titles, "Processes": found}


def _process(pid: int, now: dt.datetime) -> list[str] | None:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        uid = os.stat(f"/proc/{pid}").st_uid
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = rest.split()
    used, started = int(fields[11]) + int(fields[12]), int(fields[19]) / _TICK
    begun = now - dt.timedelta(seconds=max(uptime - started, 0))
    command = b" ".join(words).decode(errors="replace").strip()
    share = int(100 * used / _TICK / max(uptime - started, 1))
    seconds = used // _TICK
    return [
        _user(uid),
        str(pid),
        fields[1],
        str(share),
        begun.astimezone().strftime("%H:%M"),
        "?" if fields[4] == "0" else f"pts/{int(fields[4]) & 0xFF}",
        f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
        command or f"[{name.partition('(')[2]}]",
    ]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
