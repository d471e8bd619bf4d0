"""Managers and workers that form clusters for real, with nothing to run: the network is loopback,
the certificates and logs are real, the agent and the dispatcher know nothing but roles."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from common.clock import Clock, SystemClock
from common.config import DaemonConfig
from common.errors import ShoalError
from common.ids import Ids
from common.model.node import Node, NodeDescription, NodeState, Role
from common.protocol import dispatcher as protocol
from common.streams import Stream, StreamClosed
from common.tasks import end
from manager.raft.driver import Driver
from manager.store.store import Store
from manager.term import Term
from node.identity import IdentityFiles
from node.member import AgentSeams, Surroundings
from node.swarm import InitRequest, JoinRequest, Swarm


class FakeDispatcher:
    """Tells each agent its role and the managers, whenever they change."""

    def __init__(self, store: Store, raft: Driver) -> None:
        self._store = store
        self._raft = raft
        self._leads = False
        self._broken = asyncio.Event()

    def fail(self) -> None:
        self._broken.set()

    async def left(self, node_id: str) -> None:
        def down(tx: Any) -> None:
            node = tx.get(Node, node_id)
            status = msgspec.structs.replace(node.status, state=NodeState.DOWN)
            tx.put(msgspec.structs.replace(node, status=status))

        await self._store.update(down)

    async def run(self) -> None:
        self._leads = True
        try:
            await self._broken.wait()
            raise RuntimeError("a part failed, as the test wants")
        finally:
            self._leads = False

    async def serve(self, node_id: str, stream: Stream) -> None:
        with contextlib.suppress(StreamClosed):
            hello = protocol.decode_from_agent(await stream.receive())
            assert isinstance(hello, protocol.Hello)
            await self._serve(node_id, hello, stream)

    async def _serve(self, node_id: str, hello: protocol.Hello, stream: Stream) -> None:
        if not self._leads:
            leader = self._raft.status.leader
            told = None
            if leader is not None:
                told = protocol.Manager(node_id=leader.node_id, address=leader.address)
            await stream.send(protocol.encode(protocol.Redirect(leader=told)))
            return

        def ready(tx: Any) -> None:
            node = tx.get(Node, node_id)
            status = msgspec.structs.replace(node.status, state=NodeState.READY)
            tx.put(msgspec.structs.replace(node, status=status, index=1))

        await self._store.update(ready)
        sent: tuple[object, ...] = ()
        while self._leads:
            node = self._store.view().get(Node, node_id)
            role = node.role.value if node else "worker"
            managers = tuple(
                protocol.Manager(node_id=member.node_id, address=member.address)
                for member in self._raft.status.members
            )
            if sent != (role, managers):
                welcome = protocol.Welcome(
                    session_id="s", node_id=node_id, heartbeat_s=1, role=role, managers=managers,
                    node_index=1, node_pool="10.192.0.0/10", data_path_port=4789,
                )  # fmt: skip
                await stream.send(protocol.encode(welcome))
                sent = (role, managers)
            await asyncio.sleep(0.02)


class FakeParts:
    def __init__(self, store: Store, raft: Driver) -> None:
        self.api = None
        self._store = store
        self._raft = raft

    def term(self) -> Term:
        return Term(FakeDispatcher(self._store, self._raft), [])


def make_parts(
    store: Store, raft: Driver, config: DaemonConfig, clock: Clock, ids: Ids, rng: random.Random
) -> FakeParts:
    return FakeParts(store, raft)


class FakeAgent:
    """Keeps a session with whoever leads."""

    def __init__(self, seams: AgentSeams) -> None:
        self._seams = seams

    async def run(self) -> None:
        hint = ""
        while True:
            known = self._seams.state.manager_addresses
            for address in [hint, *known] if hint else known:
                with contextlib.suppress(ShoalError, StreamClosed):
                    hint = await self._session(address)
                    break
            else:
                hint = ""
            await asyncio.sleep(0.02)

    async def _session(self, address: str) -> str:
        stream = await self._seams.connect(address)
        try:
            hello = protocol.Hello(description=NodeDescription(), address="")
            await stream.send(protocol.encode(hello))
            while True:
                message = protocol.decode_to_agent(await stream.receive())
                if isinstance(message, protocol.Redirect):
                    return message.leader.address if message.leader else ""
                assert isinstance(message, protocol.Welcome)
                self._seams.on_role(message)
        finally:
            await stream.close()


def echo_app() -> web.Application:
    """Stands for the HTTP API."""

    async def echo(request: web.Request) -> web.Response:
        text = f"{request.method} {request.path} {(await request.read()).decode()}"
        return web.Response(text=text, status=201, headers={"X-Kept": "yes"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    return app


class Machine:
    """One daemon's membership, on an address of its own."""

    def __init__(self, number: int, port: int, folder: Path, clock: Clock) -> None:
        self.host = f"127.0.0.{number}"
        self.port = port
        self.address = f"{self.host}:{port}"
        self.folder = folder / f"machine{number}"
        self.forgotten = 0
        self.clock = clock
        self.advertise = ""  # what the daemon is started with
        self.swarm = self._make()

    def _make(self) -> Swarm:
        rng = random.SystemRandom()
        around = Surroundings(
            config=DaemonConfig(state_dir=self.folder, advertise_addr=self.advertise),
            files=IdentityFiles(self.folder),
            clock=self.clock,
            ids=Ids(rng),
            rng=rng,
            make_agent=FakeAgent,
            make_api=echo_app,
            make_parts=make_parts,
        )
        return Swarm(around, self._forget)

    async def _forget(self) -> None:
        self.forgotten += 1

    async def init(self, *, autolock: bool = False) -> str:
        return await self.swarm.init(
            InitRequest(
                listen_addr=self.address,
                advertise_addr=self.address,
                auto_lock_managers=autolock,
            )
        )

    async def join(self, token: str, *remotes: "Machine") -> None:
        await self.swarm.join(
            JoinRequest(
                listen_addr=self.address,
                advertise_addr=self.address,
                remote_addrs=tuple(remote.address for remote in remotes),
                join_token=token,
            )
        )

    async def restart(self) -> None:
        await self.swarm.close()
        await asyncio.sleep(0)
        self.swarm = self._make()
        await self.swarm.start()

    async def move(self, host: str) -> None:
        """Restart, to be reached at another address."""
        self.host, self.address = host, f"{host}:{self.port}"
        self.advertise = self.address
        await self.restart()

    async def crash(self) -> None:
        """End without handing over."""
        running = self.swarm._running
        assert running is not None
        await end(running)
        self.swarm._running = None

    @property
    def store(self) -> Store:
        manager = self.swarm.member.manager if self.swarm.member else None
        assert manager is not None
        return manager.store

    @property
    def leads(self) -> bool:
        member = self.swarm.member
        return member is not None and member.manager is not None and member.manager.is_leader

    def node(self, node_id: str) -> Node | None:
        return self.store.view().get(Node, node_id)

    async def set_role(self, node_id: str, role: Role) -> None:
        def change(tx: Any) -> None:
            node = tx.get(Node, node_id)
            spec = msgspec.structs.replace(node.spec, role=role)
            tx.put(msgspec.structs.replace(node, spec=spec))

        await self.store.update(change)


@contextlib.asynccontextmanager
async def machines(folder: Path, count: int) -> AsyncIterator[list[Machine]]:
    with socket.socket() as probe:  # a port that nobody uses: test runs may go side by side
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [Machine(number, port, folder, SystemClock()) for number in range(2, 2 + count)]
    try:
        yield made
    finally:
        for machine in made:
            await machine.swarm.close()


async def until(what: str, true: Callable[[], bool], deadline_s: float = 15.0) -> None:
    """Wait for something that has no event a test could see."""
    try:
        async with asyncio.timeout(deadline_s):
            while not true():  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not in {deadline_s} s: {what}") from None
