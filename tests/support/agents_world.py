"""A leader's dispatcher, its store, and nodes with agents on fake engines, in virtual time."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from common.errors import Unavailable
from common.model.node import NodeDescription
from common.model.task import NetworkAttachment, Task, TaskState
from common.streams import Stream
from manager.dispatcher.dispatcher import Dispatcher
from manager.store.store import Store
from tests.support import build
from tests.support.fake_engine import FakeEngine, FakeNetworks
from tests.support.memory_proposer import LoopClock, memory_store
from tests.support.memory_stream import Wire
from worker.agent.agent import Agent
from worker.agent.task_files import TaskFiles

MANAGER = "manager:2377"


class Machine:
    """One node: what survives its agent, and the agent."""

    def __init__(self, world: "AgentsWorld", number: int) -> None:
        self.id = f"node-{number}"
        self.world = world
        self.engine = FakeEngine(world.rng, f"10.192.{4 * number}")
        self.networks: Any = FakeNetworks(world.rng)
        self.description = NodeDescription(hostname=self.id)
        self.boot_id = "first"
        self.wires: list[Wire] = []
        self.unreachable = False
        self.connected_at = 0.0  # when the last stream was opened
        self.number = number
        self._running: asyncio.Task[None] | None = None
        self.roles: list[object] = []

    def start(self) -> None:
        self.engine.files = TaskFiles()  # in the daemon's memory only
        self.agent = Agent(
            self._connect,
            [MANAGER],
            self.engine,
            self.engine.files,
            self.networks,
            self.world.folder / f"{self.id}.sqlite",
            lambda: self.description,
            LoopClock(),
            self.world.rng,
            self.roles.append,
            address=lambda: f"192.0.2.{self.number}",
            boot_id=self.boot_id,
        )
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        await self.agent.run()

    async def stop(self) -> None:
        """The daemon ends; containers go on."""
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self.cut()

    async def restart(self) -> None:
        await self.stop()
        self.start()

    async def ended(self) -> None:
        assert self._running is not None
        await self._running

    @property
    def failed(self) -> BaseException | None:
        return _failure(self._running)

    def cut(self) -> None:
        for wire in self.wires:
            wire.cut()
        self.wires.clear()

    def silence(self, silent: bool) -> None:
        """The network between this node and the manager is gone, or back."""
        self.unreachable = silent
        for wire in self.wires:
            wire.silence(silent)

    @property
    def in_session(self) -> bool:
        return bool(self.wires) and not self.wires[-1].closed

    async def _connect(self, address: str) -> Stream:
        if self.unreachable:
            await asyncio.sleep(3600)
        wire = Wire(self.world.rng, self.world.delay_s)
        await asyncio.sleep(self.world.rng.uniform(0, self.world.delay_s))
        self.world.accept(self.id, wire)
        self.wires.append(wire)
        self.connected_at = asyncio.get_running_loop().time()
        return wire.ends[0]


class AgentsWorld:
    """One leader at a time, and `nodes` machines."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        nodes: int,
        machine: "Callable[[AgentsWorld, int], Machine]" = Machine,
    ) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.delay_s = 0.01
        self.orphan_s = 24 * 3600.0
        self.store: Store = memory_store(delay_s=0.003)
        self.silent_managers: set[str] = set()  # nodes that the leader's Raft does not hear
        self.leads = False
        self.lead_since = 0.0
        self.machines = [machine(self, number) for number in range(1, nodes + 1)]
        self._term: asyncio.Task[None] | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._tasks = 0

    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.store,
            LoopClock(),
            self.rng,
            orphan_s=self.orphan_s,
            silent_elsewhere=self.silent_managers.__contains__,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["AgentsWorld"]:
        def found(tx) -> None:  # type: ignore[no-untyped-def]
            tx.put(build.cluster())
            for machine in self.machines:
                tx.put(build.node(machine.id, index=machine.number))
            tx.put(replace(build.network("net"), id="net-1", vni=4097))

        await self.store.update(found)
        self.lead()
        for machine in self.machines:
            machine.start()
        try:
            yield self
        finally:
            for machine in self.machines:
                await machine.stop()
            await self.end_term()
            await asyncio.gather(*self._handlers, return_exceptions=True)

    # Managers

    def lead(self) -> None:
        self.dispatcher = self._dispatcher()
        self._term = asyncio.get_running_loop().create_task(self.dispatcher.run())
        self.leads = True
        self.lead_since = asyncio.get_running_loop().time()

    async def end_term(self) -> None:
        self.leads = False
        if self._term is not None:
            self._term.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._term

    @property
    def term_failed(self) -> BaseException | None:
        return _failure(self._term)

    def accept(self, node_id: str, wire: Wire) -> None:
        if not self.leads:
            raise Unavailable("nobody leads")
        serve = self.dispatcher.serve(node_id, wire.ends[1])
        handler = asyncio.get_running_loop().create_task(serve)
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    # Tasks

    async def create(self, machine: Machine, service: str = "", **more: object) -> str:
        """A task on `machine` and on the overlay; its id."""
        self._tasks += 1
        number = self._tasks
        id = f"task-{number:04}"
        task = build.task(
            id=id,
            slot=number,
            node=machine.id,
            state=TaskState.ASSIGNED,
            networks_attachments=(
                NetworkAttachment(
                    network_id="net-1",
                    network_name="net",
                    addresses=(f"10.0.{number // 250}.{number % 250 + 2}/16",),
                    mac="02:42:0a:00:00:02",
                ),
            ),
            **more,
        )
        made = replace(task, service_id=service)
        await self.store.update(lambda tx: tx.put(made))
        return id

    async def want(self, task_id: str, desired: TaskState) -> None:
        def change(tx) -> None:  # type: ignore[no-untyped-def]
            task = tx.get(Task, task_id)
            if task is not None and task.desired_state < desired:
                tx.put(replace(task, desired_state=desired))

        await self.store.update(change)

    async def delete(self, task_id: str) -> None:
        await self.store.update(lambda tx: tx.delete(Task, task_id))

    def task(self, task_id: str) -> Task:
        task = self.store.view().get(Task, task_id)
        assert task is not None
        return task

    def state(self, task_id: str) -> TaskState:
        return self.task(task_id).status.state

    async def until(self, condition, timeout_s: float = 60.0) -> None:  # type: ignore[no-untyped-def]
        """Poll, in virtual time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not condition():
            assert loop.time() < deadline, f"not in {timeout_s} s: {condition}"
            if self.term_failed:
                raise self.term_failed
            for machine in self.machines:
                if machine.failed:
                    raise machine.failed
            await asyncio.sleep(0.01)

    async def until_state(self, task_id: str, state: TaskState, timeout_s: float = 60.0) -> Task:
        await self.until(lambda: self.state(task_id) is state, timeout_s)
        return self.task(task_id)


def _failure(task: asyncio.Task[None] | None) -> BaseException | None:
    if task is None or not task.done() or task.cancelled():
        return None
    return task.exception()
