"""Others beside ours: HAProxy as a userspace proxy, and Docker's overlay."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from bench.containers_procs import remove_cgroup
from bench.network_rows import Report
from bench.network_tools import (
    BenchError,
    Place,
    Size,
    connections,
    means,
    ratio,
    running,
    server,
    take_turns,
    throughput,
)
from lab import images
from lab.api import wait_until
from lab.cluster import Cluster
from lab.machine import Machine

PEERS = ("haproxy", "docker")
PROXY_PORT, PROXY_IPERF = 9080, 9201
_PACKAGES = {"haproxy": "haproxy", "dockerd": "docker.io", "docker": "docker.io"}
_PREFIX = "shoal-bench-docker"


def check(peers: list[str]) -> None:
    """Raises BenchError naming the Debian package that lacks."""
    for peer in peers:
        for tool in ("dockerd", "docker") if peer == "docker" else (peer,):
            if shutil.which(tool) is None:
                raise BenchError(f"peer {peer} needs `{tool}`: apt-get install {_PACKAGES[tool]}")


@asynccontextmanager
async def haproxy(place: Place, backend: str) -> AsyncIterator[None]:
    """One that hands PROXY_PORT and PROXY_IPERF on to the server at `backend`."""
    lines = [
        "global", "  maxconn 4000",
        "defaults", "  mode tcp", "  timeout connect 5s", "  timeout client 1m",
        "  timeout server 1m",
    ]  # fmt: skip
    for port, target in ((PROXY_PORT, 80), (PROXY_IPERF, 5201)):
        lines += [f"listen p{port}", f"  bind :{port}", f"  server s {backend}:{target}"]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "haproxy.cfg"
        config.write_text("\n".join(lines) + "\n")
        async with running(place, "haproxy", "-db", "-f", str(config)):
            wait_until(lambda: _listens(place), "haproxy listens", 10)
            yield


def _listens(place: Place) -> bool:
    table = subprocess.run(place.enter("cat", "/proc/net/tcp"), capture_output=True, check=True)
    return f":{PROXY_IPERF:04X} 00000000:0000 0A".encode() in table.stdout


async def docker_overlay(size: Size, report: Report) -> None:
    """Docker's overlay between two machines, beside the bare path between the same two."""
    report.title("Docker's overlay, two machines of its own")
    cluster = Cluster(_PREFIX)
    cluster.down()
    cluster.prepare(2)
    daemons = [Dockerd(machine) for machine in cluster.machines]
    try:
        for daemon in daemons:
            daemon.start()
        await _compare(daemons, size, report)
    finally:
        for daemon in daemons:
            daemon.stop()
        cluster.down()


async def _compare(daemons: list["Dockerd"], size: Size, report: Report) -> None:
    first, second = daemons
    first.run("swarm", "init", "--advertise-addr", first.machine.ip)
    token = first.run("swarm", "join-token", "--quiet", "worker").strip()
    second.run("swarm", "join", "--token", token, f"{first.machine.ip}:2377")
    first.run("network", "create", "--driver", "overlay", "--attachable", "bench")
    near, (far, address) = first.sandbox("near")[0], second.sandbox("far")
    async with AsyncExitStack() as stack:
        for place in (Place(second.netns), Place(far)):
            await stack.enter_async_context(server(place))
        for name, measure in (("TCP throughput", throughput), ("connections/s", connections)):
            ways = {
                "bare": partial(measure, Place(first.netns), second.machine.ip, size.seconds),
                "overlay": partial(measure, Place(near), address, size.seconds),
            }
            found = await take_turns(ways, size.rounds)
            report.ratio(f"{name} / bare", ratio(found, "overlay", "bare"), None, means(found))


class Dockerd:
    """A daemon of its own on one lab machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._socket = f"unix://{machine.folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._group = f"{_PREFIX}-{machine.name}-{os.getpid()}"

    @property
    def netns(self) -> str:
        assert self.machine.init is not None
        return f"/proc/{self.machine.init.pid}/ns/net"

    def start(self) -> None:
        self.machine.boot()
        base = self.machine.folder
        (base / "none.json").write_text("{}")
        words = [
            "dockerd", "--host", self._socket, "--data-root", f"{base}/data",
            "--exec-root", f"{base}/exec", "--pidfile", f"{base}/dockerd.pid",
            "--storage-driver", "overlay2", "--cgroup-parent", f"/{self._group}",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--userland-proxy=false",
            "--config-file", f"{base}/none.json", "--log-level", "warn",
        ]  # fmt: skip
        with (base / "dockerd.log").open("wb") as log:
            self._process = self.machine.popen(words, stdout=log, stderr=log)
        wait_until(lambda: self._try("version"), "dockerd answers", 60, 0.2)
        archive = images.busybox(base / "busybox.tar")
        self.run("load", "--input", str(archive))

    def _try(self, *words: str) -> bool:
        done = subprocess.run(["docker", "-H", self._socket, *words], capture_output=True)
        return done.returncode == 0

    def run(self, *words: str) -> str:
        done = subprocess.run(
            ["docker", "-H", self._socket, *words], capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise BenchError(f"docker {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def sandbox(self, name: str) -> tuple[str, str]:
        """A container on the overlay: a path to its network namespace, and its address."""
        self.run(
            "run", "--detach", "--name", name, "--network", "bench", "busybox", "sleep", "9999"
        )
        (found,) = json.loads(self.run("inspect", name))
        assert self.machine.init is not None
        settings = found["NetworkSettings"]
        root = f"/proc/{self.machine.init.pid}/root"
        return root + settings["SandboxKey"], settings["Networks"]["bench"]["IPAddress"]

    def stop(self) -> None:
        if self._process is not None:
            self._try("rm", "--force", "near", "far")
            self._process.terminate()
            self._process.wait(30)
        self.machine.kill()
        remove_cgroup(self._group)
