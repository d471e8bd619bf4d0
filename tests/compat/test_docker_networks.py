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


def test_networks_of_a_running_container_come_and_go(docker: Docker) -> None:
    """docker network connect --ip --alias --link, disconnect; docker run --network twice, --link,
    --mac-address; docker events; what is refused, in Docker's words."""
    since = docker("info", "-f", "{{.SystemTime}}")
    for name, subnet in (("one", "172.30.1.0/24"), ("two", "172.30.2.0/24")):
        docker("network", "create", "--subnet", subnet, name)
    box(docker, "store", "--mac-address", "02:00:00:00:01:02")
    first = endpoints(docker, "store")["bridge"]
    assert first["MacAddress"] == "02:00:00:00:01:02"
    box(docker, "reader", "--link", "store:data")
    assert lookup(docker, "reader", "data") == [first["IPAddress"]]
    docker("network", "connect", "--ip", "172.30.2.9", "--alias", "shelf", "two", "store")
    docker("network", "connect", "--link", "store:kept", "two", "reader")
    assert lookup(docker, "reader", "shelf") == lookup(docker, "reader", "kept") == ["172.30.2.9"]
    found = endpoints(docker, "store")["two"]
    assert found["IPAMConfig"] == {"IPv4Address": "172.30.2.9"}
    assert found["DNSNames"][:2] == ["store", "shelf"]
    assert "172.30.2.9" in docker("exec", "store", "cat", "/etc/hosts")
    refused = {
        ("connect", "two", "store"): "endpoint with name store already exists in network two",
        ("connect", "--ip", "172.30.2.9", "two", "third"): "Address already in use",
        ("connect", "--ip", "10.1.1.1", "two", "third"): "does not belong to any",
        ("connect", "--ip", "10.1.1.1", "bridge", "third"): "on user defined networks only",
        ("connect", "host", "third"): "host",
        ("connect", "nosuch", "third"): "network nosuch not found",
        ("disconnect", "two", "third"): "is not connected",
        ("create", "two"): "network with name two already exists",
        ("create", "--subnet", "172.30.2.128/25", "more"): "Pool overlaps with other one",
        ("create", "--ipv6", "six"): "EnableIPv6",
        ("rm", "bridge"): "pre-defined network and cannot be removed",
    }
    box(docker, "third", "--network", "one")
    for words, text in refused.items():
        assert text in docker.refused("network", *words), words
    for network in ("bridge", "two"):
        docker("network", "disconnect", network, "reader")
    assert endpoints(docker, "reader") == {}
    assert docker("exec", "reader", "ip", "-o", "link").count("\n") == 0
    docker("restart", "-t", "0", "reader")
    assert endpoints(docker, "reader") == {}
    docker("stop", "-t", "0", "store")
    assert endpoints(docker, "store")["two"]["IPAMConfig"] == {"IPv4Address": "172.30.2.9"}
    docker("network", "disconnect", "bridge", "store")
    docker("start", "store")
    assert {name: one["Gateway"] for name, one in endpoints(docker, "store").items()} == {
        "two": "172.30.2.1"
    }
    names = docker("network", "ls", "-f", "dangling=false", "-f", "type=custom", "--format",
                   "{{.Name}} {{.Driver}} {{.Scope}}")  # fmt: skip
    assert names.splitlines() == ["one bridge local", "two bridge local"]
    docker("rm", "-f", "store", "reader", "third")
    docker("network", "rm", "one", "two")
    until = docker("info", "-f", "{{.SystemTime}}")
    told = docker("events", "--since", since, "--until", until, "-f", "type=network",
                  "--format", "{{.Action}} {{.Actor.Attributes.name}}")  # fmt: skip
    happened = told.splitlines()
    assert happened[:3] == ["create one", "create two", "connect bridge"]
    assert happened[-2:] == ["destroy one", "destroy two"]
    assert happened.count("connect two") == happened.count("disconnect two") == 3
