"""A clumsy user of a real cluster: one line, the right status, nothing half-made."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.api import ApiError, wait_until
from lab.cluster import Cluster
from lab.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
SHOAL = Path(sys.executable).with_name("shoal")


@pytest.fixture(scope="module")
def made(cluster: Cluster) -> Iterator[Cluster]:
    """Two managers, and a third machine that is in no cluster."""
    cluster.boot(3, managers=2)
    cluster.init(cluster.machines[0])
    cluster.join(cluster.machines[1], "manager")
    cluster.wait_ready(2)
    yield cluster
    for machine in cluster.machines:
        assert "Traceback" not in machine.log_tail(1000)


def shoal(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [str(SHOAL), "-H", machine.host, *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)


def service(**container: Any) -> dict[str, Any]:
    return {"Name": "bad", "TaskTemplate": {"ContainerSpec": {"Image": "web:1"} | container}}


CREATE = ("service", "create", "-d", "--name", "bad")
REFUSED = [
    ((*CREATE, "--replicas", "-1", "web:1"), "replicas is -1"),
    ((*CREATE, "--limit-memory", "1b", "web:1"), "memory limit is 1 bytes; use at least"),
    ((*CREATE, "UPPER:::bad"), "invalid reference format"),
    ((*CREATE, "--hostname", "{{.Foo}}", "web:1"), "template {{.Foo}} cannot be expanded"),
    ((*CREATE, "-p", "2377:80", "web:1"), "port 2377/tcp is the cluster's own"),
    ((*CREATE, "--env-file", sys.executable, "web:1"), "is not text"),
    ((*CREATE, "--command", "'open", "web:1"), "no closing quotation"),
    ((*CREATE, "--network", "nowhere", "web:1"), "network nowhere not found"),
    (("network", "create", "--subnet", "10.0.0.0/99", "bad"), "is not an address range"),
    (("swarm", "init"), "already part of a swarm"),
    (("node", "rm", "m2"), "must be demoted to worker before removal"),
    (("container", "rm", "nowhere"), "No such container: nowhere"),
    (("--bogus",), "No such option"),
]


@pytest.mark.parametrize(
    ("line", "says"), REFUSED, ids=[" ".join(case[0][-3:]) for case in REFUSED]
)
def test_the_command_says_what_is_wrong(made: Cluster, line: tuple[str, ...], says: str) -> None:
    done = shoal(made.machines[0], *line)
    assert done.returncode != 0
    errors = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert made.machines[0].api.get("/services") == []


BODIES = [
    ({}, 400, "no container spec"),
    ([], 400, "expected object, got array"),
    (service(Bogus=1), 501, "ContainerSpec.Bogus"),
    (service(StopGracePeriod=10**30), 400, "is out of range"),
    (service(Env="A=1"), 400, "TaskTemplate.ContainerSpec.Env: expected array"),
]


@pytest.mark.parametrize(("body", "status", "says"), BODIES, ids=[case[2] for case in BODIES])
def test_the_api_has_the_right_status(made: Cluster, body: object, status: int, says: str) -> None:
    """On the leader and handed to it by the other manager."""
    for machine in made.machines[:2]:
        with pytest.raises(ApiError) as caught:
            machine.api.post("/services/create", body)
        assert caught.value.status == status
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(b"{garbage", b"400", id="no JSON"),
        pytest.param(b"[" * 100_000, b"400", id="too deep"),
        pytest.param(b" " * (5 << 20), b"413", id="too large"),
    ],
)
def test_what_is_no_body(made: Cluster, raw: bytes, says: bytes) -> None:
    head = b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(raw)
    assert _said(made.machines[0], head + raw).startswith(b"HTTP/1.1 " + says)


def test_what_is_no_http(made: Cluster) -> None:
    assert b" 400 " in _said(made.machines[0], b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")
    assert b" 400 " in _said(made.machines[0], b"\x16\x03\x01 hello\r\n\r\n")


def _said(machine: Machine, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(machine.api.path))
        raw.sendall(request)
        return raw.recv(4096)


def test_an_image_that_is_nowhere(made: Cluster) -> None:
    """The reason is shown, and tasks are not made faster than the restart delay says."""
    api = made.machines[0].api
    assert shoal(made.machines[0], *CREATE, "127.0.0.1:1/nowhere:1").returncode == 0
    try:
        wait_until(lambda: len(_rejected(api.get("/tasks"))) >= 2, "two tasks were tried", 20)
        tasks = api.get("/tasks")
        assert len(tasks) <= 3
        assert {task["Status"]["Err"] for task in _rejected(tasks)} == {
            "cannot reach registry 127.0.0.1:1: Connect call failed ('127.0.0.1', 1)"
        }
    finally:
        assert shoal(made.machines[0], "service", "rm", "bad").returncode == 0


def _rejected(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [task for task in tasks if task["Status"]["State"] == "rejected"]


def test_a_join_that_fails_leaves_nothing(made: Cluster) -> None:
    first, last = made.machines[0], made.machines[2]
    token = first.api.get("/swarm")["JoinTokens"]["Manager"]
    holder = last.popen(
        [sys.executable, "-c", _HOLD, "2377"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for given, says in (
            ((token, f"{first.ip}:2377"), "port 2377 is in use"),
            ((token[:-5] + "zzzzz", f"{first.ip}:2377"), "the join token is not valid"),
            (("bogus", f"{first.ip}:2377"), "this is not a join token"),
            ((token, f"{first.ip}:1"), "cannot reach"),
            ((token, "--advertise-addr", "203.0.113.1", first.ip), "not an address of this machi"),
        ):
            done = shoal(last, "swarm", "join", "--token", *given)
            assert done.returncode == 1
            assert says in done.stderr
    finally:
        holder.communicate(b"", timeout=10)
    assert len(made.nodes()) == 2
    assert last.api.get("/info")["Swarm"]["LocalNodeState"] == "inactive"


_HOLD = """
import socket, sys
held = socket.create_server(("", int(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


def test_without_quorum_a_line_says_so(made: Cluster) -> None:
    """Last, as it stops a manager. The write ends when the leader knows that it is alone."""
    first, second = made.machines[:2]
    second.kill_daemon()
    for line in ((*CREATE, "web:1"), ("service", "rm", "bad")):
        done = shoal(first, *line)
        assert done.returncode == 1
        assert "does not have a leader" in done.stderr or "may have happened" in done.stderr
    done = shoal(first, "node", "ls")
    assert (done.returncode, "there is no leader" in done.stderr) == (0, True)
    done = shoal(second, "node", "ls")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is shoald running? Start it with: shoald" in done.stderr
    second.start_daemon()
    wait_until(lambda: _works(made), "writes go on", 20)


def _works(cluster: Cluster) -> bool:
    done = shoal(cluster.machines[0], "node", "ls")
    return done.returncode == 0 and not done.stderr
