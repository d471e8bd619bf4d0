"""Several resolvers of a machine: silent ones, liars, and those that cannot tell."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from worker.network import dnswire, upstream
from worker.network.dnswire import A
from worker.network.upstream import Upstream

pytestmark = pytest.mark.real_time

QUESTION = dnswire.make_query(7, "elsewhere.example", A)
RECORD = bytes.fromhex("c00c 0001 0001 0000003c 0004 c0000207")


def good(data: bytes) -> list[bytes]:
    return [data[:2] + bytes.fromhex("8180 0001 0001 0000 0000") + data[12:] + RECORD]


def cannot(data: bytes) -> list[bytes]:
    return [data[:2] + bytes.fromhex("8182 0001 0000 0000 0000") + data[12:]]


def silent(data: bytes) -> list[bytes]:
    return []


def forged(data: bytes) -> list[bytes]:
    """With another number; with another question; with ours, but no answer; then a good one."""
    (answer,) = good(data)
    other = dnswire.make_query(0, "another.example", A)
    return [
        bytes([data[0] ^ 1]) + answer[1:],
        data[:2] + good(other)[0][2:],
        data,
        b"",
        answer,
    ]


class Server(asyncio.DatagramProtocol):
    def __init__(self, say: Callable[[bytes], list[bytes]]) -> None:
        self.say = say
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        for answer in self.say(data):
            self.transport.sendto(answer, addr)


@asynccontextmanager
async def servers(
    *kinds: Callable[[bytes], list[bytes]],
) -> AsyncIterator[tuple[Upstream, list[Server]]]:
    """Resolvers at 127.0.0.1, 127.0.0.2 …, all at one port."""
    loop = asyncio.get_running_loop()
    made: list[Server] = []
    port = 0
    async with AsyncExitStack() as stack:
        for number, kind in enumerate(kinds, 1):
            transport, server = await loop.create_datagram_endpoint(
                lambda kind=kind: Server(kind),  # type: ignore[misc]
                (f"127.0.0.{number}", port),
            )
            stack.callback(transport.close)
            port = transport.get_extra_info("sockname")[1]
            made.append(server)
        names = [f"127.0.0.{number}" for number in range(1, len(kinds) + 1)]
        yield Upstream(lambda: names, random.Random(1), port=port), made


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "_NEXT_S", 0.02)
    monkeypatch.setattr(upstream, "_ANSWER_S", 0.1)


async def test_a_silent_resolver_costs_a_moment_once() -> None:
    async with servers(silent, good) as (asking, (dead, alive)):
        assert await asking.ask(QUESTION) == good(QUESTION)[0]
        asking._failed_at["127.0.0.1"] = asyncio.get_running_loop().time()
        before = dead.asked
        for _ in range(5):
            assert await asking.ask(QUESTION) == good(QUESTION)[0]
        assert (dead.asked, alive.asked) == (before, 6)


async def test_one_that_times_out_is_known_by_then() -> None:
    async with servers(silent) as (asking, _):
        assert await asking.ask(QUESTION) is None
        assert "127.0.0.1" in asking._failed_at


async def test_one_that_cannot_tell_is_not_the_last_word_unless_all_cannot() -> None:
    async with servers(cannot, good) as (asking, _):
        assert await asking.ask(QUESTION) == good(QUESTION)[0]
    async with servers(cannot, cannot) as (asking, _):
        assert await asking.ask(QUESTION) == cannot(QUESTION)[0]


async def test_what_does_not_answer_the_question_is_passed_over() -> None:
    async with servers(forged) as (asking, _):
        assert await asking.ask(QUESTION) == good(QUESTION)[0]


async def test_nobody_to_ask_and_nobody_there() -> None:
    asking = Upstream(lambda: (), random.Random(1))
    assert await asking.ask(QUESTION) is None
    async with servers(good) as (asking, _):
        assert await asking.ask(QUESTION, ["127.0.0.9"]) is None
