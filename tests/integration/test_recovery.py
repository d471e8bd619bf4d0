"""Managers lost, moved and put out: what still answers meanwhile, and how a cluster goes on."""

import shutil
import subprocess
import sys
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from lab import images
from lab.api import ApiError, wait_until
from lab.cluster import Cluster
from lab.machine import Machine
from lab.story import Story

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _fresh(cluster: Cluster) -> None:
    """Each of these tests leaves a cluster that no other could use."""
    cluster.down()


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
    wait_until(lambda: len(running(first, "web")) == 1, "the task runs", 30)
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


@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "leading"])
def test_a_machine_with_another_address_is_found_again(cluster: Cluster, restarted: bool) -> None:
    """RAF 174, 193: as after DHCP gave it another: manager, agents and overlays follow. The
    daemon is off meanwhile, or leads and has to notice."""
    cluster.up(3)
    mover = cluster.machines[-1] if restarted else cluster.leader()
    first, second = (machine for machine in cluster.machines if machine is not mover)
    cluster.load(images.web_archive(cluster.folder, 1))
    story = Story(cluster, lambda line: None)
    story.create(3)
    story.create_client()
    story.wait_running(3)
    if restarted:
        mover.stop_daemon()
    change_address(mover, 100)
    mover.start_daemon()

    def whole() -> bool:
        nodes = first.api.get("/nodes")
        found = {node["Description"]["Hostname"]: node for node in nodes}[mover.name]
        manager = {"Addr": f"{mover.ip}:2377", "Reachability": "reachable"}
        status = found["Status"]["State"], found["Status"]["Addr"]
        return status == ("ready", mover.ip) and manager.items() <= found["ManagerStatus"].items()

    wait_until(whole, f"{mover.name} is whole at {mover.ip}", 30)

    def known() -> bool:
        managers = second.api.get("/info")["Swarm"]["RemoteManagers"]
        return f"{mover.ip}:2377" in {one["Addr"] for one in managers}

    wait_until(known, f"{second.name} knows", 20)
    story.use_again(mover, 6)
    story.wait_running(6)
    for machine in cluster.machines:
        wait_until(lambda machine=machine: all_answer(story, machine, 6), "all answer", 20)
    assert len(story.ask_virtual_ip(60).answers) == 6
    story.remove()


def change_address(machine: Machine, step: int) -> None:
    """Give `machine` another address on the switch."""
    old, new = machine.address, machine.address + step
    machine.exec("ip", "address", "delete", str(old), "dev", "eth0")
    machine.exec("ip", "address", "add", f"{new.ip}/{old.network.prefixlen}", "dev", "eth0")
    machine.address = IPv4Interface(f"{new.ip}/{old.network.prefixlen}")


def all_answer(story: Story, machine: Machine, count: int) -> bool:
    """Whether `count` tasks, and nothing else, answer at the published port of `machine`."""
    answers = story.ask_port(machine, 10 * count)
    return len(answers.answers) == count and not answers.failures


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs the docker command line")
def test_managers_put_out_with_dockers_words(cluster: Cluster) -> None:
    """RAF 179, 191, 192; NOD 220, 223: what would break the quorum is refused, the leader hands
    over first, of two one may go, and nobody gets a Raft id a second time."""
    cluster.up(3)
    first, second, third = cluster.machines
    used = raft_ids(first)

    def refused(machine: Machine, *words: str) -> str:
        done = docker(machine, *words)
        assert done.returncode != 0, done.stdout
        return done.stderr

    assert "must be demoted to worker before removal" in refused(first, "node", "rm", "-f", "m3")
    assert "Removing this node leaves 2 managers out of 3" in refused(third, "swarm", "leave")
    third.kill_daemon()
    wait_until(lambda: unreachable(first) == {"m3"}, "m3 is missed", 20)
    assert "this would result in a loss of quorum" in refused(first, "node", "demote", "m2")
    assert docker(first, "node", "demote", "m3").returncode == 0
    wait_until(lambda: len(raft_ids(first)) == 2, "m3 is out", 20)
    third.start_daemon()
    leader = cluster.leader()
    other = second if leader is first else first
    assert docker(other, "node", "demote", leader.name).returncode == 0
    wait_until(lambda: len(raft_ids(other)) == 1, "the leader handed over and is out", 20)
    wait_until(lambda: hostnames(other) == {"m1", "m2", "m3"}, "all have found the leader", 20)
    assert "attempting to demote the last manager" in refused(other, "node", "demote", other.name)
    assert "Removing the last manager erases all" in refused(other, "swarm", "leave")
    for name in ("m3", leader.name):
        wait_until(
            lambda name=name: docker(other, "node", "promote", name).returncode == 0,  # type: ignore[misc]
            f"{name} is promoted",
            20,
        )
    wait_until(lambda: len(voters(other)) == 3, "three manage again", 30)
    assert len(raft_ids(other) & used) == 1, "only who stayed has its id"
    wait_until(lambda: hostnames(other) == {"m1", "m2", "m3"}, "all are ready", 20)


def docker(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    """Docker's command line, talking to the daemon of `machine`.

    Again if a node was written between its reading and its writing, as after an election.
    """
    while True:
        done = subprocess.run(
            ["docker", "--host", machine.host, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "update out of sequence" not in done.stderr:
            return done


def raft_ids(machine: Machine) -> set[str]:
    """Of the managers, as the Node objects have them."""
    found = [node.get("ManagerStatus") or {} for node in machine.api.get("/nodes")]
    return {status["RaftID"] for status in found if status}


def voters(machine: Machine) -> set[str]:
    """The Raft ids of the managers that have caught up and can be reached."""
    found = [node.get("ManagerStatus") or {} for node in machine.api.get("/nodes")]
    return {status["RaftID"] for status in found if status.get("Reachability") == "reachable"}


def unreachable(machine: Machine) -> set[str]:
    return {
        node["Description"]["Hostname"]
        for node in machine.api.get("/nodes")
        if (node.get("ManagerStatus") or {}).get("Reachability") == "unreachable"
    }


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs the docker command line")
def test_a_new_cluster_from_one_survivor(cluster: Cluster) -> None:
    """RAF 184, 192: two of three machines are gone. Containers go on, the dry run tells, docker
    forces, tasks are replaced, a new machine joins as manager; an old one that comes back after
    all is a worker."""
    cluster.up(3)
    survivor, lost, gone = cluster.machines
    cluster.load(images.web_archive(cluster.folder, 1))
    survivor.api.post("/services/create", service("web", 3))
    wait_until(lambda: len(running(survivor, "web")) == 3, "three tasks run", 30)
    said = shoal(survivor, "swarm", "init", "--force-new-cluster", "--dry-run", check=False)
    assert "has a leader" in said.stderr
    tokens = survivor.api.get("/swarm")["JoinTokens"]
    lost.kill()
    gone.kill()
    wait_until(lambda: "no leader" in shoal(survivor, "node", "ls").stderr, "the loss shows", 20)
    here = {row["Id"] for row in survivor.api.get("/containers/json")}
    said = shoal(survivor, "swarm", "init", "--force-new-cluster", "--dry-run")
    assert f"m2 ({lost.ip}:2377)" in said.stdout
    assert "1 service" in said.stdout
    assert "no leader" in shoal(survivor, "node", "ls").stderr, "nothing was changed"

    done = docker(survivor, "swarm", "init", "--force-new-cluster")
    assert done.returncode == 0, done.stderr
    assert survivor.api.get("/swarm")["JoinTokens"] == tokens
    wait_until(lambda: hostnames(survivor, "down") == {"m2", "m3"}, "the others are down", 20)
    roles = {
        node["Description"]["Hostname"]: node["Spec"]["Role"] for node in survivor.api.get("/nodes")
    }
    assert roles == {"m1": "manager", "m2": "worker", "m3": "worker"}
    wait_until(lambda: len(running(survivor, "web")) == 3, "what was lost is replaced", 30)
    assert here <= {row["Id"] for row in survivor.api.get("/containers/json")}

    lost.start_daemon()
    wait_until(lambda: hostnames(survivor) == {"m1", "m2"}, "m2 is back", 30)
    wait_until(
        lambda: not lost.api.get("/info")["Swarm"]["ControlAvailable"], "m2 manages no more", 30
    )
    assert docker(survivor, "node", "promote", "m2").returncode == 0
    new = cluster.add_machine()
    cluster.join(new, "manager", via=survivor)
    wait_until(lambda: len(voters(survivor)) == 3, "three manage", 30)
    survivor.kill_daemon()
    wait_until(lambda: new.api.post("/services/create", service("more", 1)), "writes go on", 30)
