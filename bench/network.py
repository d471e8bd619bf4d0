"""Measures the data plane: `python -m bench.network [--quick] [--peer haproxy,docker]`.

Needs root, and Debian's iperf3, gcc and busybox-static; haproxy and docker.io for the peers. All
rows are of one run; what is compared takes turns, and a ratio is the median of the turns'.

    overlay    sandbox to sandbox on two lab machines, beside the machines' own addresses
    vip        a service's virtual IP beside its task's address, from the same sandbox
    ingress    a published port from outside, beside a server of the machine; client's address kept
    changes    one backend, with 10 to 10,000 services there; 10,000 endpoints of one network
    names      questions to one node's resolver
    cluster    RUNNING to answered on all of 20 lab machines, with their daemons
    docker     Docker's overlay, if it is among the peers; HAProxy is a row of vip and ingress

Both ends share the machine's processors, so that what one way costs more is missing at the other
end, too: ratios of connections/s look worse than between two machines. The links carry
unsegmented frames: throughput looks better.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import network_cluster, network_paths, network_peers, network_tables
from bench.network_rig import Rig
from bench.network_rows import Report
from bench.network_tools import BenchError, Size, check_tools

FULL, QUICK = Size(7, 2.0), Size(3, 1.0)
PARTS = ("overlay", "vip", "ingress", "changes", "names", "cluster", "docker")
Part = Callable[[Rig], Awaitable[None]]


def _parts(options: argparse.Namespace, report: Report) -> dict[str, Part]:
    """Those that run on two machines in this process."""
    size: Size = QUICK if options.quick else FULL
    proxy = "haproxy" in options.peer
    counts = (10, 1000, 10_000)

    async def changes(rig: Rig) -> None:
        await network_tables.endpoints(rig, report)
        await network_tables.updates(rig, counts, report)

    return {
        "overlay": lambda rig: network_paths.overlay(rig, size, report),
        "vip": lambda rig: network_paths.vip(rig, size, report, "", proxy),
        "ingress": lambda rig: network_paths.ingress(rig, size, report, proxy),
        "changes": changes,
        "names": lambda rig: network_tables.names(rig, size.seconds, report),
    }


async def _measure(options: argparse.Namespace, report: Report) -> None:
    for name, part in _parts(options, report).items():
        if name not in options.only:
            continue
        rig = Rig()
        try:
            await rig.start(2)
            await part(rig)
        finally:
            await rig.stop()
    if "docker" in options.only and "docker" in options.peer:
        await network_peers.docker_overlay(QUICK if options.quick else FULL, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.network")
    parser.add_argument("--quick", action="store_true", help="short turns, and few of them")
    parser.add_argument("--peer", default="", help="haproxy,docker")
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--machines", type=int, default=20, help="of the part cluster")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    options = parser.parse_args()
    options.peer = [name for name in options.peer.split(",") if name]
    options.only = [name for name in options.only.split(",") if name]
    for given, known in ((options.peer, network_peers.PEERS), (options.only, PARTS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(known)}")
    return options


def _describe() -> str:
    load = os.getloadavg()[0]
    return f"Linux {platform.release()}, {os.cpu_count()} processors, load before {load:.1f}"


def main() -> None:
    options = _options()
    report = Report()
    try:
        check_tools()
        network_peers.check(options.peer)
        report.title(_describe())
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_measure(options, report))
        if "cluster" in options.only:
            turns = 3 if options.quick else 10
            network_cluster.reachable(options.machines, turns, report)
    except BenchError as error:
        sys.exit(f"bench.network: {error}")
    finally:
        if options.json:
            rows = [row._asdict() | {"missed": row.missed} for row in report.rows]
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The daemon's."""
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    main()
