"""The unmodified docker command locks managers and unlocks them (SEC 212, 216)."""

import os
import re

import pytest

from lab import images
from lab.api import wait_until
from lab.cluster import Cluster
from manager.raft.keyring import is_locked
from tests.support.docker_cli import CLIENTS, Docker

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

LOCKED = "Swarm is encrypted and needs to be unlocked before it can be used"


@pytest.fixture(scope="module")
def pair(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[Docker]:
    """A locked manager and a worker."""
    if not CLIENTS:
        if os.environ.get("CI"):
            pytest.fail("CI must have the docker command: apt-get install docker.io")
        pytest.skip("the docker command is not installed")
    cluster.boot(2)
    home = tmp_path_factory.mktemp("home")
    first, second = (Docker(CLIENTS[0], machine, home) for machine in cluster.machines)
    out = first("swarm", "init", "--autolock", "--advertise-addr", first.machine.ip)
    assert "SWMKEY-1-" in out
    token = first("swarm", "join-token", "-q", "worker")
    second("swarm", "join", "--token", token, f"{first.machine.ip}:2377")
    cluster.wait_ready(2)
    archive = images.web_archive(tmp_path_factory.mktemp("images"), 1).read_bytes()
    for docker in (first, second):
        docker("load", data=archive)
    return [first, second]


def state(docker: Docker) -> str:
    return docker("info", "--format", "{{.Swarm.LocalNodeState}}")


def test_a_manager_is_locked_by_its_restart_and_opened_by_its_key(pair: list[Docker]) -> None:
    first, second = pair
    key = first("swarm", "unlock-key", "-q")
    assert re.fullmatch(r"SWMKEY-1-[A-Za-z0-9+/]{43}", key)
    assert key in first("swarm", "unlock-key")
    assert key not in first("info", "--format", "{{json .}}")
    assert key not in first("swarm", "ca")
    assert "not a swarm manager" in second.refused("swarm", "unlock-key")
    assert "swarm is not locked" in first.refused("swarm", "unlock")

    first("service", "create", "-d", "--name", "web", "--replicas", "2", images.web_name(1))
    wait_until(lambda: len(first("ps", "-q").split()) == 1, "a task runs on the manager", 60)
    container = first("ps", "-q")
    first.machine.stop_daemon()
    first.machine.start_daemon()
    assert state(first) == "locked"
    for command in (["node", "ls"], ["service", "ls"], ["swarm", "unlock-key"], ["swarm", "init"]):
        assert LOCKED in first.refused(*command)
    assert first("ps", "-q") == container
    wrong = key[:-6] + ("AAAAAA" if key[-6:] != "AAAAAA" else "BBBBBB")
    refused = first.run("swarm", "unlock", data=wrong.encode() + b"\n")
    assert "swarm could not be unlocked: invalid key provided" in refused.stderr
    first("swarm", "unlock", data=key.encode() + b"\n")
    assert state(first) == "active"
    wait_until(lambda: first.run("node", "ls").returncode == 0, "it leads again", 30)
    assert first("ps", "-q") == container


def test_the_key_is_rotated_and_the_lock_taken_off(pair: list[Docker]) -> None:
    first, _ = pair
    old = first("swarm", "unlock-key", "-q")
    new = first("swarm", "unlock-key", "--rotate", "-q")
    assert new != old
    first.machine.stop_daemon()
    first.machine.start_daemon()
    assert "invalid key" in first.run("swarm", "unlock", data=old.encode() + b"\n").stderr
    first("swarm", "unlock", data=new.encode() + b"\n")
    wait_until(lambda: first.run("node", "ls").returncode == 0, "it leads again", 30)
    first("swarm", "update", "--autolock=false")
    assert "no unlock key is set" in first.refused("swarm", "unlock-key")
    assert "autolock is not turned on" in first.refused("swarm", "unlock-key", "--rotate")
    wait_until(lambda: not _locked(first), "its keys are open", 30)
    first.machine.stop_daemon()
    first.machine.start_daemon()
    assert state(first) == "active"
    wait_until(lambda: first.run("node", "ls").returncode == 0, "it leads again", 30)
    assert "SWMKEY-1-" in first("swarm", "update", "--autolock=true")


def _locked(docker: Docker) -> bool:
    return is_locked(docker.machine.state_dir / "swarm" / "keyring")
