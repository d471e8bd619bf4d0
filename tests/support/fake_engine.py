"""An engine that runs nothing: containers are entries in a dict, and take a while to do things.

It outlives agents, as real containers outlive the daemon.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import msgspec

from common.errors import Conflict, NotFound, ShoalError, Unavailable
from common.model.task import Task
from common.protocol.dispatcher import LogLine, LogRequest
from common.protocol.execs import ExecRequest
from common.protocol.network import NetworkChange, NetworkItem, digest, key
from common.protocol.usage import TaskUsage
from worker.agent.execs import NotStarted, Process
from worker.agent.steps import Seen
from worker.agent.task_files import TaskFiles


class FakeEngine:
    """Satisfies `worker.agent.executor.Executor`."""

    def __init__(self, rng: random.Random, subnet: str = "10.192.4") -> None:
        self._rng = rng
        self._subnet = subnet
        self._containers: dict[str, Seen] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._count = 0
        self.files = TaskFiles()
        self.images: set[str] = set()
        self.step_s = 0.05  # each thing takes up to so long
        self.on_stop: Callable[[str], None] = lambda _: None  # the stop signal goes out
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.lines: dict[str, list[bytes]] = {}
        self.pull_error: ShoalError | None = None
        self.pull_failures = 0  # temporary ones still to come
        self.start_error: ShoalError | None = None
        self.cpus = 0.0  # that each container uses
        self.memory = 0
        self.health = ""  # of containers that have just started

    def tasks(self) -> list[str]:
        return list(self._containers)

    def look(self, task_id: str) -> Seen | None:
        return self._containers.get(task_id)

    async def changed(self, task_id: str, seen: Seen) -> None:
        while self._containers.get(task_id) == seen:
            await self._changes.setdefault(task_id, asyncio.Event()).wait()

    async def pull(self, task: Task) -> None:
        await self._work()
        if self.pull_failures:
            self.pull_failures -= 1
            raise Unavailable("the registry does not answer")
        if self.pull_error is not None:
            raise self.pull_error
        assert task.spec.container_spec is not None
        self.images.add(task.spec.container_spec.image)

    async def gather(self, task: Task) -> None:
        await self.files.ready(task)

    async def create(self, task: Task) -> None:
        await self._work()
        if task.id in self._containers:
            raise Conflict("the name is taken")
        self._count += 1
        self.set(
            task.id,
            Seen(id=f"{task.id}-c{self._count}", state="created"),
        )

    async def start(self, task: Task) -> None:
        await self._work()
        if task.id not in self._containers:
            raise NotFound("no such container")
        if self.start_error is not None:
            raise self.start_error
        self._count += 1
        self.started.append(task.id)
        address = f"{self._subnet}.{self._count % 250 + 2}"
        self.change(
            task.id,
            state="running",
            pid=1000 + self._count,
            exit_code=0,
            health=self.health,
            node_address=address,
        )

    async def stop(self, task: Task) -> None:
        seen = self._containers.get(task.id)
        if seen is not None and seen.live:
            self.stopped.append(task.id)
            self.on_stop(task.id)
            await self._work()
            if task.id in self._containers and self._containers[task.id].live:
                self.change(task.id, state="exited", exit_code=143, pid=0)

    async def remove(self, task_id: str) -> None:
        await self._work()
        self._containers.pop(task_id, None)
        self._tell(task_id)

    async def logs(self, task_id: str, request: LogRequest) -> AsyncIterator[LogLine]:
        for number, data in enumerate(self.lines.get(task_id, ())):
            if number >= request.since_ns:
                yield LogLine(task_id=task_id, stream=1, time_ns=number, data=data)
        if request.follow:
            await asyncio.Event().wait()

    async def usage(self, task_id: str) -> TaskUsage | None:
        seen = self._containers.get(task_id)
        if seen is None or not seen.live:
            return None
        cpu_ns = int(asyncio.get_running_loop().time() * self.cpus * 1e9)
        return TaskUsage(task_id=task_id, cpu_ns=cpu_ns, memory=self.memory)

    async def exec(self, request: ExecRequest) -> Process:
        if request.task_id not in self._containers:
            raise Conflict(f"container of {request.task_id} is not running")
        if request.command == ("nothing",):
            raise NotStarted("exec failed: nothing: not found", 127)
        self.process = FakeProcess()
        return self.process

    # What tests do to containers

    def exit(self, task_id: str, code: int, *, oom: bool = False) -> None:
        """The container ends by itself."""
        self.change(task_id, state="exited", exit_code=code, oom_killed=oom, pid=0)

    def reboot(self) -> None:
        for task_id, seen in self._containers.items():
            if seen.live:
                self.change(task_id, state="exited", exit_code=137, pid=0)

    def change(self, task_id: str, **fields: object) -> None:
        self.set(task_id, msgspec.structs.replace(self._containers[task_id], **fields))

    def set(self, task_id: str, seen: Seen) -> None:
        self._containers[task_id] = seen
        self._tell(task_id)

    def _tell(self, task_id: str) -> None:
        self._changes.pop(task_id, asyncio.Event()).set()

    async def _work(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, self.step_s))


class FakeProcess:
    """Says hello and shouts back what it is told; ends with its input, as `7`."""

    def __init__(self) -> None:
        self.output: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.output.put_nowait((1, b"hello"))
        self.size: tuple[int, int] | None = None
        self.closed = False

    async def read(self) -> tuple[int, bytes] | None:
        return await self.output.get()

    async def write(self, data: bytes) -> None:
        self.output.put_nowait((2, data.upper()))

    async def close_stdin(self) -> None:
        self.output.put_nowait(None)

    async def close(self) -> None:
        self.closed = True

    def resize(self, rows: int, columns: int) -> None:
        self.size = rows, columns

    async def exit_code(self) -> int | None:
        return 7


class FakeNetworks:
    """A node's endpoint table; applying takes a while."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.items: dict[tuple[str, ...], NetworkItem] = {}
        self.step_s = 0.02
        self.joined: tuple[str, int] | None = None
        self.error: ShoalError | None = None
        self.applied = 0

    async def join(
        self, node_id: str, node_index: int, node_pool: str, address: str, data_path_port: int
    ) -> None:
        self.joined = node_id, node_index

    async def apply(self, change: NetworkChange) -> None:
        await asyncio.sleep(self._rng.uniform(0, self.step_s))
        if self.error is not None:
            raise self.error
        if change.complete:
            self.items = {}
        for at in change.removes:
            del self.items[tuple(at)]  # what is taken away must have been there
        for item in change.puts:
            self.items[key(item)] = item
        self.applied += 1

    def digest(self) -> str:
        return digest(self.items.values())

    def active(self, task_id: str) -> bool:
        """Whether requests may be sent from here to the task."""
        return any(
            getattr(item, "active", False) and getattr(item, "task_id", "") == task_id
            for item in self.items.values()
        )
