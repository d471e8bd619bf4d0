"""Every node pulls a service's image from a registry that runs on one of the machines."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import leaks
from lab.api import wait_until
from lab.cluster import Cluster
from tests.support import registry as registries
from tests.support.registry import TestImage, layer
from worker.images import manifest as manifests

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        registries.BINARY is None, reason="needs docker-registry: apt-get install docker-registry"
    ),
]
PORT = 5000


@pytest.fixture
def machines(lab_allowed: None) -> Iterator[Cluster]:
    prefix = "t-registry"
    before = leaks.snapshot(prefix)
    cluster = Cluster(prefix, settings={"insecure_registries": ["192.168.231.0/24"]})
    cluster.down()
    try:
        cluster.up(3, managers=1)
        yield cluster
    finally:
        cluster.down()
    assert leaks.difference(before, leaks.snapshot(prefix)) == []


@pytest.fixture
def repository(machines: Cluster, tmp_path: Path) -> Iterator[str]:
    """The name of an image in a registry on the first machine, filled beforehand."""
    busybox = shutil.which("busybox")
    assert busybox
    image = TestImage(
        layer({"bin/sleep": Path(busybox).read_bytes()}, mode=0o755),
        layer({"etc/motd": b"second layer"}),
        architecture=manifests.platform().architecture,
        Cmd=["/bin/sleep", "1000"],
        StopSignal="SIGKILL",
    )
    with registries.running(tmp_path) as filling:
        filling.push(image, "team/sleeper", "1")
    first = machines.machines[0]
    address = f"{first.ip}:{PORT}"
    config = json.loads((tmp_path / "config.yml").read_text())
    config["http"]["addr"] = address
    (tmp_path / "config.yml").write_text(json.dumps(config))
    argv = first.enter([str(registries.BINARY), "serve", str(tmp_path / "config.yml")])
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"{address}/team/sleeper"
    finally:
        process.terminate()
        process.wait()


def test_every_node_pulls_the_image(machines: Cluster, repository: str) -> None:
    manager = machines.machines[0].api
    spec = {
        "Name": "sleeper",
        "TaskTemplate": {"ContainerSpec": {"Image": f"{repository}:1"}},
        "Mode": {"Global": {}},
    }
    manager.post("/services/create", spec)

    def running() -> int:
        tasks = manager.get("/tasks", filters={"service": ["sleeper"]})
        return sum(task["Status"]["State"] == "running" for task in tasks)

    wait_until(lambda: running() == 3, "the image runs on all three", 60)
    for machine in machines.machines:
        (row,) = machine.api.get("/images/json")
        assert row["RepoTags"] == [f"{repository}:1"]


def test_an_unknown_tag_is_said_on_the_task(machines: Cluster, repository: str) -> None:
    """AGT 233: the true reason, and REJECTED since it never started."""
    manager = machines.machines[0].api
    spec = {
        "Name": "nobody",
        "TaskTemplate": {
            "ContainerSpec": {"Image": f"{repository}:none"},
            "RestartPolicy": {"Condition": "none"},
        },
    }
    manager.post("/services/create", spec)

    def rejected() -> bool:
        tasks = manager.get("/tasks", filters={"service": ["nobody"]})
        return bool(tasks) and tasks[0]["Status"]["State"] == "rejected"

    wait_until(rejected, "the task is rejected", 60)
    (task,) = manager.get("/tasks", filters={"service": ["nobody"]})
    assert f"{repository}:none" in task["Status"]["Err"]
