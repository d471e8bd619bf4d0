"""Processes run in tasks' containers: what goes to the agent, and what comes back."""

import asyncio
import random

import pytest

from common.errors import Conflict, NotFound, Unavailable
from common.ids import Ids
from common.protocol.execs import (
    CREDIT,
    INPUT_CREDIT,
    PIECE,
    ExecCancel,
    ExecCredit,
    ExecEnd,
    ExecInput,
    ExecOutput,
    ExecRequest,
    ExecResize,
    ExecTaken,
    ToAgentExec,
)
from manager.dispatcher.execs import KEPT, OPEN_MAX, ExecRelay, RemoteExec

ASKED = ExecRequest(request_id="", task_id="t1", command=("sh",), stdin=True)


class World:
    def __init__(self) -> None:
        self.connected = True
        self.sent: list[ToAgentExec] = []
        self.relay = ExecRelay(Ids(random.Random(1)), self._send)

    def _send(self, node_id: str, message: ToAgentExec) -> bool:
        assert node_id == "n1"
        if self.connected:
            self.sent.append(message)
        return self.connected

    def started(self) -> RemoteExec:
        entry = self.relay.create("n1", ASKED)
        entry.start()
        return entry

    def say(self, entry: RemoteExec, text: bytes, node: str = "n1") -> None:
        message = ExecOutput(request_id=entry.request.request_id, stream=1, data=text)
        self.relay.take(node, message)

    def end(self, entry: RemoteExec, code: int | None = 0, error: str = "") -> None:
        id = entry.request.request_id
        self.relay.take("n1", ExecEnd(request_id=id, exit_code=code, error=error))

    def kinds(self) -> list[type]:
        return [type(message) for message in self.sent]


@pytest.fixture
def world() -> World:
    return World()


async def test_bytes_go_both_ways_and_the_exit_code_stays(world: World) -> None:
    entry = world.started()
    await entry.write(b"x" * (PIECE + 1))
    await entry.close_stdin()
    entry.resize(24, 80)
    world.say(entry, b"one")
    assert await entry.read() == (1, b"one")
    world.say(entry, b"two")
    world.end(entry, 3)
    assert await entry.read() == (1, b"two")
    assert await entry.read() is None
    assert world.kinds() == [ExecRequest, *[ExecInput] * 3, ExecResize, ExecCredit]
    assert [len(m.data) for m in world.sent if isinstance(m, ExecInput)] == [PIECE, 1, 0]
    found = world.relay.find(entry.request.request_id)
    assert (found.exit_code, found.error) == (3, "")
    await entry.close()
    await entry.write(b"late")
    entry.resize(1, 1)
    assert len(world.sent) == 6  # nothing is said of what has ended


async def test_input_waits_until_the_process_reads(world: World) -> None:
    entry = world.started()
    writing = asyncio.get_running_loop().create_task(entry.write(b"x" * PIECE * (INPUT_CREDIT + 2)))
    await asyncio.sleep(0)
    assert world.kinds().count(ExecInput) == INPUT_CREDIT
    world.relay.take("n1", ExecTaken(request_id=entry.request.request_id))
    await asyncio.sleep(0)
    assert world.kinds().count(ExecInput) == INPUT_CREDIT + 1
    assert not writing.done()
    world.end(entry)
    await writing


async def test_an_agent_that_sends_more_than_it_may_is_cut_off(world: World) -> None:
    entry = world.started()
    for _ in range(CREDIT):
        world.say(entry, b"x")
    assert not entry.ended.is_set()
    world.say(entry, b"x")
    assert entry.error == "node n1 sends more than it may"
    assert world.kinds()[-1] is ExecCancel


async def test_what_is_said_by_another_node_is_dropped(world: World) -> None:
    entry = world.started()
    world.say(entry, b"lies", node="n2")
    world.relay.take("n2", ExecEnd(request_id=entry.request.request_id, exit_code=0))
    assert not entry.ended.is_set()
    world.relay.disconnected("n2")
    assert not entry.ended.is_set()
    world.relay.disconnected("n1")
    assert await entry.read() is None
    assert "the connection to node n1 is lost" in entry.error
    assert entry.exit_code is None


async def test_a_client_that_goes_away_cancels_once(world: World) -> None:
    entry = world.started()
    await entry.close()
    await entry.close()
    assert world.kinds() == [ExecRequest, ExecCancel]


async def test_starting(world: World) -> None:
    entry = world.relay.create("n1", ASKED)
    world.connected = False
    with pytest.raises(Unavailable, match="node n1 is not connected"):
        entry.start()
    world.connected = True
    entry.start()
    with pytest.raises(Conflict, match="started already"):
        entry.start()
    with pytest.raises(NotFound, match="lost with the leader"):
        world.relay.find("unknown")


async def test_memory_is_bounded(world: World) -> None:
    first = world.relay.create("n1", ASKED)
    for _ in range(3 * KEPT):
        entry = world.started()
        world.end(entry)
        world.relay.create("n1", ASKED)
    with pytest.raises(NotFound):
        world.relay.find(first.request.request_id)
    assert world.relay.find(entry.request.request_id) is entry
    for _ in range(OPEN_MAX):
        world.started()
    with pytest.raises(Unavailable, match=f"{OPEN_MAX} processes"):
        world.started()
