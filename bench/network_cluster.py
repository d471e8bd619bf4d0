"""From a task that runs to one that answers, on a cluster of lab machines with daemons.

Each machine has a container of a global service on the same overlay. In all of them a probe tries
the VIP of a service without tasks every 2 ms, and another the port it publishes on that machine;
then the service gets a task. RUNNING is the time of the task's status, so of its node.
"""

import statistics
import subprocess
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench.network_rows import Report
from bench.network_tools import Place, program
from lab import images
from lab.api import Api, wait_until
from lab.cluster import Cluster

PREFIX = "shoal-bench-many"
_PORT = 8080
_DEADLINE_S = 30


class Reached(NamedTuple):
    """Seconds, of one turn."""

    asked: float  # until RUNNING, from the request
    by_vip: list[float]  # after RUNNING, for each machine
    by_port: list[float]


def reachable(machines: int, turns: int, report: Report) -> None:
    """RUNNING until answered on all of `machines`."""
    report.title(f"A task on one of {machines} machines; all ask for it every 2 ms")
    cluster = Cluster(PREFIX)
    cluster.down()
    try:
        cluster.up(machines, min(3, machines), deadline_s=180)
        api = _prepare(cluster)
        found = [_turn(cluster, api) for _ in range(turns)]
    finally:
        cluster.down()
    for name, spans in (
        ("by the VIP", [span for turn in found for span in turn.by_vip]),
        ("by the published port", [span for turn in found for span in turn.by_port]),
    ):
        ordered = sorted(1000 * span for span in spans)
        p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        words = f"p50 {statistics.median(ordered):.0f}, worst {ordered[-1]:.0f}, of {len(ordered)}"
        report.most(f"RUNNING to answered {name}, p99", p99, "ms", 200.0, words)
    start = statistics.median(1000 * (turn.asked + max(turn.by_vip)) for turn in found)
    report.most("request to answered on all machines, p50", start, "ms", None)


def _prepare(cluster: Cluster) -> Api:
    archive = images.busybox(cluster.folder / "busybox.tar")
    load = images.archive(
        cluster.folder / "load.tar", "load:latest", [images.base_layer(), _program_layer()], {}
    )
    cluster.load(archive, load)
    api = cluster.machines[0].api
    network = api.post("/networks/create", {"Name": "bench", "Driver": "overlay"})["Id"]
    api.post("/services/create", _service("asker", ["sleep", "100000"], network, "busybox:latest"))
    target = _service("target", ["/load", "serve", "80"], network, "load:latest", 0)
    api.post("/services/create", target)
    _wait_running(api, "asker", len(cluster.machines))
    return api


def _program_layer() -> bytes:
    source = Path(__file__).with_name("network_load.c")
    static = Path(program()).with_name("load-static")
    subprocess.run(["cc", "-O2", "-static", "-o", str(static), str(source)], check=True)
    return images.layer({"load": images.File(static.read_bytes(), 0o755)})


def _service(
    name: str, command: list[str], network: str, image: str, replicas: int = -1
) -> dict[str, Any]:
    mode = {"Global": {}} if replicas < 0 else {"Replicated": {"Replicas": replicas}}
    published = {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": _PORT}
    return {
        "Name": name,
        "Mode": mode,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": image, "Command": command, "StopGracePeriod": 0, "Init": False,
            },
            "Networks": [{"Target": network}],
        },
        "EndpointSpec": {"Ports": [published] if name == "target" else []},
    }  # fmt: skip


def _turn(cluster: Cluster, api: Api) -> Reached:
    target = api.get("/services/target")
    vip = next(
        item["Addr"].split("/")[0]
        for item in target["Endpoint"]["VirtualIPs"]
        if item["NetworkID"] == target["Spec"]["TaskTemplate"]["Networks"][0]["Target"]
    )
    with ExitStack() as stack:
        inside = [_probe(stack, Place(path), vip, 80) for path in _askers(cluster)]
        init = cluster.switch.init
        assert init is not None
        outside = Place(f"/proc/{init.pid}/ns/net")
        by_port = [_probe(stack, outside, item.ip, _PORT) for item in cluster.machines]
        time.sleep(1)  # until all of them are at it
        asked = time.time()
        _scale(api, 1)
        answered = [_when(probe) for probe in inside]
        entered = [_when(probe) for probe in by_port]
    (task,) = [task for task in _tasks(api, "target") if task["Status"]["State"] == "running"]
    ran = _seconds(task["Status"]["Timestamp"])
    _scale(api, 0)
    wait_until(lambda: not _running(api, "target"), "the task has gone", _DEADLINE_S)
    return Reached(ran - asked, [at - ran for at in answered], [at - ran for at in entered])


def _askers(cluster: Cluster) -> list[str]:
    """A path to the sandbox of each machine's container of `asker`."""
    found = []
    for machine in cluster.machines:
        (container,) = [
            item for item in machine.api.get("/containers/json") if "asker" in item["Names"][0]
        ]
        assert machine.init is not None  # whose view of the mounts is the daemon's
        found.append(f"/proc/{machine.init.pid}/root{machine.run_dir}/netns/{container['Id']}")
    return found


def _probe(stack: ExitStack, place: Place, address: str, port: int) -> subprocess.Popen[str]:
    words = place.enter(program(), "first", address, str(port), str(_DEADLINE_S))
    probe = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    stack.callback(probe.kill)
    return probe


def _when(probe: subprocess.Popen[str]) -> float:
    printed = probe.communicate(timeout=_DEADLINE_S + 5)[0]
    if not printed:
        raise RuntimeError(f"nobody answered within {_DEADLINE_S} s")
    return float(printed)


def _scale(api: Api, replicas: int) -> None:
    found = api.get("/services/target")
    found["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas
    api.post("/services/target/update?version=" + str(found["Version"]["Index"]), found["Spec"])


def _tasks(api: Api, service: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get("/tasks", filters={"service": [service]})
    return found


def _running(api: Api, service: str) -> list[dict[str, Any]]:
    return [task for task in _tasks(api, service) if task["Status"]["State"] == "running"]


def _wait_running(api: Api, service: str, count: int) -> None:
    wait_until(lambda: len(_running(api, service)) == count, f"{service} runs", 180, 0.1)


def _seconds(timestamp: str) -> float:
    """Of RFC 3339 with nanoseconds, as the API has it."""
    whole, _, rest = timestamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{rest or 0}")
