"""A command in a task's container, from the leader through the agent's session and back."""

from pathlib import Path

import pytest

from common.model.task import TaskState
from common.protocol.execs import PIECE, ExecRequest
from manager.dispatcher.execs import RemoteExec
from tests.support.agents_world import AgentsWorld


@pytest.fixture
def world(tmp_path: Path) -> AgentsWorld:
    return AgentsWorld(tmp_path, seed=1, nodes=2)


async def started(world: AgentsWorld, *command: str, task: str = "") -> RemoteExec:
    machine = world.machines[0]
    if not task:
        task = await world.create(machine)
        await world.until_state(task, TaskState.RUNNING)
    request = ExecRequest(request_id="", task_id=task, command=command, stdin=True, tty=True)
    entry: RemoteExec = world.dispatcher.execs.create(machine.id, request)
    entry.start()
    return entry


async def output(entry: RemoteExec) -> bytes:
    said = b""
    while (piece := await entry.read()) is not None:
        said += piece[1]
    return said


async def test_stdio_size_and_exit_code(world: AgentsWorld) -> None:
    async with world.running():
        entry = await started(world, "sh")
        assert await entry.read() == (1, b"hello")
        entry.resize(24, 80)
        await entry.write(b"abc")
        assert await entry.read() == (2, b"ABC")
        for _ in range(100):  # far more than may be under way
            await entry.write(b"x" * PIECE)
            assert await entry.read() == (2, b"X" * PIECE)
        await entry.close_stdin()
        assert await output(entry) == b""
        assert (entry.exit_code, entry.error) == (7, "")
        assert world.machines[0].engine.process.size == (24, 80)
        assert world.machines[0].engine.process.closed


async def test_what_cannot_be_run_says_why(world: AgentsWorld) -> None:
    async with world.running():
        entry = await started(world, "nothing")
        assert await output(entry) == b"exec failed: nothing: not found\r\n"
        assert entry.exit_code == 127
        entry = await started(world, "sh", task="task-unknown")
        assert await output(entry) == b""
        assert entry.exit_code is None
        assert "is not running" in entry.error


async def test_who_leaves_lets_go_of_the_process(world: AgentsWorld) -> None:
    async with world.running():
        engine = world.machines[0].engine
        entry = await started(world, "sh")
        await entry.read()
        await entry.close()
        await world.until(lambda: engine.process.closed)
        entry = await started(world, "sh")
        await entry.read()
        world.machines[0].cut()
        assert await output(entry) == b""
        assert "is lost; the process may go on" in entry.error
        await world.until(lambda: engine.process.closed)
