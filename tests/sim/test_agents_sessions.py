"""Sessions seen from the wire: who is served, what becomes of old ones, what is pushed."""

import asyncio
import contextlib
import itertools
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.model.node import ManagerStatus, Node, NodeDescription, Role
from common.model.task import TaskState
from common.protocol.dispatcher import (
    Alive,
    FromAgent,
    Heartbeat,
    Hello,
    LogRequest,
    Refused,
    SessionUpdate,
    ToAgent,
    Welcome,
    decode_from_agent,
    decode_to_agent,
    encode,
)
from common.streams import StreamClosed
from tests.support.agents_world import AgentsWorld
from tests.support.memory_stream import Wire

S = TaskState
HELLO = Hello(description=NodeDescription(hostname="by-hand"), address="192.0.2.1")


class Peer:
    """An agent's end of one stream, worked by hand."""

    def __init__(self, world: AgentsWorld, node_id: str) -> None:
        self.wire = Wire()
        self.stream = self.wire.ends[0]
        world.accept(node_id, self.wire)

    async def say(self, message: FromAgent) -> None:
        await self.stream.send(encode(message))

    async def hear(self) -> ToAgent:
        async with asyncio.timeout(20):
            return decode_to_agent(await self.stream.receive())

    async def hear_of(self, kind: type[ToAgent]) -> ToAgent:
        while not isinstance(message := await self.hear(), kind):
            pass
        return message

    async def welcomed(self) -> Welcome:
        await self.say(HELLO)
        welcome = await self.hear()
        assert isinstance(welcome, Welcome)
        return welcome

    async def ended(self) -> None:
        """Read what is still there, up to the end."""
        with contextlib.suppress(StreamClosed):
            while True:
                await self.hear()


@pytest.fixture
def world(tmp_path: Path) -> AgentsWorld:
    return AgentsWorld(tmp_path, seed=3, nodes=1)


async def test_registering_again_ends_the_session_before(world: AgentsWorld) -> None:
    """DIS 145, 148: a new session; the old one's heartbeats are worth nothing, nor does its end
    touch the new one."""
    async with world.running():
        await world.machines[0].stop()
        old = Peer(world, "node-1")
        first = await old.welcomed()
        new = Peer(world, "node-1")
        second = await new.welcomed()
        assert first.session_id != second.session_id
        await old.ended()
        with pytest.raises(StreamClosed):
            await old.say(Heartbeat(sequence=0))
        await new.say(Heartbeat(sequence=0))
        assert await new.hear_of(Alive) == Alive()
        world.machines[0].start()


async def test_without_a_registration_nothing_is_served(world: AgentsWorld) -> None:
    """DIS 148."""
    async with world.running():
        peer = Peer(world, "node-1")
        await peer.say(Heartbeat(sequence=0))
        assert await peer.hear() == Refused(reason="a session starts with hello")
        await peer.ended()
        await world.machines[0].stop()
        stranger = Peer(world, "node-99")
        await stranger.say(HELLO)
        refused = await stranger.hear()
        assert isinstance(refused, Refused)
        assert "not in the cluster" in refused.reason
        world.machines[0].start()


async def test_heartbeats_come_at_spread_moments(world: AgentsWorld) -> None:
    """DIS 150: within a tenth of the period, so that agents that began together drift apart."""
    async with world.running():
        machine = world.machines[0]
        await world.until(lambda: machine.in_session)
        beats: list[float] = []
        send = machine.wires[-1].ends[0].send

        async def note(data: bytes) -> None:
            if isinstance(decode_from_agent(data), Heartbeat):
                beats.append(asyncio.get_running_loop().time())
            await send(data)

        machine.wires[-1].ends[0].send = note  # type: ignore[method-assign]
        await world.until(lambda: len(beats) > 30)
        gaps = [later - at for at, later in itertools.pairwise(beats)]
        assert all(0.9 <= gap <= 1.11 for gap in gaps), gaps
        assert max(gaps) - min(gaps) > 0.1


async def test_new_managers_and_roles_are_pushed_to_open_sessions(world: AgentsWorld) -> None:
    """DIS 162. Root CA and keys travel with the renewal of certificates, not here."""
    async with world.running():
        await world.machines[0].stop()
        peer = Peer(world, "node-1")
        assert (await peer.welcomed()).managers == ()
        status = ManagerStatus(addr="192.0.2.9:2377")
        other = Node(id="other", spec=node(world).spec, role=Role.MANAGER, manager_status=status)
        await world.store.update(lambda tx: tx.put(other))
        update = await peer.hear_of(SessionUpdate)
        assert isinstance(update, SessionUpdate)
        assert [manager.address for manager in update.managers] == ["192.0.2.9:2377"]
        wanted = replace(node(world), spec=replace(node(world).spec, role=Role.MANAGER))
        await world.store.update(lambda tx: tx.put(wanted))
        update = await peer.hear_of(SessionUpdate)
        assert isinstance(update, SessionUpdate)
        assert update.role == "manager"
        world.machines[0].start()


def node(world: AgentsWorld) -> Node:
    found = world.store.view().get(Node, "node-1")
    assert found is not None
    return found


async def test_what_is_asked_of_logs_reaches_the_engine(world: AgentsWorld) -> None:
    """LOG 172: tail, since, until, the streams; and a container that is gone has no lines."""
    async with world.running():
        machine = world.machines[0]
        id = await world.create(machine, "web")
        await world.until_state(id, S.RUNNING)
        machine.engine.lines[id] = [b"%d\n" % number for number in range(9)]
        asked: list[LogRequest] = []
        logs = machine.engine.logs

        def note(task_id: str, request: LogRequest):  # type: ignore[no-untyped-def]
            asked.append(request)
            return logs(task_id, request)

        machine.engine.logs = note  # type: ignore[method-assign]
        wanted = {"tail": 4, "since_ns": 5, "until_ns": 7, "stderr": False}
        found = [line.data async for line in world.dispatcher.logs(service_id="web", **wanted)]  # type: ignore[arg-type]
        assert found == [b"%d\n" % number for number in (5, 6, 7, 8)]  # the fake knows since only
        (request,) = asked
        assert {name: getattr(request, name) for name in wanted} == wanted
        assert (request.follow, request.stdout) == (False, True)
        await world.want(id, S.REMOVE)
        await world.until(lambda: machine.engine.look(id) is None)
        assert [line async for line in world.dispatcher.logs(task_id=id)] == []
