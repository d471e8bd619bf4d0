"""Measures log and store of three managers: `python -m bench.consensus [--peer etcd] [--json]`.

Three processes with real disks, mutual TLS on loopback. Rows:

    shoal        writers are tasks within the leader and call `store.update`, as the API does
    shoal, HTTP  the same over plain HTTP with JSON, from this process
    etcd, HTTP   etcd 3.4 through its JSON gateway, from the same client; only with `--peer etcd`

One writer overwrites one object again and again; a value has 256 B or 4 KiB. CPU is that of the
three members (with the writers in the row `shoal`); that of the HTTP client has its own column.
All share the machine: on few cores the client takes its part from what it measures. Then the
leader is killed -9, up to 20 times: the time until its successor's first write is committed.
Then a follower that holds 100,000 objects is killed and started, and a new manager gets a state
of 200 MB from the leader while 16 writers go on.
`--profile FILE` leaves a cProfile of the leader; it then shows where time goes, not how much.
"""

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from bench.consensus_cluster import Authority, Managers, Measured, free_port
from bench.consensus_etcd import Etcd
from bench.consensus_load import Load, cpu_seconds
from bench.consensus_state import Row, measure_join, measure_restart

SIZES = (256, 4096)
WRITERS = (1, 16, 64, 256)
WARM_S = 0.2
JOIN_WRITERS = 16


async def _measure(
    name: str,
    run: Callable[[Load], Awaitable[Measured]],
    pids: list[int],
    load: Load,
) -> dict[str, object]:
    await run(msgspec.structs.replace(load, seconds=WARM_S))
    before = cpu_seconds(pids)
    result = await run(load)
    per_1000 = 1000 / result["writes"]
    row: dict[str, object] = {"system": name, "bytes": load.size, "writers": load.writers}
    row |= {key: round(result[key], 3) for key in ("rate", "p50_ms", "p99_ms")}
    row["cpu_s_per_1000"] = round((cpu_seconds(pids) - before) * per_1000, 3)
    row["client_cpu_s_per_1000"] = round(result.get("client_cpu_s", 0.0) * per_1000, 3)
    return row


async def _run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    until = time.monotonic() + options.budget
    authority = Authority()
    managers = Managers(folder, authority, options.profile)
    etcd = Etcd(folder / "etcd", free_port, _files(folder, authority))
    rows: list[dict[str, object]] = []
    try:
        await managers.start()
        if options.peer:
            await etcd.start()
        for size in SIZES:
            for writers in options.writers:
                load = Load(writers=writers, size=size, seconds=options.seconds)
                rows.append(await _measure("shoal", managers.inside, managers.pids, load))
                if options.peer:
                    rows.append(
                        await _measure("shoal, HTTP", managers.over_http, managers.pids, load)
                    )
                    rows.append(await _measure("etcd, HTTP", etcd.load, etcd.pids, load))
        etcd.stop()
        rounds: list[float] = []
        if options.profile:
            await managers.leader.end()
        while not options.profile and len(rounds) < options.rounds and time.monotonic() < until:
            rounds.append(await managers.fail_over())
        state: dict[str, Row] = {}
        if options.objects and not options.profile:
            state["restart"] = await measure_restart(managers, options.objects)
            state["join"] = await measure_join(
                managers, options.objects, options.megabytes, JOIN_WRITERS
            )
    finally:
        etcd.stop()
        await managers.stop()
    return {"writes": rows, "failover_s": [round(each, 3) for each in rounds]} | state


def _files(folder: Path, authority: Authority) -> list[Path]:
    """Credentials of the name localhost: root, certificate, key."""
    certificate, key = authority.issue("localhost")
    paths = []
    for name, text in [("root", authority.root.decode()), ("cert", certificate), ("key", key)]:
        path = folder / f"etcd-{name}.pem"
        path.touch(0o600)
        path.write_text(text)
        paths.append(path)
    return paths


def _show(result: dict[str, object]) -> None:
    rows = result["writes"]
    assert isinstance(rows, list)
    rates = {(row["system"], row["bytes"], row["writers"]): row for row in rows}
    print(
        f"{'':<13}{'bytes':>6}{'writers':>8}{'writes/s':>10}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'CPU s/1000':>12}{'client':>8}{'rate : etcd':>13}{'p50 : etcd':>12}"
    )
    for row in rows:
        other = rates.get(("etcd, HTTP", row["bytes"], row["writers"]))
        ratios = ""
        if other is not None and other is not row:
            faster, slower = row["rate"] / other["rate"], row["p50_ms"] / other["p50_ms"]
            ratios = f"{faster:>12.2f}x{slower:>11.2f}x"
        print(
            f"{row['system']:<13}{row['bytes']:>6}{row['writers']:>8}{row['rate']:>10.0f}"
            f"{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['cpu_s_per_1000']:>12.3f}"
            f"{row['client_cpu_s_per_1000']:>8.3f}{ratios}"
        )
    rounds = result["failover_s"]
    assert isinstance(rounds, list)
    if rounds:
        print(
            f"\nleader killed -9 to next committed write, {len(rounds)} rounds: median "
            f"{statistics.median(rounds):.2f} s (goal < 1), worst {max(rounds):.2f} s (goal < 2)"
        )
    _show_state(result)
    if any(row["system"] != "shoal" for row in rows):
        print("etcd: peers over mutual TLS, client over its JSON gateway in plain HTTP.")


def _show_state(result: dict[str, object]) -> None:
    match result:
        case {"restart": {"objects": objects, "seconds": seconds, "loading_s": loading}}:
            print(
                f"\na follower with {objects} objects killed -9 to all of them back: "
                f"{seconds:.2f} s (goal < 3), {loading:.2f} of them loading"
            )
    match result:
        case {"join": dict(row)}:
            print(
                f"{row['megabytes']} MB to a new manager's disk in {row['transfer_s']:.1f} s, "
                f"to its store in {row['whole_s']:.1f} s; meanwhile "
                f"{row['writers']} writers did {row['rate']:.0f} writes/s (before: "
                f"{row['quiet_rate']:.0f}), p99 {row['p99_ms']:.1f} ms (goal < 100; before: "
                f"{row['quiet_p99_ms']:.1f}), longest stall of the leader's loop "
                f"{row['stall_ms']:.0f} ms (before: {row['quiet_stall_ms']:.0f}); the leader's "
                f"memory rose from {row['leader_mb']:.0f} to {row['leader_peak_mb']:.0f} MB at "
                f"most, the new one's to {row['joiner_peak_mb']:.0f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", choices=["etcd"], help="measure this beside it")
    parser.add_argument("--seconds", type=float, default=1.2, help="of each line of the table")
    parser.add_argument("--rounds", type=int, default=20, help="how often the leader is killed")
    parser.add_argument("--budget", type=float, default=80, help="no new round after these seconds")
    parser.add_argument("--objects", type=int, default=100_000, help="of the restart; 0: no such")
    parser.add_argument("--megabytes", type=int, default=200, help="of state for a new manager")
    parser.add_argument("--writers", type=int, nargs="*", default=WRITERS, help="rows of the table")
    parser.add_argument("--json", action="store_true", help="no table")
    parser.add_argument("--profile", default="", help="leave a cProfile of the leader here")
    options = parser.parse_args()
    if options.peer and shutil.which("etcd") is None:
        parser.error("--peer etcd: there is no etcd here; install the package etcd-server")
    try:
        with (  # not in /tmp, which may be memory
            tempfile.TemporaryDirectory(prefix="shoal-consensus-", dir="/var/tmp") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            result = runner.run(_run(options, Path(folder)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.exit("stopped; nothing is left behind")
    except OSError as error:  # TimeoutError is one
        sys.exit(f"not measured: {error or 'no answer in time'}")
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        _show(result)


if __name__ == "__main__":
    main()
