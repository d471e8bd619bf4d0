"""Failures for a lab cluster, and what must hold again after each of them.

`python -m tests.support.lab_chaos --seed 7 --steps 40` goes on for longer than a test may.
"""

import argparse
import contextlib
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab import images
from lab.api import ApiError, wait_until
from lab.box import LabError
from lab.cluster import Cluster
from lab.machine import Machine
from lab.story import CLIENT, PORT, SERVICE, Answers, Story

SETTLE_S = 40.0
AGREE_S = 10.0  # from "all run" until every machine's balancer and containers agree with that
MEMORY_MAX = 120 << 20  # of one daemon, whatever happened to it
_BAD_LINE = re.compile(r"Traceback|trace=|level=(error|critical)")

# What a node has as such: its keeper, its own pool, the other nodes. And those who look.
_OWN = re.compile(r"keeper|process (sh|ps|sed|env)\b|02:ee:|ip saddr 10\.192\.\d+\.0/22 ")


class Broken(AssertionError):
    """Something that must hold does not."""


class Chaos:
    """Breaks a cluster that runs the story's service, one step after the other."""

    def __init__(
        self,
        cluster: Cluster,
        rng: random.Random,
        say: Callable[[str], None],
        replicas: int = 6,
        managers: int = 3,
    ) -> None:
        self.cluster = cluster
        self.story = Story(cluster, lambda _: None)
        self.replicas = replicas
        self.version = 1
        self._rng = rng
        self._say = say
        self._manager_count = 0
        self._clean: dict[str, set[str]] = {}
        self._read: dict[str, int] = {}

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        return {
            "daemon killed": self.daemon_killed,
            "keeper killed": self.keeper_killed,
            "power off": self.power_off,
            "cable cut": lambda: self.cable_cut("both"),
            "cable deaf": lambda: self.cable_cut("in"),
            "cable mute": lambda: self.cable_cut("out"),
            "drain": self.drain,
            "update": self.update,
            "scale": self.scale,
            "made anew": self.made_anew,
            "leader killed": self.leader_killed,
            "leader off": self.leader_off,
            "leave": self.leave,
            "all off": self.all_off,
            "all daemons killed": self.all_daemons_killed,
            "daemon and keeper killed": self.daemon_and_keeper_killed,
            "two off": self.two_off,
            "leader killed in update": self.leader_killed_in_update,
            "away while changed": self.away_while_changed,
            "loose cable": self.loose_cable,
            "killed while starting": self.killed_while_starting,
            "removed and killed": self.removed_and_killed,
        }

    def begin(self, machines: int = 3, managers: int = 3) -> None:
        self._manager_count = managers
        self.cluster.up(machines, managers)
        self.story.load_images()
        self._clean = {one.name: _traces(one) for one in self.cluster.machines}
        self.story.create(self.replicas)
        self.story.create_client()
        self.settle()

    def end(self) -> None:
        """Remove all that was made. Raises Broken if a machine keeps something of it."""
        self.story.remove()

        def left() -> list[str]:
            return [
                f"{machine.name}: {line}"
                for machine in self.cluster.machines
                for line in sorted(_traces(machine) - self._clean[machine.name])
            ]

        with contextlib.suppress(LabError):
            wait_until(lambda: not left(), "nothing is left", 15, 0.3)
        if lines := left():
            raise Broken("left:\n" + "\n".join(lines))

    def run(self, names: Sequence[str]) -> None:
        """The steps of these names, with `settle` after each. Raises Broken."""
        for name in names:
            began = time.monotonic()
            self._say(f"--- {name}")
            try:
                self.steps[name]()
                done = time.monotonic()
                self.settle()
            except LabError as error:
                raise Broken(f"after {name!r}: {error}") from error
            now = time.monotonic()
            self._say(f"    {name}: {done - began:.1f} s, settled {now - done:.1f} s later")

    # Steps

    def daemon_killed(self) -> None:
        machine = self._any()
        self._say(f"    {machine.name}")
        machine.kill_daemon()
        time.sleep(self._rng.choice([0.0, 0.5, 6.0]))
        machine.start_daemon()

    def leader_killed(self) -> None:
        leader = self.cluster.leader()
        self._say(f"    {leader.name}")
        leader.kill_daemon()
        survivor = next(one for one in self.cluster.machines if one is not leader)
        took = wait_until(lambda: self.story.write(survivor), "a write succeeds", 20, 0.01)
        self._say(f"    next write after {took:.2f} s")
        leader.start_daemon()

    def keeper_killed(self) -> None:
        machine = self._any()
        self._say(f"    {machine.name}")
        keepers = [one for one in machine.processes.values() if _is_keeper(one.pid)]
        if not keepers:
            raise Broken(f"{machine.name} has no keeper")
        for keeper in keepers:
            keeper.signal(signal.SIGKILL)
        time.sleep(0.3)

    def power_off(self) -> None:
        leader = self.cluster.leader()
        self._off(self._rng.choice([one for one in self.cluster.machines if one is not leader]))

    def leader_off(self) -> None:
        self._off(self.cluster.leader())

    def _spread(self) -> None:
        """Have tasks on every machine: where one was away the others keep what they took over."""
        if len(self.story.spread()) < len(self.cluster.machines):
            for replicas in (1, self.replicas):
                self.story.shoal(
                    self._manager(), "service", "scale", "--detach", f"{SERVICE}={replicas}"
                )
                self.story.wait_running(replicas)

    def _off(self, machine: Machine) -> None:
        self._spread()
        had = self.story.spread()
        self._say(f"    {machine.name}, tasks {had}")
        survivor = next(one for one in self.cluster.machines if one is not machine)
        machine.kill()
        began = time.monotonic()
        wait_until(lambda: self.story.write(survivor), "a write succeeds", 20, 0.01)
        written = time.monotonic() - began
        self.story.wait_replaced(machine, self.replicas)
        replaced = time.monotonic() - began
        self._say(f"    next write after {written:.2f} s, replaced after {replaced:.2f} s")
        self._settle_without(machine)
        machine.start_daemon()

    def cable_cut(self, direction: Any) -> None:
        self._spread()
        machine = self._any()
        self._say(f"    {machine.name}")
        machine.cut(direction)
        if direction == "both":
            began = time.monotonic()
            self.story.wait_replaced(machine, self.replicas)
            self._say(f"    replaced after {time.monotonic() - began:.2f} s")
            self._settle_without(machine)
        else:
            time.sleep(self._rng.choice([1.0, 5.0]))
        machine.heal()

    def drain(self) -> None:
        self._spread()
        machine = self._any()
        seconds, answers = self._drained(machine)
        self._say(f"    {machine.name} empty after {seconds:.1f} s, {answers.answered} requests")
        if answers.failed:
            raise Broken(f"draining {machine.name} lost requests: {answers.failures}")
        self.story.activate(machine)

    def _drained(self, machine: Machine) -> tuple[float, Answers]:
        other = next(one for one in self.cluster.machines if one is not machine)
        with self.story.load(other, f"http://{other.ip}:{PORT}/") as load:
            began = time.monotonic()
            node = self._node(machine)
            self.story.shoal(other, "node", "update", "--availability", "drain", node)
            self.story.wait_replaced(machine, self.replicas)
            seconds = time.monotonic() - began
            time.sleep(0.5)
        return seconds, load.answers

    def update(self) -> None:
        self.version = 3 - self.version
        entry, other = self.cluster.machines[0], self.cluster.machines[-1]
        with self.story.load(other, f"http://{entry.ip}:{PORT}/") as load:
            self.story.shoal(
                self._manager(), "service", "update", "--detach",
                "--image", images.web_name(self.version), SERVICE,
            )  # fmt: skip
            self.story.wait_updated()
        if load.answers.failed:
            raise Broken(f"the update lost requests: {load.answers.failures}")

    def scale(self) -> None:
        self.replicas = self._rng.choice([n for n in (2, 4, 6, 9, 12) if n != self.replicas])
        self._say(f"    to {self.replicas}")
        self.story.shoal(
            self._manager(), "service", "scale", "--detach", f"{SERVICE}={self.replicas}"
        )

    def made_anew(self) -> None:
        machine = self._manager()
        self.story.shoal(machine, "service", "rm", SERVICE, CLIENT)
        wait_until(lambda: self._network_gone(machine), "the network can be removed", 20)
        self.version = 1
        self.story.create(self.replicas)
        self.story.create_client()

    def _network_gone(self, machine: Machine) -> bool:
        try:
            machine.api.delete("/networks/app")
        except ApiError as error:
            return error.status == 404
        return True

    def leave(self) -> None:
        machine = self._any()
        node = self._node(machine)
        self._say(f"    {machine.name}")
        machine.api.post("/swarm/leave", force="true")
        other = next(one for one in self.cluster.machines if one is not machine)
        wait_until(lambda: self._down(node, other), f"{machine.name} is down", 30)
        self._settle_without(machine)
        other.api.delete(f"/nodes/{node}", force="true")
        role = "manager" if machine in self._managers(self.cluster.machines) else "worker"
        self.cluster.join(machine, role, via=other)

    def all_off(self) -> None:
        for machine in self.cluster.machines:
            machine.kill()
        self.cluster.each(lambda machine: machine.start_daemon())

    def all_daemons_killed(self) -> None:
        """Containers outlive that: the tasks are the same afterwards."""
        before = self._containers()
        self.cluster.each(lambda machine: machine.kill_daemon())
        self.cluster.each(lambda machine: machine.start_daemon())
        self._converge(self.cluster.machines)
        if self._containers() != before:
            raise Broken(f"the daemons' end cost containers: {_short(before - self._containers())}")

    def _containers(self) -> set[str]:
        running = self._running(self.cluster.machines[0])
        return {_container(task) for tasks in running.values() for task in tasks}

    def daemon_and_keeper_killed(self) -> None:
        machine = self._any()
        self._say(f"    {machine.name}")
        keepers = [one for one in machine.processes.values() if _is_keeper(one.pid)]
        machine.kill_daemon()
        for keeper in keepers:
            keeper.signal(signal.SIGKILL)
        machine.start_daemon()

    def two_off(self) -> None:
        """No quorum for a while; what runs on the third machine goes on."""
        stays = self._any()
        self._say(f"    all but {stays.name}")
        others = [one for one in self.cluster.machines if one is not stays]
        self.cluster.each(lambda machine: machine.kill(), others)
        time.sleep(self._rng.choice([0.5, 5.0]))
        self.cluster.each(lambda machine: machine.start_daemon(), others)

    def leader_killed_in_update(self) -> None:
        self.version = 3 - self.version
        leader = self.cluster.leader()
        other = next(one for one in self.cluster.machines if one is not leader)
        self.story.shoal(
            other, "service", "update", "--detach",
            "--image", images.web_name(self.version), SERVICE,
        )  # fmt: skip
        time.sleep(self._rng.choice([0.1, 0.6]))
        leader.kill_daemon()
        time.sleep(self._rng.choice([0.0, 2.0]))
        leader.start_daemon()
        self.story.wait_updated()

    def away_while_changed(self) -> None:
        """A daemon comes back and finds that other tasks are wanted than those it runs."""
        self._spread()
        machine = self._any()
        self._say(f"    {machine.name}")
        machine.kill_daemon()
        self.replicas = self._rng.choice([2, 3, 8])
        other = next(one for one in self.cluster.machines if one is not machine)
        wait_until(lambda: self._scaled(other), "the service is scaled", 10)
        if self._rng.random() < 0.5:
            wait_until(lambda: self._down(self._node_named(machine, other), other), "down", 20)
        machine.start_daemon()

    def _scaled(self, via: Machine) -> bool:
        self.story.shoal(via, "service", "scale", "--detach", f"{SERVICE}={self.replicas}")
        return True

    def loose_cable(self) -> None:
        machine = self._any()
        self._say(f"    {machine.name}")
        for _ in range(6):
            machine.cut(self._rng.choice(["both", "in", "out"]))
            time.sleep(self._rng.uniform(0.1, 2.5))
            machine.heal()
            time.sleep(self._rng.uniform(0.1, 1.0))

    def killed_while_starting(self) -> None:
        """Daemons and keepers die with containers half-made."""
        self.replicas = self._rng.choice([n for n in (7, 10, 12) if n != self.replicas])
        for replicas in (1, self.replicas):
            self.story.shoal(
                self._manager(), "service", "scale", "--detach", f"{SERVICE}={replicas}"
            )
        for machine in self.cluster.machines:
            time.sleep(self._rng.uniform(0, 0.15))
            machine.kill_daemon()
            if self._rng.random() < 0.3:
                for keeper in machine.processes.values():
                    if _is_keeper(keeper.pid):
                        keeper.signal(signal.SIGKILL)
        self.cluster.each(lambda machine: machine.start_daemon())

    def removed_and_killed(self) -> None:
        """Everything is removed while daemons die, and made again under the same names."""
        leader = self.cluster.leader()
        victim = self._rng.choice(self.cluster.machines)
        self._say(f"    {leader.name} and {victim.name}")
        self.story.shoal(leader, "service", "rm", SERVICE, CLIENT)
        time.sleep(self._rng.uniform(0, 0.3))
        leader.kill_daemon()
        victim.kill_daemon()
        self.cluster.each(lambda machine: machine.start_daemon())
        wait_until(lambda: self._network_gone(victim), "the network can be removed", 30)
        self.version = 1
        self.story.create(self.replicas)
        self.story.create_client()

    # What must hold

    def settle(self) -> None:
        """Wait until the cluster is as it should be, and check that it is. Raises Broken."""
        self._converge(self.cluster.machines)
        self._agree(self.cluster.machines)
        self._check_logs()
        self._check_memory()

    def _settle_without(self, machine: Machine) -> None:
        rest = [one for one in self.cluster.machines if one is not machine]
        self._converge(rest)
        self._agree(rest)

    def _converge(self, machines: Sequence[Machine]) -> None:
        def converged() -> bool:
            ready = [
                node["Description"]["Hostname"]
                for node in machines[0].api.get("/nodes")
                if node["Status"]["State"] == "ready"
            ]
            names = {one.name for one in machines}
            return names == set(ready) and all(map(self._runs, self._managers(machines)))

        try:
            wait_until(converged, "the cluster is as it should be", SETTLE_S, 0.05)
        except LabError as error:
            raise Broken(f"{error}\n{self.describe()}") from error

    def _runs(self, machine: Machine) -> bool:
        tasks = self._running(machine)
        slots = [task["Slot"] for task in tasks[SERVICE]]
        versions = {task["Spec"]["ContainerSpec"]["Image"] for task in tasks[SERVICE]}
        return (
            len(slots) == len(set(slots)) == self.replicas
            and versions == {images.web_name(self.version)}
            and len(tasks[CLIENT]) == 1
        )

    def _running(self, machine: Machine) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for service in (SERVICE, CLIENT):
            tasks = machine.api.get(
                "/tasks", filters={"service": [service], "desired-state": ["running"]}
            )
            found[service] = [task for task in tasks if task["Status"]["State"] == "running"]
        return found

    def _agree(self, machines: Sequence[Machine]) -> None:
        began, last = time.monotonic(), [""]
        while wrong := self._wrong(machines):
            if time.monotonic() - began > AGREE_S:
                raise Broken("\n".join([*wrong, self.describe()]))
            if wrong != last:
                self._say(f"    {time.monotonic() - began:.1f}: {wrong[:3]}")
            last = wrong
        took = time.monotonic() - began
        if took > 2:
            self._say(f"    agreed only after {took:.1f} s: {last[:3]}")

    def _wrong(self, machines: Sequence[Machine]) -> list[str]:
        """What does not agree with the tasks that run."""
        tasks = self._running(machines[0])
        wrong = self._wrong_containers(machines, tasks) + self._wrong_addresses(machines[0])
        wrong += [] if len(tasks[CLIENT]) == 1 else ["no client"]
        if wrong or not self._runs(machines[0]):
            return wrong or ["the tasks have changed"]
        alive = {_container(task)[:12] for task in tasks[SERVICE]}
        requests = 10 * len(alive)  # so many that none is missed by chance
        for machine in machines:
            answers = self.story.ask_port(machine, requests)
            wrong += _wrong_answers(f"port of {machine.name}", answers, alive)
        client = tasks[CLIENT][0]
        where = self.cluster.machine(self._names(machines[0])[client["NodeID"]])
        if wrong:
            return wrong
        answers = self._ask_virtual_ip(where, _container(client), requests)
        return _wrong_answers(f"virtual IP on {where.name}", answers, alive)

    def _ask_virtual_ip(self, machine: Machine, container: str, requests: int) -> Answers:
        script = (
            f"i=0; while [ $i -lt {requests} ]; do timeout 5 wget -q -O - http://{SERVICE}/ || "
            "echo FAILED; i=$((i+1)); done"
        )
        out = self.story.shoal(
            machine, "container", "exec", container, "sh", "-c", script, quiet=True
        )
        lines = [line for line in out.splitlines() if line.strip()]
        return Answers(
            answers={line: lines.count(line) for line in lines if line != "FAILED"},
            failures={"FAILED": lines.count("FAILED")} if "FAILED" in lines else {},
        )

    def _wrong_containers(
        self, machines: Sequence[Machine], tasks: dict[str, list[dict[str, Any]]]
    ) -> list[str]:
        names, wrong = self._names(machines[0]), []
        for machine in machines:
            there = {row["Id"] for row in machine.api.get("/containers/json")}
            due = {
                _container(task)
                for running in tasks.values()
                for task in running
                if names[task["NodeID"]] == machine.name
            }
            if there != due:
                wrong.append(
                    f"{machine.name}: containers of no task {_short(there - due)},"
                    f" tasks without container {_short(due - there)}"
                )
        return wrong

    def _wrong_addresses(self, machine: Machine) -> list[str]:
        owners: dict[tuple[str, str], list[str]] = {}
        for task in machine.api.get("/tasks"):
            if task["Status"]["State"] in ("running", "starting", "ready", "preparing"):
                for attachment in task.get("NetworksAttachments") or []:
                    network = attachment["Network"]["ID"]
                    for address in attachment["Addresses"]:
                        owners.setdefault((network, address), []).append(task["ID"])
        return [f"{where} belongs to {ids}" for where, ids in owners.items() if len(ids) > 1]

    def _check_logs(self) -> None:
        bad = []
        for machine in self.cluster.machines:
            data = machine.log.read_bytes()
            new = data[self._read.get(machine.name, 0) :]
            self._read[machine.name] = len(data)
            lines = new.decode(errors="replace").splitlines()
            bad += [f"{machine.name}: {line}" for line in lines if _BAD_LINE.search(line)]
        if bad:
            raise Broken("the logs have errors:\n" + "\n".join(bad[:20]))

    def _check_memory(self) -> None:
        sizes = {one.name: _resident(one) for one in self.cluster.machines}
        self._say("    MB: " + " ".join(f"{name} {size >> 20}" for name, size in sizes.items()))
        for name, size in sizes.items():
            if size > MEMORY_MAX:
                raise Broken(f"the daemon of {name} takes {size >> 20} MB")

    def describe(self) -> str:
        """Nodes and tasks, for whoever has to find out."""
        lines = []
        for machine in self._managers(self.cluster.machines):
            try:
                lines += [_node_line(machine, n) for n in machine.api.get("/nodes", deadline_s=3)]
                lines += map(_task_line, machine.api.get("/tasks", deadline_s=3))
            except LabError as error:
                lines.append(f"{machine.name}: {error}")
        return "\n".join(lines)

    # Helpers

    def _any(self) -> Machine:
        return self._rng.choice(self.cluster.machines)

    def _manager(self) -> Machine:
        return self._rng.choice(self._managers(self.cluster.machines))

    def _managers(self, machines: Sequence[Machine]) -> list[Machine]:
        first = {machine.name for machine in self.cluster.machines[: self._manager_count]}
        return [machine for machine in machines if machine.name in first]

    def _names(self, machine: Machine) -> dict[str, str]:
        return {one["ID"]: one["Description"]["Hostname"] for one in machine.api.get("/nodes")}

    def _node(self, machine: Machine) -> str:
        """The id of the machine's node."""
        node: str = machine.api.get("/info")["Swarm"]["NodeID"]
        return node

    def _node_named(self, machine: Machine, via: Machine) -> str:
        return next(id for id, name in self._names(via).items() if name == machine.name)

    def _down(self, node: str, via: Machine) -> bool:
        state: str = via.api.get(f"/nodes/{node}")["Status"]["State"]
        return state == "down"


def _wrong_answers(what: str, answers: Answers, alive: set[str]) -> list[str]:
    heard = {text.split()[0] for text in answers.answers}
    wrong = []
    if answers.failures:
        wrong.append(f"{what}: {answers.failures}")
    if heard != alive:
        wrong.append(f"{what}: dead {_short(heard - alive)}, silent {_short(alive - heard)}")
    return wrong


def _node_line(machine: Machine, node: dict[str, Any]) -> str:
    name, status = node["Description"]["Hostname"], node["Status"]
    return f"{machine.name} sees {name} {node['ID'][:8]} {status} {node['Spec']['Availability']}"


def _task_line(task: dict[str, Any]) -> str:
    status = task["Status"]
    return (
        f"  {task['ID'][:8]} slot {task.get('Slot')} on {task.get('NodeID', '')[:8]} "
        f"{status['State']} wanted {task['DesiredState']} container {_container(task)[:12]} "
        f"{status.get('Message', '')} {status.get('Err', '')}"
    )


def _container(task: dict[str, Any]) -> str:
    status: dict[str, str] = task["Status"].get("ContainerStatus") or {}
    return status.get("ContainerID", "")


def _short(names: set[str]) -> list[str]:
    return sorted(name[:12] for name in names)


def _traces(machine: Machine) -> set[str]:
    """What containers and networks could leave behind on a machine."""
    state, run = machine.state_dir, machine.run_dir
    script = (
        "ip -o link | sed -E 's/^[0-9]+: /link /; s/@.*//; s/ <.*//';"
        f"awk '{{print \"mount\", $5}}' /proc/self/mountinfo | grep '{machine.folder}';"
        "nft list ruleset | sed 's/^/nft /';"
        "ps -eo args= | sed 's/^/process /';"
        f"find {state}/containers {state}/network/sandboxes {state}/network/overlays {run}/netns "
        "-mindepth 1 2>/dev/null | sed 's/^/file /'"
    )
    return {line for line in machine.exec("sh", "-c", script).splitlines() if not _OWN.search(line)}


def _is_keeper(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(b"keeper" in word for word in words)


def _resident(machine: Machine) -> int:
    daemon = machine.daemon
    if daemon is None:
        raise Broken(f"{machine.name} has no daemon")
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise Broken(f"{machine.name}: no VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", default="chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--managers", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave a broken cluster as it is")
    parser.add_argument("names", nargs="*", help="these steps instead of random ones")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    cluster = Cluster(given.prefix)
    cluster.down()
    chaos = Chaos(cluster, rng, lambda line: print(line, flush=True))  # noqa: T201
    names = list(given.names)
    while not given.names and len(names) < given.steps:
        names += rng.sample(sorted(chaos.steps), len(chaos.steps))
    try:
        chaos.begin(given.machines, given.managers)
        chaos.run(names[: given.steps] if not given.names else names)
        chaos.end()
    except (Broken, LabError) as error:
        print(f"BROKEN: {error}", flush=True)  # noqa: T201
        if not given.keep:
            cluster.down()
        sys.exit(1)
    cluster.down()


if __name__ == "__main__":
    main()
