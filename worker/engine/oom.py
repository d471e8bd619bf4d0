"""How users are told that the kernel killed a process for want of memory. Pure."""

from typing import Any

OUT_OF_MEMORY = "out of memory"


def attributes(event: dict[str, Any]) -> dict[str, str]:
    """Of an `oom` event: who was killed, with the machine's number for it; nothing if nobody was
    (`oom-kill-disable`) or the kernel's log cannot be read."""
    name, pid = event.get("process"), event.get("pid")
    return {"process": str(name), "pid": str(pid)} if name and pid else {}


def reason(end: dict[str, Any]) -> str:
    """`State.Error` of a container in which that happened. `end`: what the keeper tells."""
    name, pid = end.get("oom_process"), end.get("oom_pid")
    who = f"process {name} (pid {pid})" if name and pid else "one of its processes"
    return f"{OUT_OF_MEMORY}: {who} was killed"
