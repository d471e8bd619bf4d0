"""Requests that fail while services are updated, scaled and drained: `python -m bench.updates`.

Six replicas on three lab machines answer short and keep-alive connections, through the virtual IP
and through the published port of two machines, from clients that are never stopped. Whoever
keeps a connection asks once more on a new one if the server closed it meanwhile, as HTTP clients
do; nothing else may go wrong. `--updates N` asks for N rolling updates.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import images
from lab.api import wait_until
from lab.cluster import Cluster
from lab.machine import Machine
from lab.story import PORT, REPLICAS, SERVICE, RunningLoad, Story

PREFIX = "shoal-bench-updates"
_PYTHON = os.path.realpath(sys.executable)
_FOLDERS = list(dict.fromkeys(("/lib", "/lib64", sys.base_prefix)))  # what it needs


class Updates(Story):
    """The story's cluster with a server that keeps connections."""

    def load_images(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).with_name("updates_server.py").read_bytes()
        folders = tuple(path.strip("/") for path in _FOLDERS)
        server = images.layer({"server.py": images.File(source)}, folders)
        base = images.base_layer()
        for version in (1, 2):
            command = [_PYTHON, "-I", "-S", "/server.py", "80", str(version)]
            path = self._folder / f"web-{version}.tar"
            name = images.web_name(version)
            self.cluster.load(images.archive(path, name, [base, server], {"Cmd": command}))

    def create(self, replicas: int = REPLICAS) -> float:
        machine = self.manager
        self.shoal(machine, "network", "create", "--driver", "overlay", "app")
        began = time.monotonic()
        # The image's command is this computer's Python.
        mounts = []
        for path in _FOLDERS:
            mounts += ["--mount", f"type=bind,src={os.path.realpath(path)},dst={path},ro"]
        probe = "/bin/timeout 2 /bin/wget -q -O /dev/null http://127.0.0.1/"
        self.shoal(
            machine, "service", "create", "--name", SERVICE, "--replicas", str(replicas),
            "--network", "app", "--publish", f"{PORT}:80", *mounts,
            "--health-cmd", probe, "--health-interval", "500ms", "--health-start-period", "10s",
            "--update-parallelism", "2", "--update-order", "start-first",
            "--update-monitor", "0s", "--restart-delay", "0s", "--detach", images.web_name(1),
        )  # fmt: skip
        self.wait_running(replicas, image=images.web_name(1))
        return time.monotonic() - began

    @contextmanager
    def loads(self) -> Iterator[dict[str, RunningLoad]]:
        """All kinds of requests, for as long as the block lasts."""
        host, inside = self.inside_client()
        first, *_, last = self.cluster.machines
        vip, port = self.virtual_ip(), f"http://{first.ip}:{PORT}/"
        with ExitStack() as stack:
            yield {
                f"{words} connections, {what}": stack.enter_context(
                    self.load(machine, url, workers=2, within=within, options=options)
                )
                for what, machine, url, within in (
                    ("virtual IP", host, vip, inside),
                    ("port, from elsewhere", last, port, ()),
                    ("port, from its machine", first, port, ()),
                )
                for words, options in (("short", ()), ("kept", ("--keep-alive",)))
            }

    def roll(self, number: int) -> None:
        """The other version, in every way of `number`'s turn."""
        machine = self.manager
        order = ("start-first", "stop-first")[number % 2]
        self.shoal(
            machine, "service", "update", "--detach", "--update-order", order,
            "--image", images.web_name(1 + number % 2), SERVICE,
        )  # fmt: skip
        self.wait_updated()
        self.wait_running(REPLICAS, image=images.web_name(1 + number % 2))

    def scale(self, count: int) -> None:
        self.shoal(self.manager, "service", "scale", "--detach", f"{SERVICE}={count}")
        self.wait_running(count)
        wait_until(lambda: sum(map(self._count, self.cluster.machines)) == count, "scaled", 60)

    def _count(self, machine: Machine) -> int:
        rows = machine.api.get("/containers/json")
        return sum(r["Labels"].get("com.docker.swarm.service.name") == SERVICE for r in rows)

    def empty(self, machine: Machine) -> None:
        """Drain a machine without a client, and use it again."""
        self.shoal(self.manager, "node", "update", "--availability", "drain", machine.name)
        wait_until(lambda: not self._count(machine), f"{machine.name} is empty", 60)
        self.wait_running(REPLICAS)
        self.activate(machine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20)
    updates = parser.parse_args().updates
    cluster = Cluster(PREFIX)
    cluster.down()
    try:
        return _run(Updates(cluster, lambda line: None), updates)
    finally:
        cluster.down()


def _run(story: Updates, updates: int) -> int:
    story.cluster.up(3)
    story.load_images()
    story.create()
    story.create_client()
    host, _ = story.client_container()
    drained = next(machine for machine in story.cluster.machines if machine is not host)
    with story.loads() as loads:
        for number in range(1, updates + 1):
            _timed(f"update {number}", lambda number=number: story.roll(number))  # type: ignore[misc]
            if number % 4 == 0:
                _timed(f"scale to {REPLICAS // 2}", lambda: story.scale(REPLICAS // 2))
                _timed(f"scale to {REPLICAS}", lambda: story.scale(REPLICAS))
                _timed(f"drain {drained.name}", lambda: story.empty(drained))
    for machine in story.cluster.machines:
        for line in machine.log.read_text().splitlines():
            if "level=warning" in line or "level=error" in line:
                print(f"{machine.name}: {line[:300]}")
        for line in machine.api.get("/metrics").splitlines():
            if not line.startswith("#") and not line.endswith(" 0"):
                print(f"{machine.name}: {line}")
    failed = 0
    for name, load in loads.items():
        answers = load.answers
        failed += answers.failed
        print(
            f"{name:40} {answers.answered:7} answered, {answers.failed} failed, "
            f"slowest {1000 * answers.slowest_s:.0f} ms {answers.failures or ''}"
        )
    return 1 if failed else 0


def _timed(words: str, do: Callable[[], object]) -> None:
    began = time.monotonic()
    do()
    print(f"{words}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
