"""One session with a manager, from hello to its end.

Assignments are applied one after the other, in order; what does not add up makes the agent ask
for a complete set. Heartbeats, reports and log lines go on meanwhile.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from common.errors import ShoalError
from common.protocol.dispatcher import (
    Alive,
    Applied,
    Assign,
    FromAgent,
    Heartbeat,
    Hello,
    LogCancel,
    LogChunk,
    LogCredit,
    LogEnd,
    LogRequest,
    Redirect,
    Refused,
    Resync,
    SessionUpdate,
    StatusStored,
    ToAgent,
    Welcome,
    decode_to_agent,
    encode,
)
from common.protocol.execs import (
    ExecCancel,
    ExecCredit,
    ExecEnd,
    ExecInput,
    ExecRequest,
    ExecResize,
    FromAgentExec,
)
from common.protocol.usage import TASKS_MAX, UsageReport, UsageRequest
from common.streams import Stream, StreamClosed
from worker.agent.execs import ExecRunner
from worker.agent.logs import LogSender
from worker.agent.reporter import Reporter

log = logging.getLogger(__name__)

SEND_S = 10.0
WELCOME_S = 30.0  # a new node may have to wait for its index
SILENCE_BEATS = 3  # a manager that answers none of so many heartbeats is gone
JITTER = 0.1
ASSIGNS_MAX = 16
LOG_REQUESTS_MAX = 64
EXECS_MAX = 64
STORED_S = 30.0  # a leader that commits nothing for so long is none
RESYNC_WAIT_S = 1.5  # complete sets may not be asked for faster (dispatcher.RESYNC_S)


class Work(Protocol):
    """For whom a session is: the agent."""

    async def welcome(self, welcome: Welcome) -> None:
        """The session is open."""
        ...

    async def apply(self, assign: Assign) -> None:
        """Make the node's network, then its tasks, what `assign` says. Raises ShoalError."""
        ...

    def digests(self) -> tuple[str, str]:
        """Of the network table and of the tasks."""
        ...

    async def watch(self) -> None:
        """Runs beside the session; what it raises ends it."""
        ...

    def session_update(self, update: SessionUpdate) -> None: ...

    def log_sender(
        self, request: LogRequest, send: Callable[[LogChunk | LogEnd], Awaitable[None]]
    ) -> LogSender: ...

    async def usage(self, task_ids: tuple[str, ...]) -> UsageReport:
        """What those of the tasks use that run here."""
        ...

    def exec_runner(
        self, request: ExecRequest, send: Callable[[FromAgentExec], Awaitable[None]]
    ) -> ExecRunner: ...


class Ended(Exception):
    """The manager ended the session, and says why."""

    def __init__(self, answer: Redirect | Refused) -> None:
        super().__init__(answer)
        self.answer = answer


class Session:
    """Speaks with one manager over `stream`."""

    def __init__(
        self,
        stream: Stream,
        work: Work,
        reporter: Reporter,
        reports: asyncio.Event,
        rng: random.Random,
    ) -> None:
        """`reports` is set when `reporter` may have something new."""
        self._stream = stream
        self._work = work
        self._reporter = reporter
        self._reports = reports
        self._rng = rng
        self._heartbeat_s = 1.0
        self._heard = 0.0
        self._sequence: int | None = None  # last assignment applied; None: want a complete one
        self._settled = False  # the node agrees with `_sequence` just now
        self._assigns: asyncio.Queue[Assign | LogRequest | ExecRequest] = asyncio.Queue(ASSIGNS_MAX)
        self._senders: dict[str, tuple[LogSender, asyncio.Task[None]]] = {}
        self._execs: dict[str, tuple[ExecRunner, asyncio.Task[None]]] = {}
        self._usage_wanted: tuple[str, ...] = ()
        self._asked = asyncio.Event()
        self._sending = asyncio.Lock()

    async def run(self, hello: Hello) -> None:
        """Until the session ends, which always raises: Ended, StreamClosed, msgspec.MsgspecError,
        ShoalError or TimeoutError."""
        async with asyncio.timeout(WELCOME_S):
            await self._send(hello)
            answer = decode_to_agent(await self._stream.receive())
        if isinstance(answer, Redirect | Refused):
            raise Ended(answer)
        if not isinstance(answer, Welcome):
            raise StreamClosed(f"the manager answered hello with {type(answer).__name__}")
        self._heartbeat_s = answer.heartbeat_s
        self._reporter.begin_session()
        await self._work.welcome(answer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(), name="session reader")
                group.create_task(self._beat(), name="session heartbeat")
                group.create_task(self._apply(group), name="session assignments")
                group.create_task(self._report(), name="session reports")
                group.create_task(self._tell_usage(), name="session usage")
                group.create_task(self._work.watch(), name="session watch")
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors

    # Reading

    async def _read(self) -> None:
        self._heard = self._now()
        while True:
            message = decode_to_agent(await self._stream.receive())
            self._heard = self._now()
            await self._take(message)

    async def _take(self, message: ToAgent) -> None:
        match message:
            case Assign() | LogRequest() | ExecRequest():
                # In one line: lines may be asked for of a task that was assigned just before.
                await self._assigns.put(message)
            case StatusStored():
                self._reporter.stored(message.number)
                self._reports.set()
            case SessionUpdate():
                self._heartbeat_s = message.heartbeat_s
                self._work.session_update(message)
            case LogCredit():
                if message.request_id in self._senders:
                    self._senders[message.request_id][0].credit(message.chunks)
            case LogCancel():
                if message.request_id in self._senders:
                    self._senders[message.request_id][1].cancel()
            case UsageRequest():
                self._usage_wanted = message.task_ids[:TASKS_MAX]
                self._asked.set()
            case ExecInput() | ExecCredit() | ExecResize():
                if message.request_id in self._execs:
                    self._execs[message.request_id][0].take(message)
            case ExecCancel():
                if message.request_id in self._execs:
                    self._execs[message.request_id][1].cancel()
            case Redirect() | Refused():
                raise Ended(message)
            case Alive():
                pass
            case Welcome():
                raise StreamClosed("a second welcome in one session")

    async def _begin_logs(self, request: LogRequest, group: asyncio.TaskGroup) -> None:
        if len(self._senders) >= LOG_REQUESTS_MAX:
            error = f"this node already serves {LOG_REQUESTS_MAX} log requests"
            await self._send(LogEnd(request_id=request.request_id, error=error))
            return
        sender = self._work.log_sender(request, self._send)
        task = group.create_task(sender.run(), name="logs")
        self._senders[request.request_id] = sender, task
        task.add_done_callback(lambda _: self._senders.pop(request.request_id, None))

    async def _begin_exec(self, request: ExecRequest, group: asyncio.TaskGroup) -> None:
        if len(self._execs) >= EXECS_MAX:
            error = f"this node already runs {EXECS_MAX} processes for clients of the cluster"
            await self._send(ExecEnd(request_id=request.request_id, error=error))
            return
        runner = self._work.exec_runner(request, self._send)
        task = group.create_task(runner.run(), name="exec")
        self._execs[request.request_id] = runner, task
        task.add_done_callback(lambda _: self._execs.pop(request.request_id, None))

    # Assignments

    async def _apply(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await self._assigns.get()
            if isinstance(message, Assign):
                await self._apply_one(message)
            elif isinstance(message, ExecRequest):
                await self._begin_exec(message, group)
            else:
                await self._begin_logs(message, group)

    async def _apply_one(self, assign: Assign) -> None:
        if not assign.complete and self._sequence is None:
            return  # until the complete set that was asked for
        if not assign.complete and assign.sequence != (self._sequence or 0) + 1:
            await self._resync(f"sequence {assign.sequence} after {self._sequence}")
            return
        self._settled = False
        try:
            await self._work.apply(assign)
        except ShoalError as error:
            log.warning("cannot apply assignment %d: %s", assign.sequence, error)
            await self._resync(str(error))
            return
        self._sequence = assign.sequence
        self._settled = True
        await self._send(Applied(sequence=assign.sequence))
        if (assign.digest, assign.tasks_digest) != self._work.digests():
            reason = f"the digests differ after assignment {assign.sequence}"
            await self._resync(reason, digest=True)

    async def _resync(self, reason: str, *, digest: bool = False) -> None:
        log.warning("asking for a complete set of assignments: %s", reason)
        self._sequence = None
        await asyncio.sleep(RESYNC_WAIT_S)
        await self._send(Resync(reason=reason[:200], digest=digest))

    # Sending

    async def _beat(self) -> None:
        while True:
            spread = self._rng.uniform(1 - JITTER, 1 + JITTER)
            await asyncio.sleep(self._heartbeat_s * spread)
            if self._now() - self._heard > SILENCE_BEATS * self._heartbeat_s:
                raise StreamClosed("the manager is silent")
            # While an assignment is being applied the digest is neither the old nor the new one.
            digest = self._work.digests()[0] if self._settled else ""
            await self._send(Heartbeat(sequence=self._sequence or 0, digest=digest))

    async def _report(self) -> None:
        while True:
            self._reports.clear()
            report = self._reporter.next()
            if report is not None:
                await self._send(report)
                await self._stored(report.number)
            else:
                await self._reports.wait()

    async def _stored(self, number: int) -> None:
        """Until report `number` is committed; what is to be said meanwhile goes with the next."""
        try:
            async with asyncio.timeout(STORED_S):
                while not self._reporter.is_stored(number):
                    self._reports.clear()
                    await self._reports.wait()
        except TimeoutError as error:
            raise StreamClosed(f"no report was stored for {STORED_S:g} s") from error

    async def _tell_usage(self) -> None:
        """One answer at a time; whoever asks meanwhile gets the next one."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self._send(await self._work.usage(self._usage_wanted))

    async def _send(self, message: FromAgent) -> None:
        data = encode(message)
        try:
            async with asyncio.timeout(SEND_S), self._sending:
                await self._stream.send(data)
        except TimeoutError as error:
            raise StreamClosed(f"the manager took nothing for {SEND_S:g} s") from error

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that matters: the manager's own word before a broken stream."""
    found: list[BaseException] = []
    queue: list[BaseException] = [errors]
    while queue:
        error = queue.pop()
        if isinstance(error, BaseExceptionGroup):
            queue.extend(error.exceptions)
        else:
            found.append(error)
    return next((error for error in found if isinstance(error, Ended)), found[-1])
