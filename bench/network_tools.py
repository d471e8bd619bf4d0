"""The programs that make the load: iperf3, and our own, which is compiled at the first need."""

import asyncio
import atexit
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.network_rows import figure

DEADLINE_S = 60.0
_SOURCE = Path(__file__).with_name("network_load.c")
_IPERF_PORT = 5201


class BenchError(Exception):
    """What the benchmark lacks, or a program that failed."""


class Place(NamedTuple):
    """Where a program runs: a network namespace's path and, unless "", a cgroup of version 2."""

    netns: str
    cgroup: str = ""

    def enter(self, *words: str) -> list[str]:
        argv = ["nsenter", f"--net={self.netns}", *words]
        if not self.cgroup:
            return argv
        return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', self.cgroup, *argv]


class Load(NamedTuple):
    """Requests or connections a second; how long each took, in µs; how many failed."""

    rate: float
    p50: float
    p99: float
    failed: int


@cache
def program() -> str:
    """The path of network_load, compiled. Raises BenchError."""
    if shutil.which("cc") is None:
        raise BenchError("the load is a C program: apt-get install gcc libc6-dev")
    folder = tempfile.mkdtemp(prefix="shoal-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "load"
    subprocess.run(["cc", "-O2", "-o", str(path), str(_SOURCE)], check=True)
    return str(path)


def check_tools() -> None:
    """Raises BenchError naming the Debian package that lacks."""
    for tool, package in {"iperf3": "iperf3", "nsenter": "util-linux", "cc": "gcc"}.items():
        if shutil.which(tool) is None:
            raise BenchError(f"the benchmark needs `{tool}`: apt-get install {package}")


async def output(place: Place, *words: str) -> str:
    """What a program prints. Raises BenchError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *place.enter(*words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise BenchError(f"{' '.join(words)}: {(complaint or printed).decode().strip()}")
    return printed.decode()


@asynccontextmanager
async def running(place: Place, *words: str, ready: str = "") -> AsyncIterator[None]:
    """A program that runs meanwhile; with `ready`, once it has printed a line with this in it."""
    process = await asyncio.create_subprocess_exec(
        *place.enter(*words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while ready and ready not in (line := (await process.stdout.readline()).decode()):
                if not line:
                    raise BenchError(f"{' '.join(words)} ended at once")
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def server(place: Place, port: int = 80) -> AsyncIterator[None]:
    """Our load's server, and iperf3's."""
    iperf = ("stdbuf", "-oL", "iperf3", "--server", "--port", str(_IPERF_PORT))
    async with (
        running(place, program(), "serve", str(port), ready="ready"),
        running(place, *iperf, ready="listening"),
    ):
        yield


async def throughput(place: Place, address: str, seconds: float, port: int = _IPERF_PORT) -> float:
    """Gbit/s of one TCP stream, the first half second left out."""
    words = ["iperf3", "--client", address, "--port", str(port), "--time", f"{seconds:g}"]
    found = json.loads(await output(place, *words, "--omit", "0.5", "--json"))
    return float(found["end"]["sum_received"]["bits_per_second"]) / 1e9


async def rate(
    place: Place, address: str, seconds: float, *, parallel: int = 16, port: int = 80
) -> Load:
    """Short connections: each with one byte there and back."""
    return await _load(place, "rate", address, port, parallel, seconds)


async def turns(
    place: Place, address: str, seconds: float, *, parallel: int = 1, port: int = 80
) -> Load:
    """One byte there and back on a connection that stays."""
    return await _load(place, "turn", address, port, parallel, seconds)


async def questions(place: Place, address: str, seconds: float, data: bytes, parallel: int) -> Load:
    """UDP to port 53."""
    return await _load(place, "ask", address, 53, parallel, seconds, data.hex())


async def _load(
    place: Place, kind: str, address: str, port: int, parallel: int, seconds: float, *more: str
) -> Load:
    words = (program(), kind, address, str(port), str(parallel), str(seconds), *more)
    rate, p50, p99, failed = (await output(place, *words)).split()
    return Load(float(rate), float(p50), float(p99), int(failed))


Measure = Callable[[], Awaitable[float]]


async def take_turns(variants: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Measure all variants `rounds` times, one after the other, so that what else the machine does
    hits all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(await variants[name]())
    return found


def ratio(found: dict[str, list[float]], name: str, base: str) -> float:
    """The median of the rounds' ratios."""
    pairs: Sequence[tuple[float, float]] = list(zip(found[name], found[base], strict=True))
    return statistics.median(one / other for one, other in pairs)


class Size(NamedTuple):
    rounds: int
    seconds: float


async def connections(place: Place, address: str, seconds: float, port: int = 80) -> float:
    found = await rate(place, address, seconds, port=port)
    return _sound(found).rate


async def latency(place: Place, address: str, seconds: float, port: int = 80) -> float:
    found = await turns(place, address, seconds, port=port)
    return _sound(found).p50


def _sound(found: Load) -> Load:
    if found.failed > found.rate / 100:
        raise BenchError(f"{found.failed} connections failed")
    return found


def means(found: dict[str, list[float]]) -> str:
    unit = "Gbit/s" if max(map(max, found.values())) < 1000 else "/s"
    return ", ".join(f"{name} {figure(sum(s) / len(s))}" for name, s in found.items()) + f" {unit}"


def microseconds(found: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {sum(s) / len(s):.0f}" for name, s in found.items()) + " µs"
