"""Containers from create to remove, on the real kernel."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from common.errors import Conflict, Invalid, NotFound
from common.model.container import ContainerCreate, HostConfig, RestartRule
from tests.support.fake_node import EngineNode, engine_node
from worker.engine.engine import Engine
from worker.engine.logs import LogQuery

pytestmark = pytest.mark.root


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


@pytest.fixture
def engine(node: EngineNode) -> Engine:
    return node.engine


def sh(script: str, **fields: object) -> ContainerCreate:
    return ContainerCreate(image="busybox", cmd=("sh", "-c", script), **fields)  # type: ignore[arg-type]


async def output(engine: Engine, ref: str) -> str:
    return "".join([line.data.decode() async for line in engine.logs(ref)])


async def run(engine: Engine, script: str, **fields: object) -> tuple[int, str]:
    """A container's exit code and output, once it has ended."""
    container_id = await engine.create(sh(script, **fields))
    await engine.start(container_id)
    async with asyncio.timeout(20):
        code = await engine.wait(container_id)
    return code, await output(engine, container_id)


async def test_runs_to_its_exit_code_and_keeps_the_output(engine: Engine) -> None:
    code, text = await run(engine, "echo one; echo two >&2; exit 7")
    assert (code, text) == (7, "one\ntwo\n")


async def test_state_through_life(engine: Engine) -> None:
    container_id = await engine.create(sh("sleep 100"), "sleeper")
    container = engine.find("sleeper")
    assert (container.id, container.state, container.pid) == (container_id, "created", 0)
    await engine.start("sleeper")
    assert container.state == "running"
    os.kill(container.pid, 0)
    await engine.stop(container_id[:8], timeout_s=0)
    assert (container.state, container.exit_code) == ("exited", 137)
    await engine.start(container_id)
    await engine.remove(container_id, force=True)
    with pytest.raises(NotFound):
        engine.find(container_id)
    assert container.removed


async def test_stop_signal_is_obeyed(engine: Engine) -> None:
    container_id = await engine.create(
        sh("trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done", stop_signal="SIGUSR1")
    )
    await engine.start(container_id)
    async for line in engine.logs(container_id, LogQuery(follow=True)):
        assert line.data == b"up\n"
        break
    await engine.stop(container_id, timeout_s=10)
    assert engine.find(container_id).exit_code == 5


@pytest.mark.parametrize(
    ("command", "code"), [("nosuch", 127), ("/etc/passwd", 126), ("/tmp", 126)]
)
async def test_what_cannot_be_executed(engine: Engine, command: str, code: int) -> None:
    container_id = await engine.create(ContainerCreate(image="busybox", cmd=(command,)))
    with pytest.raises(Invalid, match="exec"):
        await engine.start(container_id)
    assert engine.find(container_id).exit_code == code
    assert engine.find(container_id).state == "created"


async def test_a_failed_start_leaves_nothing_and_can_be_repeated(node: EngineNode) -> None:
    container_id = await node.engine.create(ContainerCreate(image="busybox", cmd=("nosuch",)))
    for _ in range(3):
        with pytest.raises(Invalid):
            await node.engine.start(container_id)
    assert node.networks.sandboxes() == {}


async def test_names_are_unique_and_freed(engine: Engine) -> None:
    first = await engine.create(sh("true"), "web")
    with pytest.raises(Conflict, match="already in use"):
        await engine.create(sh("true"), "web")
    await engine.rename(first, "db")
    second = await engine.create(sh("true"), "/web")
    assert engine.find("web").id == second
    await engine.remove("db")
    await engine.rename("web", "db")


async def test_memory_limit_kills_and_tells(engine: Engine) -> None:
    events = engine.events.subscribe(since_ns=1)
    code, _ = await run(
        engine, "tail -c 200m /dev/zero | tail", host_config=HostConfig(memory=16 << 20)
    )
    container = engine.list(all=True)[0]
    assert container.oom_killed
    assert code in (0, 137)
    seen = []
    async for event in events:
        seen.append(event)
        if event["Action"] == "die":
            break
    told = [e["Actor"]["Attributes"] for e in seen if e["Action"] == "oom"]
    assert told
    assert told[0]["process"] == "tail"
    if code:
        name, pid = told[-1]["process"], told[-1]["pid"]
        assert container.error == f"out of memory: process {name} (pid {pid}) was killed"


async def test_auto_remove(engine: Engine) -> None:
    container_id = await engine.create(sh("exit 4", host_config=HostConfig(auto_remove=True)))
    waiting = asyncio.get_running_loop().create_task(engine.wait(container_id, "removed"))
    await asyncio.sleep(0)
    await engine.start(container_id)
    async with asyncio.timeout(10):
        assert await waiting == 4
    assert engine.list(all=True) == []


async def test_restart_policy_gives_up(engine: Engine) -> None:
    rule = RestartRule(name="on-failure", maximum_retry_count=2)
    container_id = await engine.create(sh("exit 3", host_config=HostConfig(restart_policy=rule)))
    await engine.start(container_id)
    async with asyncio.timeout(20):
        container = await engine.wait_for(container_id, lambda c: c.state == "exited")
    assert container.current.restart_count == 2


async def test_stop_ends_a_restart_loop(engine: Engine) -> None:
    rule = RestartRule(name="always")
    container_id = await engine.create(sh("exit 3", host_config=HostConfig(restart_policy=rule)))
    await engine.start(container_id)
    async with asyncio.timeout(20):
        await engine.wait_for(container_id, lambda c: c.current.restart_count >= 1)
        await engine.stop(container_id)
    assert engine.find(container_id).state == "exited"


async def test_pause_stops_time_for_a_container(engine: Engine) -> None:
    container_id = await engine.create(sh("while :; do echo x; sleep 0.01; done"))
    await engine.start(container_id)
    await engine.pause(container_id)
    for _ in range(2):  # turns of the keeper, which then has read what came before the pause
        await engine._keeper.request("hello")
    before = len(await output(engine, container_id))
    with pytest.raises(Conflict):
        await engine.start(container_id)
    assert len(await output(engine, container_id)) == before
    await engine.unpause(container_id)
    await engine.pause(container_id)
    await engine.kill(container_id)
    assert engine.find(container_id).exit_code == 137


async def test_two_starts_at_once_are_one(engine: Engine) -> None:
    container_id = await engine.create(sh("sleep 100"))
    await asyncio.gather(*(engine.start(container_id) for _ in range(5)))
    await engine.kill(container_id)
    seen = []
    async for event in engine.events.subscribe(since_ns=1):
        seen.append(event["Action"])
        if event["Action"] == "die":
            break
    assert seen == ["create", "start", "kill", "die"]


async def test_inspect_and_summary(engine: Engine) -> None:
    container_id = await engine.create(sh("sleep 100", labels={"a": "b"}), "web")
    await engine.start(container_id)
    shown = engine.inspect("web")
    assert shown["Name"] == "/web"
    assert shown["State"]["Running"] is True
    assert shown["State"]["Pid"] == engine.find("web").pid
    assert shown["Path"] == "sh"
    assert shown["Args"] == ["-c", "sleep 100"]
    assert "FROM_IMAGE=1" in shown["Config"]["Env"]
    row = engine.summary(engine.find("web"))
    assert (row["Names"], row["State"], row["Labels"]) == (["/web"], "running", {"a": "b"})
    assert (await engine.top("web"))["Processes"]
    assert (await engine.stats("web"))["memory_stats"]["usage"] > 0


async def test_nothing_remains(node: EngineNode) -> None:
    for _ in range(3):
        await run(node.engine, "true")
    for container in node.engine.list(all=True):
        await node.engine.remove(container.id)
    assert os.listdir(node.config.state_dir / "containers") == []
    assert node.networks.sandboxes() == {}


async def test_containers_may_open_fewer_files_than_the_keeper_holds(tmp_path: Path) -> None:
    """As when the keeper has the stdio of more containers than the usual limit has numbers."""
    node = EngineNode(tmp_path)
    node.config = msgspec.structs.replace(node.config, container_open_files=16)
    await node.restart(orderly=False)
    try:
        assert await run(node.engine, "ulimit -Sn") == (0, "16\n")
    finally:
        await node.close()
