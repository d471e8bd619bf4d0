"""The daemon dies, the keeper dies, both die: what runs goes on, what ended is known."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import ShoalError
from common.model.container import ContainerCreate, HostConfig, RestartRule
from common.model.task import HealthConfig
from tests.support.fake_node import EngineNode, abandon, engine_node
from worker.engine.engine import Engine
from worker.engine.logs import LogQuery
from worker.engine.streams import ready
from worker.runtime import syscalls as sc

pytestmark = pytest.mark.root
MS = 1_000_000


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


def body(script: str, **fields: object) -> ContainerCreate:
    return ContainerCreate(image="busybox", cmd=("sh", "-c", script), **fields)  # type: ignore[arg-type]


async def started(engine: Engine, script: str, **fields: object) -> str:
    ref = await engine.create(body(script, **fields))
    await engine.start(ref)
    return ref


async def printed(engine: Engine, ref: str) -> list[bytes]:
    return [line.data async for line in engine.logs(ref)]


async def gone(pid: int, kill: bool = False) -> None:
    """Wait until a process that is not ours has ended."""
    try:
        pidfd = sc.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if kill:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        async with asyncio.timeout(10):
            await ready(pidfd)
    finally:
        os.close(pidfd)


async def killed(pid: int) -> None:
    await gone(pid, kill=True)


@pytest.mark.parametrize("orderly", [True, False])
async def test_containers_outlive_the_daemon(node: EngineNode, orderly: bool) -> None:
    ref = await started(node.engine, "echo before; sleep 100")
    short = await started(node.engine, "read x; exit 6", open_stdin=True)
    pid = node.engine.find(ref).pid
    engine = await node.restart(orderly)
    adopted = engine.find(ref)
    assert (adopted.state, adopted.pid) == ("running", pid)
    assert adopted.node_address == "10.192.0.2"
    await engine.kill(short, "SIGKILL")
    assert engine.find(short).exit_code == 137
    await engine.stop(ref, timeout_s=0)
    assert engine.find(ref).exit_code == 137


async def test_an_end_while_the_daemon_was_away_is_told(node: EngineNode) -> None:
    ref = await started(node.engine, "sleep 0.2; echo late; exit 6")
    stays = await started(node.engine, "sleep 100")
    pid = node.engine.find(ref).pid
    await abandon(node.engine)
    await gone(pid)
    engine = await node.restart(orderly=False)
    container = engine.find(ref)
    assert (container.state, container.exit_code) == ("exited", 6)
    assert await printed(engine, ref) == [b"late\n"]
    assert list(node.networks.sandboxes()) == [stays]


async def test_another_keeper_takes_over(node: EngineNode) -> None:
    """No line is lost, nothing in the container is killed, and the exit code is known."""
    engine = node.engine
    ref = await started(
        engine, "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 4"
    )
    first = engine.keeper_pid
    async for _ in engine.logs(ref, LogQuery(follow=True)):
        break
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        code = await engine.wait(ref)
    assert engine.keeper_pid != first
    assert await printed(engine, ref) == [b"%d\n" % n for n in range(1, 61)]
    assert code == 4


async def lose_keeper(engine: Engine) -> None:
    """Kill it; returns when another one serves."""
    keeper = engine.keeper_pid
    await killed(keeper)
    async with asyncio.timeout(10):
        while engine.keeper_pid == keeper or not engine._keeper.connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def spare(engine: Engine) -> int:
    """The pid of the child that the keeper has ready for the next start."""
    keeper, running = engine.keeper_pid, {c.pid for c in engine.list(all=True)}
    async with asyncio.timeout(10):
        while True:
            children = of_process(keeper, f"task/{keeper}/children").split()
            if found := {int(pid) for pid in children} - running:
                return found.pop()
            await asyncio.sleep(0.001)


async def test_a_child_is_ready_for_the_next_start(node: EngineNode) -> None:
    """It sees nothing of the machine's mounts and files, and ends with what has no use for it."""
    engine = node.engine
    await started(engine, "sleep 100")
    ready_one = await spare(engine)
    ref = await started(engine, "sleep 100")
    assert engine.find(ref).pid == ready_one
    ready_one = await spare(engine)
    async with asyncio.timeout(10):
        while "/dev/mqueue" not in (seen := of_process(ready_one, "mountinfo")):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert str(node.config.state_dir) not in seen
    assert len(os.listdir(f"/proc/{ready_one}/fd")) < 16
    for wish in (HostConfig(pid_mode="host"), HostConfig(cpu_quota=10)):
        ref = await engine.create(body("sleep 100", host_config=wish))
        with contextlib.suppress(ShoalError):
            await engine.start(ref)
        assert engine.find(ref).pid != ready_one
        await gone(ready_one)
        await started(engine, "sleep 100")
        ready_one = await spare(engine)
    await lose_keeper(engine)
    await gone(ready_one)


async def test_keepers_die_again_and_again_under_load(node: EngineNode) -> None:
    """Twenty containers write and end while one keeper after the other is killed: every line is
    there once and in order, every code is known, and nobody is left behind."""
    engine = node.engine
    script = "i=0; while [ $i -lt 120 ]; do i=$((i+1)); echo $1 $i; sleep 0.01; done; exit $1"
    refs = []
    for number in range(20):
        ref = await engine.create(
            ContainerCreate(image="busybox", cmd=("sh", "-c", script, "sh", str(number)))
        )
        await engine.start(ref)
        refs.append(ref)
    quick = await started(engine, "exit 9")
    for _ in range(3):
        await lose_keeper(engine)
    async with asyncio.timeout(60):
        codes = [await engine.wait(ref) for ref in refs]
    assert codes == list(range(20))
    for number, ref in enumerate(refs):
        assert await printed(engine, ref) == [b"%d %d\n" % (number, n) for n in range(1, 121)]
    assert engine.find(quick).exit_code in (9, 255)
    assert bool(engine.find(quick).error) == (engine.find(quick).exit_code == 255)


async def test_ends_unseen_are_reported_as_such(node: EngineNode) -> None:
    engine = node.engine
    ref = await started(engine, "sleep 100")
    pid = engine.find(ref).pid
    await abandon(engine)
    os.kill(engine.keeper_pid, signal.SIGKILL)
    await killed(pid)
    engine = await node.restart(orderly=False)
    container = engine.find(ref)
    assert (container.state, container.exit_code) == ("exited", 255)
    assert "nobody saw" in container.error


async def test_policies_start_containers_with_the_daemon(node: EngineNode) -> None:
    rule = HostConfig(restart_policy=RestartRule(name="unless-stopped"))
    ref = await started(node.engine, "sleep 100", host_config=rule)
    stopped = await started(node.engine, "sleep 100", host_config=rule)
    await node.engine.stop(stopped, timeout_s=0)
    pid = node.engine.find(ref).pid
    await abandon(node.engine)
    os.kill(node.engine.keeper_pid, signal.SIGKILL)
    await killed(pid)
    engine = await node.restart(orderly=False)
    async with asyncio.timeout(10):
        await engine.wait_for(ref, lambda c: c.state == "running")
    assert engine.find(stopped).state == "exited"


async def test_half_made_folders_are_cleared(node: EngineNode) -> None:
    await abandon(node.engine)
    containers = node.config.state_dir / "containers"
    (containers / "abc" / "upper").mkdir(parents=True)
    (containers / ".def.removing" / "upper").mkdir(parents=True)
    engine = await node.restart(orderly=False)
    assert engine.list(all=True) == []
    assert os.listdir(containers) == []


async def test_healthy_soon_and_unhealthy_later(node: EngineNode) -> None:
    check = HealthConfig(test=("CMD-SHELL", "test -e /tmp/ok"), interval=150 * MS, retries=2)
    ref = await started(
        node.engine, "touch /tmp/ok; sleep 0.5; rm /tmp/ok; sleep 100", healthcheck=check
    )
    async with asyncio.timeout(10):
        container = await node.engine.wait_for(ref, lambda c: c.health == "healthy")
        await node.engine.wait_for(ref, lambda c: c.health == "unhealthy")
    shown = node.engine.inspect(ref)["State"]["Health"]
    assert shown["FailingStreak"] >= 2
    assert shown["Log"][-1]["ExitCode"] == 1
    assert container.live


async def test_a_hanging_probe_is_killed(node: EngineNode) -> None:
    check = HealthConfig(
        test=("CMD", "sleep", "50"), interval=100 * MS, timeout=100 * MS, retries=1
    )
    ref = await started(node.engine, "sleep 100", healthcheck=check)
    async with asyncio.timeout(10):
        await node.engine.wait_for(ref, lambda c: c.health == "unhealthy")
    await node.engine.pause(ref)
    log = node.engine.inspect(ref)["State"]["Health"]["Log"]
    assert "exceeded timeout" in log[-1]["Output"]
    await node.engine.unpause(ref)


async def test_health_goes_on_after_a_restart_of_the_daemon(node: EngineNode) -> None:
    check = HealthConfig(test=("CMD", "true"), interval=100 * MS)
    ref = await started(node.engine, "sleep 100", healthcheck=check)
    engine = await node.restart(orderly=False)
    async with asyncio.timeout(10):
        await engine.wait_for(ref, lambda c: c.health == "healthy")
