"""`kill -9` of the daemon at any moment of any operation: nothing leaks, nothing is lost."""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from common.model.container import ContainerCreate
from tests.support.fake_node import EngineNode
from worker.runtime import cgroups

pytestmark = pytest.mark.root
ROUNDS = 12


async def busy(base: Path, group: str, seed: int) -> None:
    """A daemon that works without end; told names of finished creations on stdout."""
    rng, node = random.Random(seed), EngineNode(base, seed, group)
    engine = node.engine
    await engine.open()
    sys.stdout.write("open\n")
    sys.stdout.flush()

    async def one(number: int) -> None:
        while True:
            ref = await engine.create(
                ContainerCreate(image="busybox", cmd=("sleep", "100")), f"c{number}-{rng.random()}"
            )
            os.write(1, f"{ref}\n".encode())
            await engine.start(ref)
            if rng.random() < 0.5:
                await engine.stop(ref, timeout_s=0)
            if rng.random() < 0.7:
                os.write(1, f"-{ref}\n".encode())
                await engine.remove(ref, force=True)

    async with asyncio.TaskGroup() as group_:
        for number in range(3):
            group_.create_task(one(number))


async def interrupted(base: Path, group: str, seed: int, seconds: float) -> set[str]:
    """Run `busy` for a while and kill it; the containers that were promised and not given up."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.test_engine_crash", str(base), group, str(seed),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"open\n"
    await asyncio.sleep(seconds)  # the moment of the crash is what is varied here
    process.kill()
    text = (await process.stdout.read()).decode()
    await process.wait()
    promised: set[str] = set()
    for line in text.split():
        promised.discard(line[1:]) if line.startswith("-") else promised.add(line)
    return promised


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def left_in_cgroups(group: str) -> list[str]:
    folder = Path(cgroups.ROOT) / "memory" / group
    return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.exists() else []


async def test_kill_at_random_moments(tmp_path: Path) -> None:
    rng, group = random.Random(7), f"shoal-crash-{os.getpid()}"
    for number in range(ROUNDS):
        promised = await interrupted(tmp_path, group, number, rng.uniform(0.0, 0.25))
        node = EngineNode(tmp_path, 1000 + number, group)
        await node.engine.open()
        try:
            check(node, promised, group)
        finally:
            await node.close()
        assert left_in_cgroups(group) == [], f"round {number}: cgroups remain"
        assert os.listdir(node.config.state_dir / "containers") == []


def check(node: EngineNode, promised: set[str], group: str) -> None:
    """What the engine says, what lies on disk and what runs agree."""
    found = {container.id: container for container in node.engine.list(all=True)}
    assert promised <= set(found), "a promised container is lost"
    for container in found.values():
        assert container.state in ("created", "running", "exited")
        assert (container.state == "running") == (container.pid != 0 and alive(container.pid))
    assert set(os.listdir(node.config.state_dir / "containers")) == set(found)
    assert set(left_in_cgroups(group)) >= {c.id for c in found.values() if c.live}


if __name__ == "__main__":
    asyncio.run(busy(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
