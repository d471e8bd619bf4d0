"""Where cluster requests go while managers come and go. RAF 176, 177."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from common.errors import NotLeader, Unavailable
from manager.manager import NO_LEADER
from node.api import app as api
from node.api.leader import on_leader
from node.forward import FORWARDED


class FakeManager:
    """As `manager.manager.Manager`, as far as hand-over goes."""

    def __init__(self) -> None:
        self.is_leader = False
        self.leader_address = ""
        self.patience = 0.05
        self.barriers: list[bool] = []  # whether each is confirmed
        self.raft = SimpleNamespace(status=SimpleNamespace(applied=7), silence_s=12.34)

    def patience_s(self, most_s: float) -> float:
        return min(self.patience, most_s)

    async def wait_leader(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_leader and not self.leader_address:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise Unavailable(NO_LEADER) from None

    async def catch_up(self) -> None:
        confirmed = self.barriers.pop(0) if self.barriers else True
        if not confirmed:
            self.is_leader = False
            raise NotLeader("leadership was lost while reading")


class Bench:
    """An application with a read and a write on it."""

    def __init__(self) -> None:
        self.manager = FakeManager()
        self.forwarded = 0
        self.served = 0
        self.leader_answers = True

    async def forward(self, request: web.Request, wait_s: float = 1.0) -> web.Response:
        self.forwarded += 1
        if not self.leader_answers:
            raise Unavailable("the leader does not answer")
        return web.Response(text="from the leader")

    async def serve(self, request: web.Request) -> web.Response:
        self.served += 1
        return web.Response(text="from here")

    def elect(self) -> None:
        self.manager.leader_address = "other:1"

    def client(self) -> "TestClient[web.Request, web.Application]":
        daemon = cast(Any, SimpleNamespace(manager=self.manager, forward=self.forward))
        app = web.Application(middlewares=[api._errors])
        app.router.add_get("/", on_leader(daemon, self.serve, stale=True))
        app.router.add_post("/", on_leader(daemon, self.serve))
        return TestClient(TestServer(app))


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_without_a_leader_reads_are_marked_and_writes_refused(bench: Bench) -> None:
    async with bench.client() as client:
        answer = await client.get("/")
        assert (answer.status, await answer.text()) == (200, "from here")
        assert answer.headers["Shoal-Stale"] == "index=7, seconds=12.3"
        answer = await client.post("/")
        assert answer.status == 503
        assert "The swarm does not have a leader." in (await answer.json())["message"]
        assert bench.served == 1


async def test_the_leader_asks_a_majority_before_it_answers(bench: Bench) -> None:
    """It may have been deposed without knowing."""
    bench.manager.is_leader = True
    bench.manager.barriers = [False]
    async with bench.client() as client:
        answer = await client.get("/")
        assert "Shoal-Stale" in answer.headers
        bench.manager.is_leader = True
        answer = await client.get("/")
        assert "Shoal-Stale" not in answer.headers
        assert bench.manager.barriers == []


async def test_followers_hand_over_and_read_here_when_the_leader_is_silent(bench: Bench) -> None:
    bench.manager.leader_address = "other:1"
    async with bench.client() as client:
        assert await (await client.get("/")).text() == "from the leader"
        assert await (await client.post("/")).text() == "from the leader"
        bench.leader_answers = False
        answer = await client.get("/")
        assert await answer.text() == "from here"
        assert "Shoal-Stale" in answer.headers
        assert (await client.post("/")).status == 503


async def test_what_was_handed_over_is_not_handed_on(bench: Bench) -> None:
    """The refusal says that nothing was done, so that whoever handed it over may try again."""
    for leader in ("", "other:1"):
        bench.manager.leader_address = leader
        async with bench.client() as client:
            for answer in (
                await client.get("/", headers={FORWARDED: "1"}),
                await client.post("/", headers={FORWARDED: "1"}),
            ):
                assert answer.status == 503
                assert "Shoal-Stale" not in answer.headers
            assert bench.forwarded == bench.served == 0
    assert answer.headers["Shoal-Not-Leader"] == "1"


async def test_an_election_is_waited_for(bench: Bench) -> None:
    bench.manager.patience = 5.0
    async with bench.client() as client:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_get(client))
            asyncio.get_running_loop().call_later(0.02, bench.elect)
        assert await reading.result().text() == "from the leader"


async def test_nothing_is_shown_before_the_log_was_read(bench: Bench) -> None:
    bench.manager.raft.status.applied = 0
    async with bench.client() as client:
        assert (await client.get("/")).status == 503


async def _get(client: "TestClient[web.Request, web.Application]") -> ClientResponse:
    return await client.get("/")
