"""Processes of services over HTTP: at the leader, and by way of another manager."""

import asyncio
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from common.ids import Ids
from common.model.task import TaskState
from common.protocol.execs import (
    ExecEnd,
    ExecInput,
    ExecOutput,
    ExecRequest,
    ExecResize,
    ExecTaken,
    ToAgentExec,
)
from common.rpc import WebSocketStream
from manager.dispatcher.execs import ExecRelay
from node.api.app import _errors, _versions
from node.api.service_exec import ServiceExecRoutes
from node.api.streaming import frame
from tests.support import build

pytestmark = pytest.mark.real_time


class Agent:
    """Plays a node: shouts back on stderr; ends with 5 when there is no more input."""

    def __init__(self) -> None:
        self.relay = ExecRelay(Ids(random.Random(1)), self._hear)
        self.heard: list[ToAgentExec] = []

    def _hear(self, node_id: str, message: ToAgentExec) -> bool:
        self.heard.append(message)
        id = message.request_id
        match message:
            case ExecRequest():
                hello = ExecOutput(request_id=id, stream=1, data=b"hello ")
                asyncio.get_running_loop().call_soon(self.relay.take, "n1", hello)
            case ExecInput(data=b""):
                self.relay.take("n1", ExecEnd(request_id=id, exit_code=5))
            case ExecInput(data=data):
                self.relay.take("n1", ExecTaken(request_id=id))
                self.relay.take("n1", ExecOutput(request_id=id, stream=2, data=data.upper()))
        return True


class Daemon:
    """A manager: the leader if it has the agent, else one that reaches the leader at `port`."""

    def __init__(self, agent: Agent, *, leads: bool) -> None:
        self.port = 0
        task = build.task(id="t1", node="n1", state=TaskState.RUNNING)
        self.manager: Any = SimpleNamespace(
            is_leader=leads,
            leader_address="",
            patience_s=lambda most: most,
            wait_leader=self._wait_leader,
            dispatcher=SimpleNamespace(execs=agent.relay),
            api=SimpleNamespace(tasks=SimpleNamespace(running_of=lambda *_: task)),
        )
        self.leader_port = 0
        self.sessions: list[aiohttp.ClientSession] = []

    async def _wait_leader(self, _: float) -> None:
        return None

    async def stream_to_leader(self, path: str) -> WebSocketStream:
        session = aiohttp.ClientSession()
        self.sessions.append(session)
        return WebSocketStream(
            await session.ws_connect(f"http://127.0.0.1:{self.leader_port}{path}")
        )


async def serve(daemon: Daemon) -> web.AppRunner:
    app = web.Application(middlewares=[_errors, _versions])
    for route in ServiceExecRoutes(daemon).routes():  # type: ignore[arg-type]
        app.router.add_route(route.method, route.path, route.handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    daemon.port = runner.addresses[0][1]
    return runner


@pytest.fixture
async def agent() -> Agent:
    return Agent()


@pytest.fixture
async def daemons(agent: Agent) -> AsyncIterator[tuple[Daemon, Daemon]]:
    leader, follower = Daemon(agent, leads=True), Daemon(agent, leads=False)
    runners = [await serve(leader), await serve(follower)]
    follower.leader_port = leader.port
    yield leader, follower
    for session in follower.sessions:
        await session.close()
    for runner in runners:
        await runner.cleanup()


async def hijack(port: int, id: str, body: bytes) -> tuple[asyncio.StreamReader, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /shoal/exec/{id}/start HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\n"
    head += "Connection: Upgrade\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.parametrize("place", [0, 1], ids=["leader", "follower"])
@pytest.mark.parametrize("tty", [False, True])
async def test_a_process_through_any_manager(
    agent: Agent, daemons: tuple[Daemon, Daemon], place: int, tty: bool
) -> None:
    leader = f"http://127.0.0.1:{daemons[0].port}"
    async with asyncio.timeout(10), aiohttp.ClientSession() as client:
        asked = {"Cmd": ["sh"], "AttachStdin": True, "Tty": tty}
        made = await (await client.post(f"{leader}/services/web/exec", json=asked)).json()
        assert (made["TaskID"], made["NodeID"], made["Slot"]) == ("t1", "n1", 1)
        id = made["Id"]
        body = b'{"Tty": true, "ConsoleSize": [24, 80]}' if tty else b"{}"
        reader, writer = await hijack(daemons[place].port, id, body)
        writer.write(b"abc")
        expected = b"hello ABC" if tty else frame(1, b"hello ") + frame(2, b"ABC")
        assert await reader.readexactly(len(expected)) == expected
        sizes = [m for m in agent.heard if isinstance(m, ExecResize)]
        assert [(m.rows, m.columns) for m in sizes] == ([(24, 80)] if tty else [])
        writer.write_eof()
        assert await reader.read() == b""
        found = await (await client.get(f"{leader}/shoal/exec/{id}/json")).json()
        assert (found["ExitCode"], found["Running"], found["Error"]) == (5, False, "")
        writer.close()


async def test_what_is_refused(daemons: tuple[Daemon, Daemon]) -> None:
    leader, follower = (f"http://127.0.0.1:{daemon.port}" for daemon in daemons)
    async with asyncio.timeout(10), aiohttp.ClientSession() as client:
        for body, status in (({}, 400), ({"Cmd": ["a"], "DetachKeys": "ctrl-x"}, 501)):
            answer = await client.post(f"{leader}/services/web/exec", json=body)
            assert answer.status == status
        start = "/shoal/exec/unknown/start"
        assert (await client.post(f"{leader}{start}", json={})).status == 404
        assert (await client.get(f"{follower}/shoal/exec/unknown/stream")).status == 503
