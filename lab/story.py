"""The main job, step by step, on a lab cluster: what `make demo` shows and the tests assert.

Each step returns what was measured; nothing here judges.
"""

import collections
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lab import images
from lab.api import wait_until
from lab.box import LabError
from lab.cluster import Cluster
from lab.machine import Machine

_PROJECT = Path(__file__).resolve().parents[1]
PORT = 8080  # published on every machine
REPLICAS = 6
COMMAND_S = 90
SERVICE = "web"
CLIENT = "client"


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a series of requests: answers by their text, failures by their reason."""

    answers: dict[str, int] = {}
    failures: dict[str, int] = {}
    slowest_s: float = 0.0

    @property
    def answered(self) -> int:
        return sum(self.answers.values())

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def responders(self) -> int:
        return len(self.answers)


class Story:
    """Steps on a cluster that is up. `say` shows a line to whoever watches."""

    def __init__(self, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self._say = say
        self._folder = cluster.folder / "story"

    # The user's commands

    def shoal(self, machine: Machine, *arguments: str, quiet: bool = False) -> str:
        """What `shoal ARGUMENTS` on `machine` prints. Raises LabError with its complaint."""
        if not quiet:
            self._say(f"{machine.name}# shoal {' '.join(_quoted(text) for text in arguments)}")
        command = f"shoal {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "cli.main", *arguments],
                cwd=_PROJECT,
                env={**os.environ, "SHOAL_HOST": machine.host},
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{command}: not within {COMMAND_S} s") from error
        if done.returncode != 0:
            raise LabError(f"{command}: {done.stderr.strip()}")
        if not quiet:
            for line in done.stdout.rstrip().splitlines():
                self._say(f"    {line}")
        return done.stdout

    @property
    def manager(self) -> Machine:
        """A machine whose daemon runs and whose cable is in."""
        for machine in self.cluster.machines:
            if machine.daemon is not None and not self.cluster.switch.is_cut(machine.name):
                return machine
        raise LabError("no machine is up")

    # Steps

    def load_images(self) -> None:
        """The service's image in two versions, on every machine; no registry is needed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        archives = [images.web_archive(self._folder, version) for version in (1, 2)]
        self.cluster.load(*archives)

    def create(self, replicas: int = REPLICAS) -> float:
        """Seconds from `service create` until all replicas run."""
        machine = self.manager
        self.shoal(machine, "network", "create", "--driver", "overlay", "app")
        began = time.monotonic()
        self.shoal(
            machine, "service", "create", "--name", SERVICE, "--replicas", str(replicas),
            "--network", "app", "--publish", f"{PORT}:80",
            "--health-cmd", images.HEALTH_COMMAND, "--health-interval", "500ms",
            "--update-parallelism", "2", "--update-order", "start-first",
            "--update-monitor", "1s", "--restart-delay", "0s", "--detach", images.web_name(1),
        )  # fmt: skip
        self.wait_running(replicas, image=images.web_name(1))
        return time.monotonic() - began

    def create_client(self) -> None:
        """A container on the same network, to ask the virtual IP from."""
        self.shoal(
            self.manager, "service", "create", "--name", CLIENT, "--network", "app",
            "--entrypoint", "sleep", "--no-healthcheck", "--stop-signal", "SIGKILL",
            "--restart-delay", "0s", "--quiet", images.web_name(1), "100000",
        )  # fmt: skip

    def spread(self, service: str = SERVICE) -> dict[str, int]:
        """How many running tasks each machine has."""
        names = self._hostnames()
        return dict(collections.Counter(names[task["NodeID"]] for task in self.running(service)))

    def ask_virtual_ip(self, requests: int = 240) -> Answers:
        """Requests to http://web from the client container."""
        machine, container = self.client_container()
        script = (
            f"i=0; while [ $i -lt {requests} ]; do timeout 5 wget -q -O - http://{SERVICE}/ || "
            "echo FAILED; i=$((i+1)); done"
        )
        out = self.shoal(machine, "container", "exec", container, "sh", "-c", script, quiet=True)
        return _count(out)

    def ask_port(self, machine: Machine, requests: int = 240) -> Answers:
        """Requests to the published port of `machine`, from the machine itself."""
        script = (
            "import urllib.request as u\n"
            f"for _ in range({requests}):\n"
            "    try:\n"
            f"        print(u.urlopen('http://{machine.ip}:{PORT}/', timeout=5).read().decode()"
            ".strip())\n"
            "    except OSError as error:\n"
            "        print('FAILED', error)\n"
        )
        return _count(machine.exec(sys.executable, "-I", "-S", "-c", script))

    def ask_port_from_outside(self, machine: Machine, requests: int = 120) -> Answers:
        """Requests to the published port of `machine` from another one."""
        other = next(item for item in self.cluster.machines if item is not machine)
        with self.load(other, f"http://{machine.ip}:{PORT}/", workers=1) as load:
            time.sleep(requests * 0.008)
        return load.answers

    def update(self, version: int = 2) -> tuple[float, Answers]:
        """Roll the service to another image while requests flow: seconds, and the requests."""
        machine, other = self.manager, self.cluster.machines[-1]
        entry = self.cluster.machines[0]
        with contextlib.ExitStack() as stack:
            load = stack.enter_context(self.load(other, f"http://{entry.ip}:{PORT}/"))
            loads = [load, *self._load_virtual_ip(stack)]
            began = time.monotonic()
            self.shoal(
                machine,
                "service",
                "update",
                "--detach",
                "--image",
                images.web_name(version),
                SERVICE,
            )
            self.wait_updated()
            seconds = time.monotonic() - began
            self.wait_running(REPLICAS, image=images.web_name(version))
        return seconds, _sum(load.answers for load in loads)

    def _load_virtual_ip(self, stack: contextlib.ExitStack) -> "list[RunningLoad]":
        """Requests from the client to the virtual IP, if there is a client."""
        if not self.running(CLIENT):
            return []
        host, inside = self.inside_client()
        load = self.load(host, self.virtual_ip(), workers=2, within=inside)
        return [stack.enter_context(load)]

    def drain(self, machine: Machine) -> tuple[float, Answers]:
        """Empty a machine while requests flow: seconds, and the requests."""
        other = next(item for item in self.cluster.machines if item is not machine)
        with self.load(other, f"http://{other.ip}:{PORT}/") as load:
            began = time.monotonic()
            self.shoal(self.manager, "node", "update", "--availability", "drain", machine.name)
            wait_until(
                lambda: (
                    machine.name not in self.spread()
                    and len(self.running()) == REPLICAS
                    and not self._alive_on(machine)
                ),
                f"{machine.name} is empty",
                60,
            )
            seconds = time.monotonic() - began
        return seconds, load.answers

    def activate(self, machine: Machine) -> None:
        self.shoal(self.manager, "node", "update", "--availability", "active", machine.name)

    def kill_leader(self) -> tuple[Machine, float]:
        """Power off the leader's machine: it, and seconds until the next write succeeds."""
        leader = self.cluster.leader()
        survivor = next(item for item in self.cluster.machines if item is not leader)
        self._say(f"{leader.name} leads; its power is cut")
        leader.kill()
        began = time.monotonic()
        wait_until(lambda: self.write(survivor), "a write succeeds", 60, 0.01)
        return leader, time.monotonic() - began

    def wait_replaced(self, machine: Machine, replicas: int = REPLICAS) -> float:
        """Seconds until all replicas run on machines other than `machine`."""
        began = time.monotonic()

        def replaced() -> bool:
            names = self._hostnames()
            places = [names[task["NodeID"]] for task in self.running()]
            return len(places) == replicas and machine.name not in places

        wait_until(replaced, f"the tasks of {machine.name} are replaced", 60)
        return time.monotonic() - began

    def cut(self, machine: Machine) -> float:
        """Pull a machine's cable: seconds until its tasks run elsewhere."""
        self._say(f"{machine.name}'s network cable is pulled")
        machine.cut()
        return self.wait_replaced(machine)

    def bring_back(self, machine: Machine) -> float:
        """Power on or plug in: seconds until the node is ready again."""
        began = time.monotonic()
        machine.start_daemon()
        if self.cluster.switch.is_cut(machine.name):
            machine.heal()
        wait_until(lambda: self._state(machine) == "ready", f"{machine.name} is ready", 60)
        return time.monotonic() - began

    def use_again(self, machine: Machine, replicas: int) -> float:
        """Scale up: seconds until `machine` runs a share of the tasks."""
        began = time.monotonic()
        self.shoal(self.manager, "service", "scale", "--detach", f"{SERVICE}={replicas}")
        self.wait_running(replicas)
        if not self.spread().get(machine.name):
            raise LabError(f"{machine.name} is back but gets no task")
        return time.monotonic() - began

    def remove(self) -> None:
        """Both services and their network."""
        machine = self.manager
        self.shoal(machine, "service", "rm", SERVICE, CLIENT)
        wait_until(lambda: not machine.api.get("/tasks"), "the services' tasks are gone", 30)
        self.shoal(machine, "network", "rm", "app")

    # What the steps look at

    def running(self, service: str = SERVICE) -> list[dict[str, Any]]:
        """The tasks that run and should."""
        tasks: list[dict[str, Any]] = self.manager.api.get(
            "/tasks", filters={"service": [service], "desired-state": ["running"]}
        )
        return [task for task in tasks if task["Status"]["State"] == "running"]

    def wait_running(self, count: int, service: str = SERVICE, image: str = "") -> None:
        def done() -> bool:
            tasks = self.running(service)
            if image:
                tasks = [t for t in tasks if t["Spec"]["ContainerSpec"]["Image"] == image]
            return len(tasks) == count

        wait_until(done, f"{count} tasks of {service} run", 60, 0.01)

    def wait_updated(self) -> None:
        """Until the update is over, well or not. Raises LabError when it was not completed."""

        def state() -> str:
            service = self.manager.api.get(f"/services/{SERVICE}")
            status: dict[str, str] = service.get("UpdateStatus") or {}
            if status.get("State") in ("paused", "rollback_paused", "rollback_completed"):
                raise RuntimeError(f"the update ended as {status}")
            return status.get("State", "")

        wait_until(lambda: state() == "completed", "the update is completed", 120)

    def client_container(self) -> tuple[Machine, str]:
        """The machine and the id of the client's container."""
        self.wait_running(1, CLIENT)
        task = self.running(CLIENT)[0]
        machine = self.cluster.machine(self._hostnames()[task["NodeID"]])
        return machine, task["Status"]["ContainerStatus"]["ContainerID"]

    def virtual_ip(self) -> str:
        """The URL of the service on its network."""
        service = self.manager.api.get(f"/services/{SERVICE}")
        address: str = service["Endpoint"]["VirtualIPs"][0]["Addr"]
        return f"http://{address.split('/')[0]}/"

    def inside_client(self) -> tuple[Machine, tuple[str, ...]]:
        """The client's machine, and the command that runs what follows in its network."""
        machine, container = self.client_container()
        pid = machine.api.get(f"/containers/{container}/json")["State"]["Pid"]
        return machine, ("nsenter", f"--net=/proc/{pid}/ns/net")

    @contextlib.contextmanager
    def load(
        self,
        machine: Machine,
        url: str,
        *,
        workers: int = 4,
        within: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> Iterator["RunningLoad"]:
        """Requests from `machine` to `url` for as long as the block lasts.

        `within` is a command that runs what follows it, elsewhere on the machine.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        until = self._folder / f"load-{machine.name}-{time.monotonic_ns()}"
        command = [*within, sys.executable, "-m", "lab.load", url, "--until", str(until)]
        command += ["--workers", str(workers), *options]
        argv = machine.enter(command, folder=_PROJECT)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        load = RunningLoad()
        try:
            yield load
        finally:
            until.touch()
            out, _ = process.communicate(timeout=30)
            until.unlink(missing_ok=True)
            load.answers = msgspec.convert(json.loads(out), Answers)

    def _hostnames(self) -> dict[str, str]:
        return {
            node["ID"]: node["Description"]["Hostname"] for node in self.manager.api.get("/nodes")
        }

    def _state(self, machine: Machine) -> str:
        """The newest node of that name: one that left and joined again has an old entry too."""
        nodes = self.manager.api.get("/nodes", filters={"name": [machine.name]})
        states = [node["Status"]["State"] for node in nodes]
        return "ready" if "ready" in states else "".join(states[:1])

    def _alive_on(self, machine: Machine) -> bool:
        rows = machine.api.get("/containers/json")
        return any(row["Labels"].get("com.docker.swarm.service.name") == SERVICE for row in rows)

    def write(self, machine: Machine) -> bool:
        """Change a label of the service; no task is touched by that. Raises LabError."""
        service = machine.api.get(f"/services/{SERVICE}", deadline_s=2)
        spec = service["Spec"]
        spec["Labels"] = {**spec.get("Labels", {}), "written": str(time.monotonic_ns())}
        machine.api.post(
            f"/services/{service['ID']}/update",
            spec,
            deadline_s=2,
            version=service["Version"]["Index"],
        )
        return True


class RunningLoad:
    """A load under way; `answers` are there once it has ended."""

    answers = Answers()


def _sum(parts: Iterable[Answers]) -> Answers:
    """What several loads came to."""
    answers: collections.Counter[str] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    slowest_s = 0.0
    for part in parts:
        answers.update(part.answers)
        failures.update(part.failures)
        slowest_s = max(slowest_s, part.slowest_s)
    return Answers(answers=dict(answers), failures=dict(failures), slowest_s=slowest_s)


def _count(text: str) -> Answers:
    lines = [line for line in text.splitlines() if line.strip()]
    return Answers(
        answers=dict(collections.Counter(line for line in lines if "FAILED" not in line)),
        failures=dict(collections.Counter(line for line in lines if "FAILED" in line)),
    )


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text


def evenness(answers: Answers) -> Sequence[int]:
    """Answers of each responder, fewest first."""
    return sorted(answers.answers.values())
