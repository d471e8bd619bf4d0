"""The unmodified docker command and the networks of one machine.

Each test names the page of Docker's reference whose words it checks.
"""

import json
from typing import Any

import pytest

from lab import images
from lab.cluster import Cluster
from tests.support.docker_cli import Docker

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def docker(cluster: Cluster, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Docker:
    cluster.boot(1)
    docker = Docker(debian, cluster.machines[0], tmp_path_factory.mktemp("home"))
    archive = images.busybox(tmp_path_factory.mktemp("images") / "box.tar", name="box:1")
    docker("load", data=archive.read_bytes())
    return docker


def box(docker: Docker, name: str, *arguments: str) -> str:
    quick = ["--dns", "127.0.0.1"]  # nobody listens there: names of others fail at once
    docker("run", "-d", "--name", name, *quick, *arguments, "box:1", "sleep", "1000")
    return name


def endpoints(docker: Docker, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]["NetworkSettings"]["Networks"]
    return found


def lookup(docker: Docker, name: str, asked: str) -> list[str]:
    done = docker.run("exec", name, "nslookup", asked)
    answers = done.stdout.partition("Name:")[2] if not done.returncode else ""
    return [line.split()[-1] for line in answers.splitlines() if line.startswith("Address")]


def test_a_compose_like_set_up(docker: Docker) -> None:
    """docker network create, docker run --network: names, aliases, isolation, published ports."""
    docker("network", "create", "--label", "project=p", "--subnet", "172.30.7.0/24",
           "--ip-range", "172.30.7.128/25", "--gateway", "172.30.7.1", "front")  # fmt: skip
    docker("network", "create", "--internal", "--label", "project=p", "back")
    web = box(docker, "web", "--network", "front", "--network-alias", "www", "-p", "8090:80",
              "--hostname", "webhost")  # fmt: skip
    box(docker, "db", "--network", "back", "--network-alias", "database")
    docker("network", "connect", "--alias", "site", "back", web)
    found = endpoints(docker, web)
    assert found["front"]["IPAddress"] == "172.30.7.128"
    assert found["front"]["Gateway"] == "172.30.7.1"
    assert found["back"]["Aliases"] == ["site"]
    box(docker, "client", "--network", "front", "--ip", "172.30.7.77")
    assert endpoints(docker, "client")["front"]["IPAddress"] == "172.30.7.77"
    short = docker("inspect", "-f", "{{.Id}}", web)[:12]
    for name in ("web", "www", "webhost", short, "web.front"):
        assert lookup(docker, "client", name) == ["172.30.7.128"], name
    assert lookup(docker, "client", "database") == []
    assert lookup(docker, web, "database") == [endpoints(docker, "db")["back"]["IPAddress"]]
    assert lookup(docker, "db", "site") == [found["back"]["IPAddress"]]
    docker("exec", "client", "ping", "-c1", "-W2", "www")
    back = endpoints(docker, "db")["back"]["IPAddress"]
    assert docker.run("exec", "client", "ping", "-c1", "-W1", back).returncode
    docker("exec", "-d", web, "httpd", "-f", "-p", "80", "-h", "/etc")
    gateway = "172.30.7.1"
    for place in ("client", web):
        assert "root" in docker("exec", place, "wget", "-qO-", f"http://{gateway}:8090/passwd")
    listed = docker("network", "ls", "--filter", "label=project=p", "--format", "{{.Name}}")
    assert listed.split() == ["back", "front"]
    shown = json.loads(docker("network", "inspect", "front"))[0]
    assert {one["Name"] for one in shown["Containers"].values()} == {"web", "client"}
    assert "has active endpoints" in docker.refused("network", "rm", "front")
    docker("network", "disconnect", "back", web)
    assert lookup(docker, web, "database") == []
    docker("rename", web, "web2")
    assert lookup(docker, "client", "web2") == ["172.30.7.128"]
    docker("rm", "-f", "web2", "db", "client")
    assert sorted(docker("network", "prune", "-f").split()[2:]) == ["back", "front"]
