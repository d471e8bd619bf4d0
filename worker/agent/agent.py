"""The node's agent: has its tasks run, with or without a manager in reach.

manager ──Assign──► Agent ──► Networks.apply, then one Driver for each task
        ◄─StatusReport── Reporter ◄── drivers
                         Journal  ◄── drivers: what to go on with after a restart
"""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import msgspec

from common.clock import Clock
from common.errors import ShoalError
from common.model.node import NodeDescription
from common.model.task import Task, TaskStatus
from common.protocol.dispatcher import (
    Assign,
    Hello,
    LogChunk,
    LogEnd,
    LogRequest,
    Redirect,
    Refused,
    SessionUpdate,
    Welcome,
    task_mark,
)
from common.protocol.execs import ExecRequest, FromAgentExec
from common.protocol.network import Digest, NetworkChange
from common.protocol.usage import UsageReport
from common.streams import Stream
from worker.agent.driver import Driver, remove_leftover
from worker.agent.execs import ExecRunner
from worker.agent.executor import Executor
from worker.agent.journal import Journal
from worker.agent.logs import LogSender
from worker.agent.remotes import BACKOFF_MAX_S, Backoff, Remotes
from worker.agent.reporter import Reporter
from worker.agent.session import Ended, Session
from worker.agent.task_files import TaskFiles

log = logging.getLogger(__name__)

CONNECT_S = 2.0  # less than the time after which a node counts as down
ELECTION_S = 1.0
DESCRIBE_S = 5.0  # how often the node looks whether it has changed
REDIRECTS_MAX = 3  # in a row, before waiting
# How long what the journal wants is not started, while a manager may say that it is wanted no more.
SETTLE_S = 5.0
_BOOT = "boot"


class Networks(Protocol):
    """What the agent asks of the node's networks."""

    async def join(
        self, node_id: str, node_index: int, node_pool: str, address: str, data_path_port: int
    ) -> None: ...

    async def apply(self, change: NetworkChange) -> None: ...

    def digest(self) -> str: ...


class _DescriptionChanged(Exception):
    """The session is to be opened again with the new description (AGT 230)."""


class Agent:
    """Runs the tasks that managers assign to this node."""

    def __init__(
        self,
        connect: Callable[[str], Awaitable[Stream]],
        managers: list[str],
        executor: Executor,
        files: TaskFiles,
        networks: Networks,
        journal: Path,
        describe: Callable[[], NodeDescription],
        clock: Clock,
        rng: random.Random,
        on_role: Callable[[SessionUpdate | Welcome], object],
        *,
        address: Callable[[], str],
        boot_id: str = "",
        starts: int = 0,
    ) -> None:
        """`connect` opens a stream to HOST:PORT. `journal` is a file; its folder is made.
        `address` is the node's own on the underlay. `boot_id` changes when all containers ended
        because the machine did: those that should run are then started again. `starts` bounds
        how many containers are made or started at once; 0: twice the processors."""
        self._connect = connect
        self._remotes = Remotes(managers, rng)
        self._executor = executor
        self._files = files
        self._networks = networks
        self._journal = Journal(journal)
        self._describe = describe
        self._clock = clock
        self._rng = rng
        self._on_role = on_role
        self._address = address
        self._boot_id = boot_id
        self._starts = asyncio.Semaphore(starts or 2 * (os.cpu_count() or 1))
        self._backoff = Backoff(rng)
        self._reporter = Reporter()
        self._reports = asyncio.Event()
        self._drivers: dict[str, Driver] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._marks: dict[str, tuple[str, str]] = {}
        self._digest = Digest()
        self._settled = asyncio.Event()  # a manager has said what should run, or does not
        self._group: asyncio.TaskGroup | None = None
        self._described: NodeDescription | None = None
        self._manager = ""

    async def run(self) -> None:
        """Until cancelled; containers go on. Returns if the node was removed from the cluster,
        when nothing of its tasks is left."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._restore()
                settling = group.create_task(self._settle(), name="agent settling")
                writer = group.create_task(self._journal.run(), name="agent journal")
                await self._sessions()
                for task_id in list(self._drivers):
                    self._drop(task_id)
                await asyncio.gather(*self._running.values())
                writer.cancel()
                settling.cancel()
        finally:
            self._group = None
            await self._journal.close()

    async def _restore(self) -> None:
        """Go on with what the journal has: containers are adopted, not replaced (AGT 237)."""
        entries, facts = await self._journal.open()
        rebooted = bool(self._boot_id) and facts.get(_BOOT, self._boot_id) != self._boot_id
        if self._boot_id:
            self._journal.put_fact(_BOOT, self._boot_id)
        for entry in entries:
            self._reporter.note(entry.task.id, entry.status)
            self._drive(entry.task, entry.status, revive=rebooted)

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE_S)
        self._settled.set()

    # Sessions

    async def _sessions(self) -> None:
        """One session after the other, until the node is removed from the cluster."""
        redirects, leader = 0, None  # in a row; where to go next
        while True:
            address = leader or self._remotes.pick()
            answer = None if address is None else await self._one_session(address)
            if isinstance(answer, Refused) and answer.removed:
                log.error("this node is no longer in the cluster: %s", answer.reason)
                return
            leader = self._leader(answer)
            redirects = redirects + 1 if leader else 0
            if leader is None or redirects > REDIRECTS_MAX:
                # Who redirects to nobody waits for an election, which does not take long.
                electing = isinstance(answer, Redirect)
                most_s = ELECTION_S if electing else BACKOFF_MAX_S
                await asyncio.sleep(self._backoff.next_s(most_s))

    def _leader(self, answer: Redirect | Refused | None) -> str | None:
        """Where to go at once."""
        if not isinstance(answer, Redirect) or answer.leader is None:
            return None
        address = answer.leader.address
        return None if self._remotes.failed_lately(address, _now()) else address

    async def _one_session(self, address: str) -> Redirect | Refused | None:
        """Why it ended, if the manager said so."""
        try:
            async with asyncio.timeout(CONNECT_S):
                stream = await self._connect(address)
        except (ShoalError, OSError, TimeoutError) as error:
            log.info("cannot reach manager %s: %s", address, error or type(error).__name__)
            self._remotes.failed(address, _now())
            return None
        try:
            return await self._converse(address, stream)
        finally:
            await stream.close()

    async def _converse(self, address: str, stream: Stream) -> Redirect | Refused | None:
        self._described, self._manager = self._describe(), address
        session = Session(stream, self, self._reporter, self._reports, self._rng)
        try:
            hello = Hello(
                description=self._described, address=self._address(), boot_id=self._boot_id
            )
            await session.run(hello)
        except _DescriptionChanged:
            self._backoff.reset()
        except Ended as end:
            log.info("manager %s ended the session: %s", address, end.answer)
            return end.answer
        except (msgspec.MsgspecError, ShoalError, OSError, TimeoutError) as error:
            log.info("session with manager %s ended: %s", address, error or type(error).__name__)
            self._remotes.failed(address, _now())
        return None

    # What sessions ask for

    async def welcome(self, welcome: Welcome) -> None:
        self._remotes.worked(self._manager)
        self._told(welcome)
        await self._networks.join(
            welcome.node_id,
            welcome.node_index,
            welcome.node_pool,
            self._address(),
            welcome.data_path_port,
        )

    def session_update(self, update: SessionUpdate) -> None:
        self._told(update)

    def _told(self, update: SessionUpdate | Welcome) -> None:
        self._remotes.update(manager.address for manager in update.managers)
        self._on_role(update)

    async def apply(self, assign: Assign) -> None:
        await self._networks.apply(assign.network)
        if assign.complete:
            self._replace(assign.tasks)
        else:
            for task_id in assign.removed_tasks:
                self._drop(task_id)
        for task in assign.tasks:
            self._assign(task)
        self._files.take(assign, (driver.task for driver in self._drivers.values()))
        self._settled.set()
        self._backoff.reset()

    async def watch(self) -> None:
        """Raises when the session must be opened anew, as the node is no longer as it said."""
        while True:
            await asyncio.sleep(DESCRIBE_S)
            if self._describe() != self._described:
                raise _DescriptionChanged

    def digests(self) -> tuple[str, str]:
        return self._networks.digest(), self._digest.text

    def log_sender(
        self, request: LogRequest, send: Callable[[LogChunk | LogEnd], Awaitable[None]]
    ) -> LogSender:
        return LogSender(request, self._executor, self._made, send)

    async def usage(self, task_ids: tuple[str, ...]) -> UsageReport:
        found = [await self._executor.usage(id) for id in task_ids if id in self._drivers]
        tasks = tuple(each for each in found if each is not None)
        return UsageReport(at_ns=int(_now() * 1e9), tasks=tasks)

    def exec_runner(
        self, request: ExecRequest, send: Callable[[FromAgentExec], Awaitable[None]]
    ) -> ExecRunner:
        return ExecRunner(request, self._executor.exec, send)

    async def _made(self, task_id: str) -> bool:
        driver = self._drivers.get(task_id)
        return driver is not None and await driver.made()

    # Tasks

    def _replace(self, tasks: tuple[Task, ...]) -> None:
        """These are all tasks of this node: others, and containers of others, go (AGT 238)."""
        wanted = {task.id for task in tasks}
        for task_id in [id for id in self._drivers if id not in wanted]:
            self._drop(task_id)
        for task_id in self._executor.tasks():
            if task_id not in wanted and task_id not in self._running:
                self._clear_away(task_id)

    def _assign(self, task: Task) -> None:
        self._mark(task.id, task)
        driver = self._drivers.get(task.id)
        if driver is None:
            self._drive(task, task.status)
            driver = self._drivers[task.id]
        else:
            driver.update(task)
            if driver.status.state > task.status.state:
                self._reporter.note(task.id, driver.status)  # the manager may have missed it
                self._reports.set()
        self._journal.put(driver.task, driver.status)

    def _drive(self, task: Task, status: TaskStatus, *, revive: bool = False) -> None:
        driver = Driver(
            task,
            status,
            self._executor,
            self._starts,
            self._clock,
            self._say,
            settled=self._settled,
            boot_id=self._boot_id,
            revive=revive,
        )
        self._drivers[task.id] = driver
        self._own(task.id, driver.run)

    def _drop(self, task_id: str) -> None:
        """The task is no longer assigned here."""
        self._mark(task_id, None)
        self._reporter.drop(task_id)
        self._journal.drop(task_id)
        driver = self._drivers.pop(task_id, None)
        if driver is not None:
            driver.remove()

    def _clear_away(self, task_id: str) -> None:
        """A container is left of a task nobody knows."""
        log.info("removing the container of task %s, which is not assigned here", task_id)
        self._own(task_id, lambda: remove_leftover(task_id, self._executor))

    def _own(self, task_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` after what may still be going on for the task."""
        assert self._group is not None
        running = self._group.create_task(_after(self._running.get(task_id), work))
        self._running[task_id] = running
        running.add_done_callback(lambda done: self._ended(task_id, done))

    def _ended(self, task_id: str, done: asyncio.Task[None]) -> None:
        if self._running.get(task_id) is done:
            del self._running[task_id]

    def _mark(self, task_id: str, task: Task | None) -> None:
        old = self._marks.pop(task_id, None)
        if old is not None:
            self._digest.take(old)
        if task is not None:
            self._marks[task_id] = new = task_mark(task)
            self._digest.add(new)

    def _say(self, task: Task, status: TaskStatus) -> None:
        if task.id in self._drivers:
            self._reporter.note(task.id, status)
            self._journal.put(task, status)
            self._reports.set()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _after(
    before: asyncio.Task[None] | None, work: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    if before is not None:
        await asyncio.wait([before])
    await work()
