"""Clients that read and write the stores of a simulated cluster, and remember what they saw.

Each call is on one object, which is a node or the holder of a service's name, so that the
history of each object can be checked by itself. Every value is written once only.
"""

import asyncio
import random
import zlib
from collections.abc import Callable

import msgspec

from common.errors import Conflict, ProposalUncertain, Unavailable
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task
from manager.store.store import Tx, View
from tests.support import build
from tests.support.linearizable import ABSENT, Action, History
from tests.support.raft_store_world import StoreWorld, store_of
from tests.support.raft_world import Process

NODES = tuple(f"node{number}" for number in range(5))
NAMES = tuple(f"name{number}" for number in range(3))
PATIENCE_S = 3.0
PAUSE_S = 0.06

Write = Callable[[Tx], str]


class Client:
    """One client: one call after the other, of any member that it believes to lead."""

    def __init__(self, world: StoreWorld, history: History, number: int) -> None:
        self._world = world
        self._history = history
        self._number = number
        self._rng = random.Random(f"{world.seed}/client {number}")
        self._count = 0
        self._read: dict[str, tuple[str, int]] = {}  # value and version when last read

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0, PAUSE_S))
            if process := self._choose():
                await self.one_call(process)

    def _choose(self) -> Process | None:
        awake = [process for process in self._world.alive if not process.paused]
        leading = [process for process in awake if process.driver.status.is_leader]
        pool = leading if leading and self._rng.random() < 0.9 else awake
        return self._rng.choice(pool) if pool else None

    async def one_call(self, process: Process) -> None:
        self._count += 1
        value = f"{self._number}.{self._count}"
        if self._rng.random() < 0.25:
            key = self._rng.choice(NAMES)
            match self._rng.randrange(4):
                case 0:
                    await self.read(process, key)
                case 1:
                    await self._write(process, key, "delete", delete_service(key))
                case _:
                    create = create_service(key, value)
                    await self._write(process, key, "create", create, value=value)
            return
        key = self._rng.choice(NODES)
        match self._rng.randrange(8):
            case 0 | 1 | 2:
                await self.read(process, key)
            case 3:
                await self._write(process, key, "delete", delete_node(key))
            case 4:
                await self._write(process, key, "create", create_node(key, value), value=value)
            case 5 | 6 if known := self._read.get(key):
                compare = compare_node(key, known[1], value)
                await self._write(process, key, "compare", compare, value=value, expected=known[0])
            case _:
                await self._write(process, key, "write", write_node(key, value), value=value)

    async def read(self, process: Process, key: str) -> bool:
        """Whether it was answered."""
        call = self._history.call(key, self._number, "read")
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.driver.read_barrier()
        except (Unavailable, TimeoutError):
            self._history.failed(key, call)
            return False
        view = store_of(process).view()
        value, version = holder(view, key) if key in NAMES else content(view, key)
        self._history.answered(key, call, value)
        self._world.seen.found(key, value, version)
        self._read.pop(key, None)
        if value != ABSENT:
            self._read[key] = value, version
        return True

    async def _write(
        self,
        process: Process,
        key: str,
        action: Action,
        write: Write,
        *,
        value: str = "",
        expected: str = "",
    ) -> None:
        call = self._history.call(key, self._number, action, value=value, expected=expected)
        try:
            async with asyncio.timeout(PATIENCE_S):
                result = await store_of(process).update(write)
        except Conflict:
            result = "refused"
        except (ProposalUncertain, TimeoutError):
            return
        except Unavailable:  # NotLeader, too: surely not written
            self._history.failed(key, call)
            return
        self._history.answered(key, call, result)


def labels(value: str) -> dict[str, str]:
    """Some values come with a load that takes more than a sector of the log."""
    load = zlib.crc32(value.encode()) % 8
    return {"value": value, "load": "x" * 1200} if load == 0 else {"value": value}


def write_node(key: str, value: str) -> Write:
    def write(tx: Tx) -> str:
        tx.put(build.node(key, labels=labels(value)))
        return ""

    return write


def create_node(key: str, value: str) -> Write:
    def create(tx: Tx) -> str:
        if tx.get(Node, key) is not None:
            raise Conflict("it exists")
        tx.put(build.node(key, labels=labels(value)))
        return "done"

    return create


def compare_node(key: str, version: int, value: str) -> Write:
    def compare(tx: Tx) -> str:
        node = tx.get(Node, key)
        if node is None or node.version.index != version:
            raise Conflict("update out of sequence")
        spec = msgspec.structs.replace(node.spec, labels=labels(value))
        tx.put(msgspec.structs.replace(node, spec=spec))
        return "done"

    return compare


def delete_node(key: str) -> Write:
    def delete(tx: Tx) -> str:
        value, _ = content(tx, key)
        tx.delete(Node, key)
        return value

    return delete


def create_service(name: str, id: str) -> Write:
    """A service with a task, made from a version of the service that nobody knows yet."""

    def create(tx: Tx) -> str:
        service = tx.put(build.service(name, id=id))
        tx.put(build.task(service, id=f"task of {id}"))
        return "done"

    return create


def delete_service(name: str) -> Write:
    def delete(tx: Tx) -> str:
        value, _ = holder(tx, name)
        tx.delete(Service, value)
        tx.delete(Task, f"task of {value}")
        return value

    return delete


def content(view: View, key: str) -> tuple[str, int]:
    """The value of a node, and its version."""
    node = view.get(Node, key)
    return (ABSENT, 0) if node is None else (node.spec.labels["value"], node.version.index)


def holder(view: View, name: str) -> tuple[str, int]:
    """Who has a service's name, and its version."""
    found = view.find(Service, name=name)
    tasks = [len(view.find(Task, service_id=service.id)) for service in found]
    if not found:
        return ABSENT, 0
    if tasks != [1]:
        return f"{[service.id for service in found]} with {tasks} tasks", 0
    return found[0].id, found[0].version.index
