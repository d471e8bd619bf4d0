"""Times the main job on three lab machines: `python -m bench.main_job`.

The figures of Docker Swarm in the last column were measured on the same kind of machine (two
cores, three nodes in network namespaces); they are quoted, not measured in this run.
"""

import statistics
import sys
import time
from pathlib import Path

from lab import images
from lab.api import wait_until
from lab.cluster import Cluster
from lab.machine import Machine
from lab.story import Story

RUNS = 3  # of what can be repeated; the median is shown
STARTS = 20  # single containers


def main() -> None:
    cluster = Cluster("shoal-bench")
    cluster.down()
    rows: list[tuple[str, str, str, str]] = []
    try:
        _measure(Story(cluster, lambda line: None), rows)
    finally:
        cluster.down()
        _show(rows)


def _measure(story: Story, rows: list[tuple[str, str, str, str]]) -> None:
    cluster = story.cluster
    cluster.up(3)
    story.load_images()
    m1 = cluster.machines[0]
    story.shoal(m1, "network", "create", "bench")

    times = [_replicas_running(story, 30) for _ in range(RUNS)]
    rows.append(("30 replicas on an overlay with VIP running", _median(times), "< 2 s", "10.0 s"))
    times = [_update(story) for _ in range(RUNS)]
    rows.append(("20 replicas updated 5 at a time, stop-first", _median(times), "< 5 s", "19.9 s"))
    starts = [_start_container(m1) * 1000 for _ in range(STARTS)]
    rows.append(
        (
            "one container, API call to running",
            f"{statistics.median(starts):.0f} ms (min {min(starts):.0f})",
            "< 40 ms",
            "400 ms",
        )
    )
    for machine in cluster.machines:
        shoald, keeper = _memory(machine)
        rows.append(
            (
                f"memory on {machine.name}: shoald + keeper (RSS)",
                f"{shoald:.0f} + {keeper:.0f} MB",
                "<= 80 MB",
                "57-81 MB",
            )
        )
    story.create()
    dead, seconds = story.kill_leader()
    rows.append(("leader's machine dies, next write", f"{seconds:.2f} s", "< 2 s", "11-27 s"))
    story.wait_replaced(dead)
    story.bring_back(dead)
    cluster.wait_ready(3)
    leader = cluster.leader()
    victim = next(machine for machine in cluster.machines if machine is not leader)
    story.wait_running(6)
    story.shoal(m1, "service", "update", "--force", "-q", "web")
    seconds = story.cut(victim)
    rows.append(("a machine dies, tasks replaced", f"{seconds:.2f} s", "< 6 s", "20.4 s"))


def _replicas_running(story: Story, count: int) -> float:
    machine = story.cluster.machines[0]
    began = time.monotonic()
    story.shoal(
        machine, "service", "create", "--name", "many", "--replicas", str(count),
        "--network", "bench", "--no-healthcheck", "--detach", images.web_name(1),
    )  # fmt: skip
    story.wait_running(count, "many")
    seconds = time.monotonic() - began
    _remove(story, "many")
    return seconds


def _update(story: Story) -> float:
    machine = story.cluster.machines[0]
    story.shoal(
        machine, "service", "create", "--name", "many", "--replicas", "20", "--network", "bench",
        "--no-healthcheck", "--update-parallelism", "5", "--update-order", "stop-first",
        "--update-monitor", "0s", "--detach", images.web_name(1),
    )  # fmt: skip
    story.wait_running(20, "many")
    began = time.monotonic()
    story.shoal(machine, "service", "update", "--detach", "--image", images.web_name(2), "many")
    story.wait_running(20, "many", images.web_name(2))
    seconds = time.monotonic() - began
    _remove(story, "many")
    return seconds


def _remove(story: Story, service: str) -> None:
    machine = story.cluster.machines[0]
    story.shoal(machine, "service", "rm", service)
    wait_until(lambda: not machine.api.get("/tasks"), "the tasks are gone", 60)


def _start_container(machine: Machine) -> float:
    body = {
        "Image": images.web_name(1),
        "Cmd": ["sleep", "1000"],
        "Healthcheck": {"Test": ["NONE"]},
    }
    began = time.monotonic()
    created = machine.api.post("/containers/create", body)["Id"]
    machine.api.post(f"/containers/{created}/start")
    seconds = time.monotonic() - began
    machine.api.delete(f"/containers/{created}", force=1)
    return seconds


def _memory(machine: Machine) -> tuple[float, float]:
    """Resident megabytes of the daemon and of the keeper."""
    daemon = machine.daemon
    keepers = [
        process.pid
        for process in machine.processes.values()
        if b"keeper" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    ]
    return _resident(daemon.pid) if daemon else 0.0, sum(_resident(pid) for pid in keepers)


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return 0.0


def _median(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s (min {min(times):.2f}, max {max(times):.2f})"


def _show(rows: list[tuple[str, str, str, str]]) -> None:
    for row in [("", "Shoal", "goal", "Docker Swarm"), *rows]:
        print(f"{row[0]:<46}{row[1]:<36}{row[2]:<11}{row[3]}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
