"""`kill -9` of the daemon at any moment of any operation: nothing leaks, nothing is lost.

SHOAL_CRASH_OPERATIONS says how many operations are begun in all (default 200).
"""

import asyncio
import contextlib
import io
import os
import random
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from common.errors import ShoalError
from common.model.container import ContainerCreate, HostConfig
from tests.support.fake_node import EngineNode
from worker.engine.engine import Engine
from worker.engine.exec import ExecConfig
from worker.engine.updating import ContainerUpdate
from worker.runtime import cgroups

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
OPERATIONS = int(os.environ.get("SHOAL_CRASH_OPERATIONS", "200"))
SEED = int(os.environ.get("SEED", "7"))

Verb = Callable[[Engine, str, random.Random], Awaitable[object]]


async def _all(items: AsyncIterator[object]) -> None:
    async for _ in items:
        pass


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data[:700]
    yield data[700:]


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("copied")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
    return out.getvalue()


async def _commit(engine: Engine, ref: str) -> None:
    async with engine.frozen(ref):
        await _all(engine.files.layer(ref))


async def _exec(engine: Engine, ref: str) -> None:
    exec_id = await engine.exec_create(ref, ExecConfig(cmd=("touch", "/by-exec")))
    await engine.exec_start(exec_id, detach=True)
    await engine.exec_wait(exec_id)


async def _spare_volume(engine: Engine, rng: random.Random) -> None:
    volume = await engine.volumes.create(f"spare-{rng.random()}")
    await engine.volumes.remove(volume["Name"])


VERBS: dict[str, Verb] = {
    "start": lambda engine, ref, rng: engine.start(ref),
    "stop": lambda engine, ref, rng: engine.stop(ref, timeout_s=0),
    "restart": lambda engine, ref, rng: engine.restart(ref, timeout_s=0),
    "kill": lambda engine, ref, rng: engine.kill(ref),
    "pause": lambda engine, ref, rng: engine.pause(ref),
    "unpause": lambda engine, ref, rng: engine.unpause(ref),
    "rename": lambda engine, ref, rng: engine.rename(ref, f"r{rng.random()}"),
    "update": lambda engine, ref, rng: engine.update(ref, ContainerUpdate(memory=64 << 20)),
    "exec": lambda engine, ref, rng: _exec(engine, ref),
    "cp in": lambda engine, ref, rng: engine.files.write(ref, "/tmp", _pieces(_tar())),
    "cp out": lambda engine, ref, rng: _all(engine.files.read(ref, "/srv")),
    "diff": lambda engine, ref, rng: engine.files.changes(ref),
    "export": lambda engine, ref, rng: _all(engine.files.export(ref)),
    "commit": lambda engine, ref, rng: _commit(engine, ref),
    "logs": lambda engine, ref, rng: _all(engine.logs(ref)),
    "top": lambda engine, ref, rng: engine.top(ref),
    "stats": lambda engine, ref, rng: engine.stats(ref),
    "volume": lambda engine, ref, rng: _spare_volume(engine, rng),
}


async def busy(base: Path, group: str, seed: int) -> None:
    """A daemon that works without end. On stdout: the names of operations as they begin, ids of
    finished creations, and -ID when a removal begins."""
    rng, node = random.Random(seed), EngineNode(base, seed, group)
    engine = node.engine
    await engine.open()
    os.write(1, b"open\n")

    async def one(number: int) -> None:
        while True:
            os.write(1, b"create\n")
            ref = await engine.create(
                ContainerCreate(
                    image="busybox",
                    cmd=("sleep", "100"),
                    host_config=HostConfig(binds=("shared:/srv", "/own")),
                ),
                f"c{number}-{rng.random()}",
            )
            os.write(1, f"{ref}\n".encode())
            for verb in ("start", *rng.choices(list(VERBS), k=rng.randrange(6))):
                os.write(1, f"{verb}\n".encode())
                with contextlib.suppress(ShoalError):  # such as a pause of what does not run
                    await VERBS[verb](engine, ref, rng)
            if rng.random() < 0.7:
                os.write(1, f"-{ref}\n".encode())
                await engine.remove(ref, force=True, volumes=True)

    async with asyncio.TaskGroup() as group_:
        for number in range(3):
            group_.create_task(one(number))


class Story:
    """What an interrupted daemon told."""

    def __init__(self, text: str) -> None:
        self.promised: set[str] = set()
        self.begun = 0
        for line in text.splitlines():
            if line in VERBS or line == "create" or line.startswith("-"):
                self.begun += 1
            if line.startswith("-"):
                self.promised.discard(line[1:])
            elif len(line) == 64:
                self.promised.add(line)


async def interrupted(base: Path, group: str, seed: int, seconds: float) -> Story:
    """Run `busy` for a while and kill it."""
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
    return Story(text)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def left_in_cgroups(group: str, controller: str = "memory") -> list[str]:
    folder = Path(cgroups.ROOT) / controller / group
    return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.exists() else []


def frozen(group: str) -> set[str]:
    states = {
        name: Path(cgroups.ROOT) / "freezer" / group / name / "freezer.state"
        for name in left_in_cgroups(group, "freezer")
    }
    return {name for name, path in states.items() if path.read_text().strip() != "THAWED"}


def mounted(base: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(base) in line]


async def test_kill_at_random_moments(tmp_path: Path) -> None:
    rng, group, begun, number = random.Random(SEED), f"shoal-crash-{os.getpid()}", 0, 0
    while begun < OPERATIONS:
        number += 1
        story = await interrupted(tmp_path, group, number, rng.uniform(0.0, 0.6))
        begun += story.begun
        node = EngineNode(tmp_path, 1000 + number, group)
        await node.engine.open()
        try:
            await check(node, story.promised, group)
        finally:
            await node.close()
        assert left_in_cgroups(group) == [], f"round {number}: cgroups remain"
        assert os.listdir(node.config.state_dir / "containers") == []
        assert os.listdir(node.config.state_dir / "volumes") in (["shared"], [])
        assert mounted(tmp_path) == []


async def check(node: EngineNode, promised: set[str], group: str) -> None:
    """What the engine says, what lies on disk, what runs and what is mounted agree."""
    engine = node.engine
    found = {container.id: container for container in engine.list(all=True)}
    assert promised <= set(found), "a promised container is lost"
    for container in found.values():
        assert container.state in ("created", "running", "paused", "exited")
        assert container.live == (container.pid != 0 and alive(container.pid))
        assert not container.current.frozen_for_commit
        assert engine.find(container.name) is container
    paused = {c.id for c in found.values() if c.state == "paused"}
    assert frozen(group) == paused
    assert set(os.listdir(node.config.state_dir / "containers")) == set(found)
    assert set(left_in_cgroups(group)) >= {c.id for c in found.values() if c.live}
    await check_volumes(node)
    for container in list(found.values())[:2]:  # what was left half done hinders nothing
        await engine.remove(container.id, force=True, volumes=True)
        again = await engine.create(
            ContainerCreate(image="busybox", cmd=("true",)), container.name
        )  # fmt: skip
        await engine.start(again)


async def check_volumes(node: EngineNode) -> None:
    """Those on disk are those of the API; a spare one may be left of its creation."""
    names = {volume["Name"] for volume in node.engine.volumes.list()}
    assert set(os.listdir(node.config.state_dir / "volumes")) == names
    for name in sorted(names):
        if not node.engine.volumes.users(name) and name != "shared":
            assert name.startswith("spare-"), f"volume {name} is nobody's"
            await node.engine.volumes.remove(name)


if __name__ == "__main__":
    asyncio.run(busy(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
