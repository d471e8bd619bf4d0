"""Managers lost, moved and put out: what still answers meanwhile, and how a cluster goes on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import images
from lab.api import ApiError, wait_until
from lab.cluster import Cluster
from lab.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def shoal(machine: Machine, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command, talking to the daemon of `machine`."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "shoal"), "--host", machine.host, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


def service(name: str, replicas: int) -> dict[str, Any]:
    return {
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": images.web_name(1)}},
        "Mode": {"Replicated": {"Replicas": replicas}},
    }


def hostnames(machine: Machine, state: str = "ready") -> set[str]:
    return {
        node["Description"]["Hostname"]
        for node in machine.api.get("/nodes")
        if node["Status"]["State"] == state
    }


def running(machine: Machine, name: str) -> list[dict[str, Any]]:
    wanted = {"service": [name], "desired-state": ["running"]}
    tasks = machine.api.get("/tasks", filters=wanted)
    return [task for task in tasks if task["Status"]["State"] == "running"]


def test_without_quorum_what_is_stored_is_shown_and_writes_fail_at_once(cluster: Cluster) -> None:
    """RAF 176, 177: two of three are gone. What is shown is marked; writes say why not; when one
    comes back all goes on."""
    cluster.up(3)
    first, *rest = cluster.machines
    cluster.load(images.web_archive(cluster.folder, 1))
    first.api.post("/services/create", service("web", 1))
    first.api.post("/networks/create", {"Name": "app", "Driver": "overlay"})
    for machine in rest:
        machine.kill_daemon()
    shown = shoal(first, "node", "ls", "--format", "json")
    assert "there is no leader" in shown.stderr
    assert len(shown.stdout.splitlines()) == 3
    assert [one["Spec"]["Name"] for one in first.api.get("/services")] == ["web"]
    assert "app" in {one["Name"] for one in first.api.get("/networks")}
    assert first.api.get("/tasks")
    with pytest.raises(ApiError, match="The swarm does not have a leader") as refused:
        first.api.post("/services/create", service("more", 1))
    assert refused.value.status == 503
    rest[0].start_daemon()
    wait_until(lambda: first.api.post("/services/create", service("more", 1)), "writes go on", 30)
    assert "no leader" not in shoal(first, "service", "ls").stderr
