"""Measures the containers of one node: `python -m bench.containers [--peer docker,crun,runc]`.

Needs root, busybox-static, and Debian's docker.io, crun, runc for the peers. The engines are
private daemons, each in a network namespace of its own, asked by the same client over HTTP; the
runtimes are run by their command lines on bundles with the same isolation. All have the same root
file system. Rows of latency, rate and exec take turns, one start each; the rows with many
containers are one engine after the other, since one engine's bridge ports slow the other's.

    start     create + start until the process has executed; crun, runc: `run --detach` of a bundle;
    created   its p50 without the create, comparable with a runtime's start of a bundle
    cycle     create, start, stop (SIGKILL), remove; with 1 and with 8 at once
    exec      `true` in a running container, to its end and exit code
    log       100-byte lines in writes of 4 KB; CPU is that of the engine's own processes
    many      500 containers on a bridge; memory is PSS of the engine's processes, and the growth
              of the kernel's slab, stacks, page tables and per-CPU memory
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from bench import containers_procs as procs
from bench.containers_http import IMAGE, Dockerd, Failed, HttpEngine, Shoald
from bench.containers_oci import Runtime
from lab import images
from worker.runtime import syscalls

PEERS = ("docker", "crun", "runc")
_LINES = 8 << 20  # bytes of the file that the log rows repeat
_SETTLE_S = 1.0
_EDGE = 10  # starts at either end of many


class Size(NamedTuple):
    """How much of everything."""

    starts: int
    execs: int
    slices: int
    slice_s: float
    logs: int
    log_mb: int
    peer_log_mb: int
    many: tuple[int, ...]


FULL = Size(200, 100, 4, 2.0, 3, 1024, 64, (10, 100, 500))
QUICK = Size(6, 5, 1, 0.5, 1, 256, 8, (10,))


class Variant(NamedTuple):
    """One row: an engine with a kind of network, or a runtime."""

    name: str
    create: Callable[[], str]
    start: Callable[[str], None]
    stop: Callable[[str], None]
    remove: Callable[[str], None]
    execute: Callable[[str], None]
    creates: bool  # on request; a runtime's bundle is there before


def of_engine(engine: HttpEngine, mode: str) -> Variant:
    return Variant(
        f"{engine.name}, {mode}", lambda: engine.create(mode), engine.start, engine.stop,
        engine.remove, engine.execute, True,
    )  # fmt: skip


def of_runtime(runtime: Runtime) -> Variant:
    return Variant(
        runtime.name, runtime.create, runtime.start, runtime.stop, runtime.remove,
        runtime.execute, False,
    )  # fmt: skip


# --- starts, cycles, execs: all variants take turns


class Started(NamedTuple):
    """In milliseconds: from the request to create it, and from that to start it."""

    container: str
    whole: float
    start: float


def one_start(variant: Variant) -> Started:
    begin = time.perf_counter()
    container = variant.create()
    created = time.perf_counter()
    variant.start(container)
    end = time.perf_counter()
    return Started(container, (end - begin) * 1000, (end - created) * 1000)


def starts(variants: list[Variant], count: int) -> dict[str, dict[str, float]]:
    spans: dict[str, list[Started]] = {variant.name: [] for variant in variants}
    for turn in range(count + 2):
        for variant in variants:
            started = one_start(variant)
            if turn >= 2:  # the first ones warm caches
                spans[variant.name].append(started)
            variant.remove(started.container)
    return {
        variant.name: {
            **summary(
                [each.whole if variant.creates else each.start for each in spans[variant.name]]
            ),
            "start_p50_ms": statistics.median(each.start for each in spans[variant.name]),
        }
        for variant in variants
    }


def execs(variants: list[Variant], count: int) -> dict[str, dict[str, float]]:
    spans: dict[str, list[float]] = {variant.name: [] for variant in variants}
    with contextlib.ExitStack() as stack:
        running = [(variant, one_start(variant).container) for variant in variants]
        for variant, reference in running:
            stack.callback(variant.remove, reference)
        for _ in range(count):
            for variant, reference in running:
                begin = time.perf_counter()
                variant.execute(reference)
                spans[variant.name].append((time.perf_counter() - begin) * 1000)
    return {name: summary(each) for name, each in spans.items()}


def cycles(variants: list[Variant], size: Size, at_once: int) -> dict[str, float]:
    """Per second."""
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(size.slices):
            for variant in variants:
                begin = time.perf_counter()
                until = begin + size.slice_s
                counts = pool.map(_cycle_until, [variant] * at_once, [until] * at_once)
                rates[variant.name].append(sum(counts) / (time.perf_counter() - begin))
    return {name: statistics.median(each) for name, each in rates.items()}


def _cycle_until(variant: Variant, until: float) -> int:
    count = 0
    while count == 0 or time.perf_counter() < until:
        container = one_start(variant).container
        variant.stop(container)
        variant.remove(container)
        count += 1
    return count


def summary(spans: list[float]) -> dict[str, float]:
    ordered = sorted(spans)
    return {
        "min_ms": ordered[0],
        "p50_ms": statistics.median(ordered),
        "p99_ms": ordered[int(len(ordered) * 0.99)],
    }


# --- logs


def log(engine: HttpEngine, megabytes: int) -> dict[str, float]:
    times = max(megabytes * 1_000_000 // _LINES, 1)
    script = f"i=0; while [ $i -lt {times} ]; do dd if=/lines bs=4096 2>/dev/null; i=$((i+1)); done"
    reference = engine.create("none", ("sh", "-c", script))
    written = times * _LINES
    pids = engine.helpers()
    begin, used = time.perf_counter(), procs.cpu_s(pids)
    engine.start(reference)
    pids = engine.helpers()  # with a shim that came by the start
    engine.wait(reference)
    seconds, used = time.perf_counter() - begin, procs.cpu_s(pids) - used
    begin = time.perf_counter()
    size = engine.read_log(reference)
    reading = time.perf_counter() - begin
    if size < written:
        raise Failed(f"{engine.name}: {written - size} bytes of the log are missing")
    engine.remove(reference)
    return {
        "mb_s": written / 1e6 / seconds,
        "cpu_s_per_gb": used / (written / 1e9),
        "read_mb_s": written / 1e6 / reading,
    }


def logs(engines: list[HttpEngine], size: Size) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
    for _ in range(size.logs):
        for engine in engines:
            ours = isinstance(engine, Shoald)
            found[engine.name].append(log(engine, size.log_mb if ours else size.peer_log_mb))
    return {
        name: {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        for name, runs in found.items()
    }


# --- many


class Ground(NamedTuple):
    """What an engine and the kernel hold at one moment."""

    helpers: int
    pss: float
    kernel: float


def ground(engine: HttpEngine) -> Ground:
    time.sleep(_SETTLE_S)
    pids = engine.helpers()
    return Ground(len(pids), procs.memory(pids).pss, procs.kernel_memory())


def many(engine: HttpEngine, counts: tuple[int, ...]) -> dict[str, Any]:
    """Start up to the largest of `counts` one by one, then remove all, 8 at once."""
    before = ground(engine)
    held = holdings(engine)
    spans: list[float] = []
    references: list[str] = []
    per: dict[str, dict[str, float]] = {}
    variant = of_engine(engine, "bridge")
    begin = time.perf_counter()
    for count in counts:
        while len(references) < count:
            started = one_start(variant)
            spans.append(started.whole)
            references.append(started.container)
        began_pause = time.perf_counter()
        now = ground(engine)
        begin += time.perf_counter() - began_pause
        per[str(count)] = {
            "helpers": (now.helpers - before.helpers) / count,
            "pss_mb": (now.pss - before.pss) / count,
            "kernel_mb": (now.kernel - before.kernel) / count,
        }
    total = time.perf_counter() - begin
    found: dict[str, Any] = {
        "count": len(spans),
        "total_s": total,
        "first_ms": statistics.median(spans[:_EDGE]),
        "last_ms": statistics.median(spans[-_EDGE:]),
        "per_container": per,
    }
    if isinstance(engine, Shoald):
        found["restart"] = restart(engine, len(references))
    begin = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(engine.remove, references))
    found["remove_s"] = time.perf_counter() - begin
    after = ground(engine)
    found["left"] = {
        "pss_mb": after.pss - before.pss,
        **{key: value - held[key] for key, value in holdings(engine).items()},
    }
    return found


def restart(engine: Shoald, count: int) -> dict[str, float]:
    """kill -9 for the daemon while `count` containers run, and start it again."""
    engine.kill_daemon()
    begin = time.perf_counter()
    engine.launch()
    answers = time.perf_counter() - begin
    while (running := engine.running()) != count:
        if time.perf_counter() - begin > 60:
            raise Failed(f"after a restart {running} of {count} containers run")
    return {"answers_s": answers, "adopted_s": time.perf_counter() - begin}


def holdings(engine: HttpEngine) -> dict[str, int]:
    """What must be the same again once all containers are removed."""
    pids = engine.helpers()
    held = {"descriptors": sum(procs.descriptors(pid) for pid in pids)}
    held["processes"] = len(pids)
    held["mounts"] = procs.mounts(engine.daemon_pid)
    if isinstance(engine, Shoald):
        held["cgroups"] = procs.cgroups(engine.cgroup)
    return held


# --- idle


def idle(engine: HttpEngine) -> dict[str, dict[str, float]]:
    """Megabytes of each process."""
    time.sleep(_SETTLE_S)
    found: dict[str, dict[str, float]] = {}
    for pid in engine.helpers():
        size = procs.memory([pid])
        label = "shoald" if pid == engine.daemon_pid and engine.name == "shoal" else procs.name(pid)
        kept = found.setdefault(label, {"pss_mb": 0.0, "rss_mb": 0.0})
        kept["pss_mb"] += size.pss
        kept["rss_mb"] += size.rss
    return found


# --- all


def archive(folder: Path) -> tuple[bytes, bytes]:
    """The image for the engines, and its layer for the runtimes."""
    base = images.base_layer()
    line = b"a line of a log as programs write them, of one hundred bytes with its end".ljust(99)
    data = ((line + b"\n") * (_LINES // 100 + 1))[:_LINES]
    lines = images.layer({"lines": images.File(data)})
    path = images.archive(folder / "image.tar", IMAGE, [base, lines], {"Cmd": ["sh"]})
    return path.read_bytes(), base


def measure(peers: list[str], size: Size, base: Path) -> dict[str, Any]:
    image, layer = archive(base)
    with contextlib.ExitStack() as stack:
        engines: list[HttpEngine] = [Shoald("shoal", base / "shoal")]
        if "docker" in peers:
            engines.append(Dockerd("docker", base / "docker"))
        for engine in engines:
            stack.callback(engine.close)
        runtimes = [Runtime(name, base / name, layer) for name in ("crun", "runc") if name in peers]
        for runtime in runtimes:
            stack.callback(runtime.close)
        for engine in engines:
            engine.open(image)
        note("idle")
        result: dict[str, Any] = {"idle": {engine.name: idle(engine) for engine in engines}}
        variants = [of_engine(engine, mode) for mode in ("bridge", "none") for engine in engines]
        variants += [of_runtime(runtime) for runtime in runtimes]
        note("start")
        result["start"] = starts(variants, size.starts)
        note("exec")
        result["exec"] = execs([v for v in variants if "none" not in v.name], size.execs)
        for at_once in (1, 8):
            note(f"cycles, {at_once} at once")
            result[f"cycles_{at_once}"] = cycles(variants, size, at_once)
        note("log")
        result["log"] = logs(engines, size)
        result["many"] = {}
        for engine in engines:
            note(f"many, {engine.name}")
            result["many"][engine.name] = many(engine, size.many)
        result["goals"] = goals(result)
        return result


class Goal(NamedTuple):
    what: str
    found: float
    goal: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.found >= self.goal if self.at_least else self.found <= self.goal


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that can be told from what was measured."""
    return [{**goal._asdict(), "met": goal.met} for goal in _goals(result)]


def _goals(result: dict[str, Any]) -> Iterator[Goal]:
    start, logged = result["start"], result["log"]
    ours = result["many"]["shoal"]
    if "docker, bridge" in start:
        ratio = start["shoal, bridge"]["p50_ms"] / start["docker, bridge"]["p50_ms"]
        yield Goal("start p50 : Docker's create + start", ratio, 1 / 20)
    if "crun" in start:
        ratio = start["shoal, none"]["start_p50_ms"] / start["crun"]["p50_ms"]
        yield Goal("start p50, created before : crun run", ratio, 1 / 3)
    most = list(ours["per_container"].values())[-1]
    yield Goal("helper processes per container", most["helpers"], 0)
    yield Goal("MB per container in all", most["pss_mb"] + most["kernel_mb"], 0.4)
    if "docker" in logged:
        for key, what, goal in (
            ("mb_s", "log MB/s : dockerd's", 10.0),
            ("cpu_s_per_gb", "log CPU per GB : dockerd's", 0.1),
        ):
            ratio = logged["shoal"][key] / logged["docker"][key]
            yield Goal(what, ratio, goal, at_least=goal > 1)
    yield Goal("last ten starts of many : first ten", ours["last_ms"] / ours["first_ms"], 1.5)
    whole = sum(each["pss_mb"] for each in result["idle"]["shoal"].values())
    yield Goal("MB of daemon and keeper, idle (PSS)", whole, 60)


# --- showing


def note(what: str) -> None:
    if sys.stderr.isatty():
        print(f"… {what}", file=sys.stderr)


def show(result: dict[str, Any]) -> None:
    print(f"{'':<18}{'start: min':>11}{'p50':>8}{'p99':>8}{'created':>9}{'exec p50':>10}{'p99':>8}"
          f"{'cycles/s: 1':>13}{'8 at once':>11}")  # fmt: skip
    for name, span in result["start"].items():
        ran = result["exec"].get(name)
        executed = f"{ran['p50_ms']:>10.1f}{ran['p99_ms']:>8.1f}" if ran else " " * 18
        print(
            f"{name:<18}{span['min_ms']:>11.1f}{span['p50_ms']:>8.1f}{span['p99_ms']:>8.1f}"
            f"{span['start_p50_ms']:>9.1f}{executed}{result['cycles_1'][name]:>13.1f}{result['cycles_8'][name]:>11.1f}"
        )
    print("milliseconds\n")
    for name, each in result["log"].items():
        print(
            f"{name} log: {each['mb_s']:.0f} MB/s, {each['cpu_s_per_gb']:.2f} CPU s/GB; "
            f"read through the API {each['read_mb_s']:.0f} MB/s"
        )
    for name, each in result["many"].items():
        print(
            f"\n{name}: {each['count']} containers in {each['total_s']:.1f} s; median of the first "
            f"ten {each['first_ms']:.1f} ms, of the last {each['last_ms']:.1f} ms; "
            f"removed, 8 at once, in {each['remove_s']:.1f} s"
        )
        for count, per in each["per_container"].items():
            print(
                f"  at {count:>4}, per container: {per['helpers']:.2f} helper processes, PSS "
                f"{per['pss_mb']:.3f} MB, kernel {per['kernel_mb']:.3f} MB"
            )
        if "restart" in each:
            spans = each["restart"]
            print(
                f"  daemon killed and started: answers after {spans['answers_s']:.2f} s, all "
                f"adopted after {spans['adopted_s']:.2f} s"
            )
        left = ", ".join(f"{key} {value:+.4g}" for key, value in each["left"].items())
        print(f"  more than before, once all are removed: {left}")
    for name, sizes in result["idle"].items():
        text = ", ".join(
            f"{label} {size['pss_mb']:.1f} ({size['rss_mb']:.1f})" for label, size in sizes.items()
        )
        print(f"\n{name} idle, MB of PSS (RSS): {text}")
    print()
    for goal in result["goals"]:
        sign = ">=" if goal["at_least"] else "<="
        word = "met" if goal["met"] else "MISSED"
        print(f"{word:<7}{goal['what']:<40}{goal['found']:>9.3f}   goal {sign} {goal['goal']:.3g}")


def alone() -> None:
    """In a mount namespace of our own, without the v2 hierarchy beside those of v1: crun refuses
    a machine that has controllers in both."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.make_private("/")
    with contextlib.suppress(OSError):
        syscalls.unmount("/sys/fs/cgroup/unified")


def main() -> None:
    about = __doc__ or ""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", default="", help="comma-separated: docker, crun, runc")
    parser.add_argument("--quick", action="store_true", help="a small version, within a minute")
    parser.add_argument("--json", action="store_true", help="no table")
    options = parser.parse_args()
    peers = [peer for peer in options.peer.split(",") if peer]
    for peer in peers:
        program = "dockerd" if peer == "docker" else peer
        if peer not in PEERS or shutil.which(program) is None:
            parser.error(f"--peer {peer}: not one of {', '.join(PEERS)}, or not installed")
    if os.geteuid() != 0:
        parser.error("containers are made by root only")
    alone()
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-containers-", dir="/var/tmp") as folder:
            result = measure(peers, QUICK if options.quick else FULL, Path(folder))
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is left behind")
    except (Failed, OSError) as error:
        sys.exit(f"not measured: {error}")
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
