"""Senders to other managers: bounded, and back as soon as the peer is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from manager.raft import network
from manager.raft.message import Member
from manager.raft.network import Peers
from tests.support.raft_world import member


class Line:
    """A connection in memory, and the way to it."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.waiting: list[bytes] = []
        self.dialled: list[str] = []
        self.reachable = True
        self.blocked = False
        self.closed = 0
        self.broken = asyncio.Event()

    async def dial(self, to: Member) -> "Line":
        self.dialled.append(to.address)
        if not self.reachable:
            raise ConnectionRefusedError
        self.broken.clear()
        return self

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self.waiting))

    def send(self, message: bytes) -> None:
        if self.broken.is_set():
            return
        (self.waiting if self.blocked else self.received).append(message)

    async def lost(self) -> None:
        await self.broken.wait()

    def cut(self) -> None:
        self.reachable = False
        self.broken.set()

    def unblock(self) -> None:
        self.blocked = False
        self.received += self.waiting
        self.waiting.clear()

    def close(self) -> None:
        self.closed += 1


@contextlib.asynccontextmanager
async def sending(line: Line) -> AsyncIterator[Peers]:
    peers = Peers(line.dial)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(peers.run())
        yield peers
        task.cancel()


async def test_messages_arrive_in_order_over_one_connection() -> None:
    line = Line()
    async with sending(line) as peers:
        for number in range(100):
            peers.send(member("b"), b"%d" % number)
        await asyncio.sleep(0.1)
    assert line.received == [b"%d" % number for number in range(100)]
    assert len(line.dialled) == 1
    assert line.closed == 1


async def test_a_peer_that_comes_back_is_reached_within_a_second() -> None:
    line = Line()
    line.reachable = False
    async with sending(line) as peers:
        for _ in range(100):
            peers.send(member("b"), b"old")
            await asyncio.sleep(0.1)
        assert len(line.dialled) < 30
        line.reachable = True
        await asyncio.sleep(network.BACKOFF_MAX_S)
        peers.send(member("b"), b"new")
        await asyncio.sleep(0.1)
    assert line.received[-1] == b"new"


async def test_a_broken_connection_is_opened_again() -> None:
    line = Line()
    async with sending(line) as peers:
        peers.send(member("b"), b"1")
        await asyncio.sleep(0.1)
        line.cut()
        peers.send(member("b"), b"2")
        await asyncio.sleep(0.1)
        line.reachable = True
        await asyncio.sleep(2)
        peers.send(member("b"), b"3")
        await asyncio.sleep(0.1)
    assert line.received == [b"1", b"3"]


async def test_a_peer_that_does_not_read_costs_bounded_memory() -> None:
    line = Line()
    line.blocked = True
    async with sending(line) as peers:
        large = bytes(network.QUEUE_BYTES // 50)
        for _ in range(2 * network.QUEUE_MESSAGES):
            peers.send(member("b"), large)
        assert len(peers._peers["b", "b.example:2377"]._queue) <= 50
        await asyncio.sleep(0.01)
        for _ in range(100):
            peers.send(member("b"), large)
        assert len(line.waiting) <= 50
        line.unblock()
        peers.send(member("b"), b"after")
    assert line.received[-1] == b"after"


async def test_what_is_sent_on_an_open_connection_leaves_at_once() -> None:
    line = Line()
    async with sending(line) as peers:
        peers.send(member("b"), b"1")
        await asyncio.sleep(0.1)
        peers.send(member("b"), b"2")
        assert line.received == [b"1", b"2"]


async def test_a_connection_in_use_is_kept() -> None:
    line = Line()
    async with sending(line) as peers:
        for _ in range(5):
            peers.send(member("b"), b"1")
            await asyncio.sleep(network.IDLE_S * 0.7)
    assert len(line.dialled) == 1


async def test_a_new_address_is_used_at_once_and_idle_peers_are_let_go() -> None:
    line = Line()
    async with sending(line) as peers:
        peers.send(member("b"), b"1")
        peers.send(Member("b", "node-b", "new:1"), b"2")
        await asyncio.sleep(0.1)
        assert sorted(line.dialled) == ["b.example:2377", "new:1"]
        await asyncio.sleep(network.IDLE_S * 2)
        assert not peers._peers
        peers.send(member("b"), b"3")
        await asyncio.sleep(0.1)
    assert line.received == [b"1", b"2", b"3"]
