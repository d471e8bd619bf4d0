"""How long the engine takes from `create` to a running process, and what its keeper weighs.

    python -m bench.engine_start [COUNT]

Needs root and a static busybox. The image is a busybox, the network a bare namespace.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common.model.container import ContainerCreate
from tests.support.fake_node import EngineNode, engine_node
from worker.engine.exec import ExecConfig


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with engine_node(Path(folder)) as node:
            await measure(node, count)


async def measure(node: EngineNode, count: int) -> None:
    for owner, what in (("", "user's container"), ("task", "task's container")):
        spans = [await one_start(node, owner) for _ in range(count)]
        report(f"create + start, {what}", spans)
        print(f"  keeper with {len(node.engine.list())} containers: {memory(node)}")
    ref = node.engine.list()[0].id
    report("exec to its end", [await one_exec(node, ref) for _ in range(count)])
    report("start of 8 at once, each", await many(node, 8))
    print(f"  logs: {await log_rate(node):.0f} MB/s")


async def one_start(node: EngineNode, owner: str) -> float:
    body = ContainerCreate(image="busybox", cmd=("sleep", "1000"))
    begin = time.perf_counter()
    ref = await node.engine.create(body, owner=owner)
    await node.engine.start(ref)
    return (time.perf_counter() - begin) * 1000


async def many(node: EngineNode, count: int) -> list[float]:
    begin = time.perf_counter()
    await asyncio.gather(*(one_start(node, "task") for _ in range(count)))
    return [(time.perf_counter() - begin) * 1000 / count]


async def one_exec(node: EngineNode, ref: str) -> float:
    begin = time.perf_counter()
    config = ExecConfig(cmd=("true",), attach_stdout=True)
    stream = await node.engine.exec_start(await node.engine.exec_create(ref, config))
    assert stream is not None
    while await stream.read() is not None:
        pass
    await stream.close()
    return (time.perf_counter() - begin) * 1000


async def log_rate(node: EngineNode) -> float:
    script = "head -c 300m /dev/zero | tr '\\000' x"
    body = ContainerCreate(image="busybox", cmd=("sh", "-c", script))
    ref = await node.engine.create(body)
    begin = time.perf_counter()
    await node.engine.start(ref)
    await node.engine.wait(ref)
    return 300 * 1.048576 / (time.perf_counter() - begin)


def memory(node: EngineNode) -> str:
    text = Path(f"/proc/{node.engine.keeper_pid}/smaps_rollup").read_text()
    fields = [line.split() for line in text.splitlines()]
    sizes = {words[0]: int(words[1]) / 1024 for words in fields if words[0] in ("Rss:", "Pss:")}
    return f"RSS {sizes['Rss:']:.1f} MB, PSS {sizes['Pss:']:.1f} MB"


def report(what: str, spans: list[float]) -> None:
    ordered = sorted(spans)
    print(
        f"{what}: min {ordered[0]:.1f} ms, p50 {statistics.median(ordered):.1f} ms, "
        f"p99 {ordered[int(len(ordered) * 0.99)]:.1f} ms"
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
