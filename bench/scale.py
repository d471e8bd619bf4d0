"""What a large cluster costs its leader: `python -m bench.scale [--quick] [a b c ...]`.

    a  1 service x 100,000 tasks on 1,000 nodes
    b  100,000 services of one task on 1,000 nodes
    c  1 service x 100,000 tasks on 100,000 nodes
    d  1 service x 1,000,000 tasks on 10,000 nodes
    e  one more task on 5,000 full nodes
    f  as a, with a constraint, and spread over racks
    g  10,000 agents with heartbeats, 1 % of 100,000 tasks failing each minute
    h  10 % of 1,000 nodes lost at once
    i  rolling update of 10,000 tasks
    l  list 100,000 tasks

The manager's own store, orchestrators, allocator and scheduler, in one process; agents are played,
and the log is a function call (`scale_cluster.py`). a, b, c, d and f are measured as

    decide    the scheduler's decisions alone: which node for each task
    schedule  PENDING to ASSIGNED through the store, encoded for the log and applied, all of it
    create    from the API's "create service" to the last task ASSIGNED, with all of the loops

Each measurement has a process of its own, so that none finds the memory of another. --quick takes
a tenth of everything. SwarmKit's own benchmark, which measures what `schedule` does but encodes
nothing, needs 56 s for 100,000 one-off tasks on 1,000 nodes.
"""

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence

import uvloop

from bench import scale_living as living
from bench import scale_placing as placing
from bench.scale_cluster import template
from bench.scale_placing import Load, Row

Measure = Callable[[], Awaitable[Row | Sequence[Row]]]


def cases(part: int) -> dict[str, dict[str, Measure]]:
    """By letter and kind; everything is divided by `part`."""

    def three(case: str, load: Load) -> dict[str, Measure]:
        return {
            "decide": lambda: placing.decide(case, load),
            "schedule": lambda: placing.schedule(case, load),
            "create": lambda: placing.create(case, load),
        }

    many, nodes = 100_000 // part, 1_000
    choosy = Load(
        1, many, nodes, lambda: template(constraints=("node.labels.disk==ssd",), spread=_RACK)
    )
    return {
        "a": three("a", Load(1, many, nodes)),
        "b": three("b", Load(many, 1, nodes)),
        "c": three("c", Load(1, many, many)),
        "d": three("d", Load(1, 10 * many, 10_000 // part)),
        "e": {"more": lambda: placing.one_more("e", 5_000 // part, 20, 1000)},
        "f": three("f", choosy),
        "g": {"steady": lambda: living.steady("g", 10_000 // part, 1000 // part, 100, 30.0)},
        "h": {
            "many": lambda: living.node_loss("h", nodes, 100, 1000 // part),
            "one": lambda: living.node_loss("h", nodes, 1, many // 10),
        },
        "i": {
            "1": lambda: living.rolling_update("i", many // 100, nodes, 1),
            "100": lambda: living.rolling_update("i", many // 10, nodes, 100),
        },
        "l": {"list": lambda: living.lists("l", many)},
    }


_RACK = ("node.labels.rack",)


def show(row: Row) -> None:
    cost = row.cost
    each = cost.wall_s / max(row.tasks, 1) * 1e6
    print(
        f"{row.case} {row.what:<26}{cost.wall_s:>9.2f} s{cost.cpu_s:>9.2f} s CPU"
        f"{cost.memory >> 20:>7} MiB{each:>9.1f} us each   {row.note}",
        flush=True,
    )


def measure(one: Measure) -> None:
    async def run() -> None:
        rows = await one()
        for row in [rows] if isinstance(rows, Row) else rows:
            show(row)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--here", default="", help="only this measurement, in this process")
    parser.add_argument("cases", nargs="*", help="letters, or one measurement such as a.decide")
    args = parser.parse_args()
    known = cases(10 if args.quick else 1)
    if args.here:
        letter, _, kind = args.here.partition(".")
        measure(known[letter][kind])
        return
    for name in args.cases or known:
        letter, _, only = name.partition(".")
        for kind in [only] if only else known[letter]:
            command = [sys.executable, "-m", "bench.scale", "--here", f"{letter}.{kind}"]
            subprocess.run(command + ["--quick"] * args.quick, check=False)


if __name__ == "__main__":
    main()
