"""The unmodified docker command against a lab cluster: every verb of the main job."""

import contextlib
import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import images
from lab.api import wait_until
from lab.cluster import Cluster
from lab.machine import Machine
from tests.support.docker_cli import Docker

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def booted(cluster: Cluster) -> Cluster:
    cluster.boot(3)
    return cluster


@pytest.fixture(scope="module")
def on(
    booted: Cluster, program: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], Docker]]:
    """docker on machine N; machine 1 is the first manager, 2 a worker, 3 a manager."""
    home = tmp_path_factory.mktemp("home")
    machines = [Docker(program, machine, home) for machine in booted.machines]
    first, second, third = machines
    out = first("swarm", "init", "--advertise-addr", first.machine.ip)
    assert "Swarm initialized: current node" in out
    for role, docker in (("worker", second), ("manager", third)):
        token = first("swarm", "join-token", "-q", role)
        joined = docker(
            "swarm", "join", "--token", token,
            "--advertise-addr", docker.machine.ip, f"{first.machine.ip}:2377",
        )  # fmt: skip
        assert joined == f"This node joined a swarm as a {role}."
    folder = tmp_path_factory.mktemp("images")
    for version in (1, 2):
        archive = images.web_archive(folder, version).read_bytes()
        for docker in machines:
            assert f"Loaded image: web:{version}" in docker("load", data=archive)
    booted.wait_ready(3)
    yield lambda number: machines[number - 1]
    for docker in (third, second, first):
        docker("swarm", "leave", "--force")


@pytest.fixture(scope="module")
def docker(on: Callable[[int], Docker]) -> Docker:
    return on(1)


@pytest.fixture(scope="module")
def service(docker: Docker) -> str:
    """A service of three on an overlay, made with most of the flags that there are."""
    docker("network", "create", "-d", "overlay", "--attachable", "net")
    docker(
        "service", "create", "--name", "web", "--replicas", "3", "--network", "net",
        "--publish", "8081:80", "--env", "COLOUR=blue", "--label", "tier=front",
        "--container-label", "kind=test", "--hostname", "web-{{.Task.Slot}}",
        "--limit-cpu", "0.5", "--limit-memory", "64m", "--reserve-memory", "16m",
        "--mount", "type=volume,source=data,target=/data", "--mount", "type=tmpfs,target=/scratch",
        "--constraint", "node.platform.os==linux",
        "--constraint", "node.role in (manager, worker)",
        "--constraint", "node.labels.none notexists", "--constraint", "node.hostname =~ m*",
        "--restart-condition", "any",
        "--restart-delay", "100ms", "--restart-max-attempts", "5", "--restart-window", "10s",
        "--stop-grace-period", "5s", "--update-parallelism", "1", "--update-delay", "0s",
        "--update-order", "stop-first", "--update-failure-action", "pause",
        "--update-monitor", "500ms", "--update-max-failure-ratio", "0.1",
        "--rollback-parallelism", "2", "--rollback-monitor", "500ms",
        "--rollback-order", "stop-first",
        "--health-cmd", "/bin/healthy", "--health-interval", "1s", "--health-timeout", "2s",
        "--health-retries", "3", "--user", "root", "--workdir", "/tmp", "-q", "web:1",
    )  # fmt: skip
    return "web"


def container_here(docker: Docker, service: str) -> str:
    """A running container of `service` on docker's machine."""
    wanted = f"label=com.docker.swarm.service.name={service}"
    wait_until(lambda: bool(docker("ps", "-q", "--filter", wanted)), "a container is here", 20)
    return docker("ps", "-q", "--filter", wanted).splitlines()[0]


def test_info_and_version(docker: Docker) -> None:
    info = json.loads(docker("info", "--format", "{{json .}}"))
    assert info["Swarm"]["LocalNodeState"] == "active"
    assert info["Swarm"]["Nodes"] == 3
    assert info["Swarm"]["Managers"] == 2
    assert "Server: Shoal" in docker("version")
    assert "Swarm: active" in docker("info")


def test_nodes(on: Callable[[int], Docker]) -> None:
    docker = on(3)  # a manager that need not be the leader hands over
    assert len(docker("node", "ls", "-q").splitlines()) == 3
    assert "Leader" in docker("node", "ls")
    docker("node", "update", "--label-add", "zone=a", "m2")
    assert json.loads(docker("node", "inspect", "m2"))[0]["Spec"]["Labels"] == {"zone": "a"}
    docker("node", "update", "--availability", "pause", "m2")
    docker("node", "update", "--availability", "active", "m2")
    assert docker("node", "ls", "--filter", "name=m2", "--format", "{{.Availability}}") == "Active"
    assert docker("node", "ps", "self") != ""


def test_a_node_is_promoted_and_demoted(on: Callable[[int], Docker]) -> None:
    """NOD 220."""
    docker = on(1)
    docker("node", "promote", "m2")

    def managers() -> int:
        info = json.loads(on(1)("info", "--format", "{{json .Swarm}}"))
        return int(info["Managers"])

    def is_manager() -> bool:
        return "Reachable" in docker("node", "ls", "--filter", "name=m2")

    wait_until(is_manager, "promoted", 30)
    assert managers() == 3
    docker("node", "demote", "m2")
    wait_until(
        lambda: "Reachable" not in docker("node", "ls", "--filter", "name=m2"), "demoted", 30
    )
    refusal = "node is not a swarm manager"
    wait_until(lambda: refusal in on(2).run("node", "ls").stderr, "m2 is a worker", 30)


def test_a_service_is_listed_and_inspected(docker: Docker, service: str) -> None:
    assert docker("service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}}") == (
        "web replicated 3/3 web:1"
    )
    assert "*:8081->80/tcp" in docker("service", "ls")
    assert "CurrentState" not in docker("service", "ps", service)
    assert (
        docker("service", "ps", "--filter", "desired-state=running", "-q", service).count("\n") == 2
    )
    found = json.loads(docker("service", "inspect", service))[0]
    container = found["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert container["Env"] == ["COLOUR=blue"]
    assert found["Endpoint"]["VirtualIPs"]
    assert "UpdateConfig" in docker("service", "inspect", "--pretty", service)


def test_what_was_asked_for_is_so_inside(docker: Docker, service: str) -> None:
    container = container_here(docker, service)
    assert docker("exec", container, "sh", "-c", "echo $COLOUR; pwd").split() == ["blue", "/tmp"]
    assert docker("exec", container, "hostname").startswith("web-")
    assert docker("exec", "-w", "/", "-e", "A=1", container, "sh", "-c", "echo $A$PWD") == "1/"
    assert docker("exec", "-i", container, "cat", data=b"through and back") == "through and back"
    assert docker.run("exec", container, "sh", "-c", "exit 7").returncode == 7
    found = json.loads(docker("inspect", container))[0]
    assert found["HostConfig"]["Memory"] == 64 << 20
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["Config"]["Labels"]["kind"] == "test"
    assert {mount["Destination"] for mount in found["Mounts"]} >= {"/data"}


def test_logs_of_a_service_and_of_a_container(docker: Docker, service: str) -> None:
    """LOG 166, 172."""
    container = container_here(docker, service)
    docker("exec", container, "sh", "-c", "echo said by hand >/proc/1/fd/1")
    wait_until(lambda: "said by hand" in docker("logs", container), "the log has it", 10)
    lines = docker("service", "logs", service).splitlines()
    assert any("said by hand" in line and line.startswith("web.") for line in lines), lines
    docker("exec", container, "sh", "-c", "echo said later >/proc/1/fd/1")
    wait_until(lambda: "said later" in docker("logs", container), "the log has it", 10)
    task = docker(
        "inspect", "--format", '{{index .Config.Labels "com.docker.swarm.task.id"}}', container
    )
    last = docker("service", "logs", "--raw", "--tail", "1", "--timestamps", task)
    assert last.endswith(" said later"), last
    moment = last.split()[0]
    assert docker("service", "logs", "--raw", "--since", moment, task) == "said later"
    detailed = docker("service", "logs", "--raw", "--details", "--tail", "1", task)
    assert f"com.docker.swarm.task.id={task}" in detailed


def test_a_service_is_scaled_updated_and_rolled_back(docker: Docker, service: str) -> None:
    """UPD 76, 86."""
    docker("service", "scale", "web=4")
    docker("service", "update", "--image", "web:2", "--env-add", "SIZE=xl", "-q", service)
    assert docker("service", "ls", "--format", "{{.Replicas}} {{.Image}}") == "4/4 web:2"
    docker("service", "rollback", "-q", service)
    assert docker("service", "ls", "--format", "{{.Replicas}} {{.Image}}") == "4/4 web:1"
    api = docker.machine.api
    found = api.get(f"/services/{service}/history")
    assert [item["Cause"] for item in found] == ["rollback", "update", "create"]
    assert found[1]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "web:2"


def test_a_global_service_is_on_every_node(docker: Docker) -> None:
    """GLO 93."""
    docker("service", "create", "--name", "everywhere", "--mode", "global", "-q", "web:1")
    nodes = docker("service", "ps", "--format", "{{.Node}}", "everywhere").splitlines()
    assert sorted(nodes) == ["m1", "m2", "m3"]
    docker("service", "rm", "everywhere")


def test_jobs_run_to_their_end(docker: Docker) -> None:
    """JOB 104, 110, 111; the client itself waits until all is done."""
    docker(
        "service", "create", "--name", "job", "--mode", "replicated-job", "--replicas", "4",
        "--max-concurrent", "2", "--no-healthcheck", "--entrypoint", "/bin/true", "-q", "web:1",
    )  # fmt: skip
    listed = ("service", "ls", "--filter", "name=job", "--format", "{{.Mode}} {{.Replicas}}")
    assert docker(*listed) == "replicated job 0/2 (4/4 completed)"
    states = docker("service", "ps", "--format", "{{.DesiredState}} {{.CurrentState}}", "job")
    assert states.count("Complete Complete") == 4
    docker("service", "update", "--force", "-q", "job")
    assert docker(*listed) == "replicated job 0/2 (4/4 completed)"
    docker("service", "rm", "job")
    docker(
        "service", "create", "--name", "each", "--mode", "global-job", "--no-healthcheck",
        "--entrypoint", "/bin/true", "-q", "web:1",
    )  # fmt: skip
    nodes = docker("service", "ps", "--format", "{{.Node}}", "each").splitlines()
    assert sorted(nodes) == ["m1", "m2", "m3"]
    docker("service", "rm", "each")


def test_secrets_and_configs(docker: Docker, on: Callable[[int], Docker], tmp_path: Path) -> None:
    """SEC 219: as files in the tasks on every node, in memory only; rotated by an update."""
    file = tmp_path / "app.conf"
    file.write_text("{{.Service.Name}} on {{.Node.Hostname}}\n")
    docker("secret", "create", "--label", "tier=web", "key-1", "-", data=b"sesame")
    docker("config", "create", "--template-driver", "golang", "app.conf", str(file))
    docker(
        "service", "create", "--name", "safe", "--mode", "global", "--no-healthcheck", "-q",
        "--secret", "source=key-1,target=key,uid=33,gid=44,mode=0440",
        "--config", "source=app.conf,target=/etc/app.conf", "web:1",
    )  # fmt: skip
    for number in (1, 2, 3):
        client = on(number)
        container = container_here(client, "safe")
        inside = functools.partial(client, "exec", container)
        assert inside("cat", "/run/secrets/key") == "sesame"
        assert inside("stat", "-c", "%u:%g %a", "/run/secrets/key") == "33:44 440"
        assert inside("cat", "/etc/app.conf") == f"safe on {client.machine.name}"
        assert client.run("exec", container, "sh", "-c", "echo x > /etc/app.conf").returncode
        assert "tmpfs" in inside("grep", "/run/secrets/key", "/proc/self/mounts")
        found = subprocess.run(
            ["grep", "-rlaF", "sesame", client.machine.state_dir], capture_output=True, check=False
        )
        assert not found.stdout, "a secret is on disk in clear"
    shown = docker("secret", "inspect", "key-1") + docker("service", "inspect", "safe")
    assert not re.search("sesame|c2VzYW1l", shown)
    assert "on {{.Node" in docker("config", "inspect", "--pretty", "app.conf")
    assert "key-1" in docker("secret", "ls", "--filter", "label=tier=web")
    assert "in use by the following service: safe" in docker.refused("secret", "rm", "key-1")
    docker("secret", "create", "key-2", "-", data=b"open")
    docker(
        "service", "update", "-q", "--secret-rm", "key-1",
        "--secret-add", "source=key-2,target=key,uid=33,gid=44,mode=0440", "safe",
    )  # fmt: skip
    assert docker("exec", container_here(docker, "safe"), "cat", "/run/secrets/key") == "open"
    docker("secret", "rm", "key-1")
    docker("service", "rm", "safe")
    docker("secret", "rm", "key-2")
    docker("config", "rm", "app.conf")


STACK = """
version: "3.8"
services:
  web:
    image: web:1
    ports: ["8089:80"]
    networks: [front]
    secrets: [key]
    configs: [{source: app, target: /etc/app.conf}]
    volumes: ["data:/data"]
    healthcheck: {disable: true}
    deploy:
      replicas: 2
      labels: {tier: web}
      update_config: {parallelism: 2, order: start-first}
      restart_policy: {condition: on-failure}
      placement:
        constraints: ["node.role == manager"]
        preferences: [{spread: node.labels.zone}]
      resources: {limits: {cpus: "0.5", memory: 50M}, reservations: {memory: 10M}}
  late:
    image: web:1
    healthcheck: {disable: true}
    deploy:
      labels: {shoal.depends_on: "web:healthy,never"}
networks: {front: {driver: overlay, attachable: true}}
volumes: {data: {}}
secrets: {key: {file: ./key.txt}}
configs: {app: {file: ./app.conf}}
"""


def test_a_stack_is_deployed_changed_and_removed(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text("sesame")
    (tmp_path / "app.conf").write_text("colour=blue")
    file = tmp_path / "stack.yml"
    file.write_text(STACK)
    docker("stack", "deploy", "-c", str(file), "shop")
    replicas = ("stack", "services", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}", "shop")
    wanted = "shop_web 2/2 *:8089->80/tcp"
    wait_until(lambda: wanted in docker(*replicas).splitlines(), "the stack runs", 30)
    waits = (
        "service",
        "ps",
        "--no-trunc",
        "--format",
        "{{.CurrentState}}: {{.Error}}",
        "shop_late",
    )
    why = "waits for service never, which does not exist"
    wait_until(lambda: why in docker(*waits), "what is to come later says why", 10)
    assert docker(*waits).startswith("New ")
    docker("service", "update", "-d", "--label-add", "shoal.depends_on=web", "shop_late")
    wait_until(lambda: "shop_late 1/1" in docker(*replicas), "the order is kept", 30)
    container = container_here(docker, "shop_web")
    assert docker("exec", container, "cat", "/run/secrets/key") == "sesame"
    assert docker("exec", container, "cat", "/etc/app.conf") == "colour=blue"
    assert "shop" in docker("stack", "ls")
    file.write_text(STACK.replace("replicas: 2", "replicas: 3"))
    docker("stack", "deploy", "-c", str(file), "shop")
    wait_until(lambda: "3/3" in docker(*replicas), "the stack has grown", 30)
    docker("stack", "rm", "shop")
    for kind in ("service", "secret", "config", "network"):
        assert "shop" not in docker(kind, "ls", "--format", "{{.Name}}")


def test_networks(docker: Docker, service: str) -> None:
    rows = docker("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines()
    assert "net overlay swarm" in rows
    assert "bridge bridge local" in rows
    found = json.loads(docker("network", "inspect", "net"))[0]
    assert found["IPAM"]["Config"][0]["Subnet"].endswith("/24")
    assert "web" in docker.refused("network", "rm", "net")
    docker("network", "create", "-d", "overlay", "--subnet", "10.99.0.0/24", "other")
    assert "overlap" in docker.refused(
        "network", "create", "-d", "overlay", "--subnet", "10.99.0.0/25", "third"
    )
    docker("network", "rm", "other")
    around = docker.machine.address.network
    refusal = docker.refused("network", "create", "-d", "overlay", "--subnet", str(around), "own")
    assert f"overlaps with {around}, a network of node m" in refusal


@contextlib.contextmanager
def process_listening(machine: Machine, port: int) -> Iterator[None]:
    """A process of the machine, in no container, that has `port` on all addresses."""
    program = (
        "import socket, sys; s = socket.create_server(('', int(sys.argv[1])));"
        "print(flush=True); sys.stdin.read()"
    )
    command = machine.enter([sys.executable, "-c", program, str(port)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None
        assert listener.stdin is not None
        listener.stdout.readline()
        try:
            yield
        finally:
            listener.stdin.close()


def tasks(docker: Docker, service: str) -> list[list[str]]:
    """Node, state and error of each, also of those that ended."""
    shown = "{{.Node}}|{{.CurrentState}}|{{.Error}}"
    rows = docker("service", "ps", "--no-trunc", "--format", shown, service).splitlines()
    return [[node, state.split()[0], error] for node, state, error in (r.split("|") for r in rows)]


def test_a_process_keeps_its_port_and_the_user_is_told(on: Callable[[int], Docker]) -> None:
    docker, second = on(1), on(2)
    with process_listening(second.machine, 8090):
        refusal = second.refused("run", "--rm", "-p", "8090:80", "web:1")
        assert "failed to bind host port 0.0.0.0:8090/tcp: address already in use" in refusal
        host = ("--publish", "published=8090,target=80,mode=host")
        docker("service", "create", "-d", "--name", "all", "--mode", "global", *host, "web:1")

        def refused() -> bool:
            return any(
                (node, state) == ("m2", "Rejected") and "address already in use" in error
                for node, state, error in tasks(docker, "all")
            )

        wait_until(refused, "refused with the reason", 30)
        docker("service", "rm", "all")
        docker("service", "create", "-d", "--name", "two", "--replicas", "2", *host, "web:1")

        def elsewhere() -> bool:
            running = {node for node, state, _ in tasks(docker, "two") if state == "Running"}
            return running == {"m1", "m3"}

        wait_until(elsewhere, "placed elsewhere", 30)
        docker("service", "rm", "two")
    with process_listening(second.machine, 8091):
        docker("service", "create", "-d", "--name", "mesh", "--publish", "8091:80", "web:1")
        why = "port 8091/tcp is not answered on this node"
        wait_until(lambda: why in docker("node", "inspect", "--pretty", "m2"), "it is told", 30)
        assert why not in docker("node", "inspect", "--pretty", "m1")
    wait_until(lambda: why not in docker("node", "inspect", "--pretty", "m2"), "it is over", 30)
    docker("service", "rm", "mesh")


def test_images(docker: Docker, tmp_path: Path) -> None:
    assert "web" in docker("image", "ls")
    busybox = shutil.which("busybox")
    assert busybox
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "sh")
    archive = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    docker("import", "--change", 'CMD ["/bin/sh"]', str(archive), "small:1")
    assert json.loads(docker("image", "inspect", "small:1"))[0]["Config"]["Cmd"] == ["/bin/sh"]
    assert "small:1" in docker("rmi", "small:1")
    assert "No such image" in docker.refused("image", "inspect", "small:1")


def test_containers_by_hand(docker: Docker) -> None:
    assert docker("run", "--rm", "web:1", "echo", "hello") == "hello"
    container = docker("run", "-d", "--name", "byhand", "web:1", "sh", "-c", "sleep 100")
    assert docker("ps", "--filter", "name=byhand", "--format", "{{.Names}}") == "byhand"
    assert docker("container", "inspect", "--format", "{{.State.Status}}", "byhand") == "running"
    docker("stop", "-t", "0", "byhand")
    exited = docker("ps", "-aq", "--no-trunc", "--filter", "status=exited")
    assert container in exited.splitlines()
    docker("rm", "byhand")


def test_a_service_without_a_name_is_given_one(docker: Docker) -> None:
    service = docker("service", "create", "--no-healthcheck", "-q", "web:1")
    name = docker("service", "inspect", "--format", "{{.Spec.Name}}", service)
    assert re.fullmatch(r"[a-z]+-[a-z]+", name)
    docker("service", "rm", name)


def test_events(docker: Docker) -> None:
    done = docker("run", "--rm", "web:1", "true")
    assert done == ""
    out = docker("events", "--since", "10m", "--until", "0s", "--filter", "type=container")
    assert "container die" in out


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["service", "create", "--replicas", "-1", "web:1"], "replicas|invalid"),
        (["service", "create", "--limit-memory", "1b", "web:1"], "memory|Memory"),
        (["service", "create", "--name", "web", "web:1"], "web"),
        (["service", "create", "--publish", "8081:80", "web:1"], "8081"),
        (["service", "create", "--network", "nowhere", "web:1"], "nowhere"),
        (["service", "create", "--constraint", "node.colour~blue", "web:1"], "constraint"),
        (["service", "inspect", "nothing"], "nothing"),
        (["node", "inspect", "nothing"], "nothing"),
        (["node", "rm", "m2"], "m2|down|force"),
        (["run", "unknown-image-of-nobody:1"], "unknown-image-of-nobody"),
        (["run", "--network", "nowhere", "web:1"], "network nowhere is none of this node's own"),
        (["exec", "nothing", "true"], "nothing"),
        (["swarm", "init"], "already part"),
        (["plugin", "ls"], "not supported"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_clear_line(
    docker: Docker, service: str, command: list[str], complaint: str
) -> None:
    assert re.search(complaint, docker.refused(*command))


def test_a_service_is_removed(docker: Docker, service: str) -> None:
    docker("service", "rm", service)
    assert docker("service", "ls", "-q") == ""
    wait_until(lambda: docker.run("network", "rm", "net").returncode == 0, "net is free", 30)
