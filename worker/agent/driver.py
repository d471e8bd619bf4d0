"""Drives one task from ASSIGNED to its end, step by step.

observe (engine) ─┐
wish (assignment) ─┴─► steps.next_step ─► do it ─► report ─► again
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from common.clock import Clock
from common.errors import PortTaken, ShoalError, Unavailable
from common.model.task import ContainerStatus, Task, TaskState, TaskStatus
from worker.agent.executor import Executor
from worker.agent.steps import Seen, Step, ending, moved, next_step

log = logging.getLogger(__name__)

TRIES = 4  # of what fails for a time
RETRY_S = 0.5  # doubled each time
STOP_RETRY_MAX_S = 30.0


class Driver:
    """One task of this node. `run` ends when the task is taken away and nothing is left of it."""

    def __init__(
        self,
        task: Task,
        status: TaskStatus,
        executor: Executor,
        starts: asyncio.Semaphore,
        clock: Clock,
        report: Callable[[Task, TaskStatus], None],
        *,
        settled: asyncio.Event,
        boot_id: str = "",
        revive: bool = False,
    ) -> None:
        """`starts` bounds how many containers are made and started at once. Nothing is made or
        started before `settled`: the wish may be an old one. `boot_id` goes into what is
        reported. `revive`: the machine was rebooted after `status` was said."""
        self.task = task
        self.status = status
        self._executor = executor
        self._starts = starts
        self._clock = clock
        self._report = report
        self._settled = settled
        self._boot_id = boot_id
        self._revive = revive
        self._removed = False
        self._news = asyncio.Event()  # the wish changed
        self._stopping = asyncio.Event()
        self._made = asyncio.Event()
        self._note_wish()

    def update(self, task: Task) -> None:
        """What the manager wants now. A wish only goes forward: a task told to stop, stops."""
        if task.desired_state < self.task.desired_state:
            task = msgspec.structs.replace(task, desired_state=self.task.desired_state)
        self.task = task
        self._note_wish()

    def remove(self) -> None:
        """The task is no longer assigned here: leave nothing of it."""
        self._removed = True
        self._stopping.set()
        self._made.set()
        self._news.set()

    async def made(self) -> bool:
        """Waits until there is a container; False if there will be none."""
        await self._made.wait()
        return self._executor.look(self.task.id) is not None

    async def run(self) -> None:
        while not self._removed:
            self._news.clear()
            seen = self._executor.look(self.task.id)
            if seen is not None or self.status.state > TaskState.RUNNING:
                self._made.set()
            step = next_step(
                self.status.state,
                self.task.desired_state,
                seen,
                revive=self._revive,
                moved=moved(self.status, seen, self._boot_id),
            )
            if step in (Step.PREPARE, Step.START) and not self._settled.is_set():
                await self._unless(self._news, _set(self._settled))
                continue
            try:
                await self._do(step, seen)
            except Exception as error:  # noqa: BLE001 - one bad task must not end the others
                await self._failed(step, error)
        await self._take_away()

    # Steps

    async def _do(self, step: Step, seen: Seen | None) -> None:
        match step:
            case Step.ACCEPT:
                self._say(TaskState.ACCEPTED, "accepted", seen)
            case Step.PREPARE:
                await self._prepare()
            case Step.SAY_READY:
                self._say(TaskState.READY, "prepared", seen)
            case Step.START:
                await self._start(seen)
            case Step.SAY_RUNNING:
                self._say(TaskState.RUNNING, "started", seen)
            case Step.WATCH:
                assert seen is not None
                await self._unless(self._news, self._executor.changed(self.task.id, seen))
            case Step.STOP:
                await self._executor.stop(self.task)
            case Step.STOP_SICK:
                await self._executor.stop(self.task)
                ended = self._executor.look(self.task.id)
                self._say(TaskState.FAILED, "", ended, "task: unhealthy container")
            case Step.SAY_SHUTDOWN:
                self._say(TaskState.SHUTDOWN, "shutdown", seen)
            case Step.SAY_EXITED:
                assert seen is not None
                state, reason = ending(seen)
                self._say(state, "finished" if not reason else "", seen, reason)
            case Step.SAY_GONE:
                self._say(TaskState.FAILED, "", None, "task: the container has vanished")
            case Step.CLEAR:
                await self._executor.remove(self.task.id)
            case Step.REST:
                await self._news.wait()

    async def _prepare(self) -> None:
        self._say(TaskState.PREPARING, "preparing", None)
        await self._trying(self._prepare_once)

    async def _prepare_once(self) -> None:
        await self._unless(self._stopping, self._executor.pull(self.task))
        async with self._starts:
            if not self._stopping.is_set():
                await self._executor.create(self.task)

    async def _start(self, seen: Seen | None) -> None:
        self._revive = False
        if self.status.state < TaskState.STARTING:
            self._say(TaskState.STARTING, "starting", seen)
        await self._trying(self._start_once)

    async def _start_once(self) -> None:
        await self._unless(self._stopping, self._executor.gather(self.task))
        async with self._starts:
            if not self._stopping.is_set():
                await self._executor.start(self.task)

    async def _trying(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work`, again after a while if it says that this may help (AGT 234)."""
        for attempt in range(TRIES):
            try:
                await work()
                return
            except Unavailable:
                if attempt == TRIES - 1:
                    raise
            await self._unless(self._stopping, asyncio.sleep(RETRY_S * 2**attempt))
            if self._stopping.is_set():
                return

    async def _failed(self, step: Step, error: Exception) -> None:
        """A step went wrong: that ends the task, unless it is about ending it."""
        if not isinstance(error, ShoalError):
            log.error("task %s: cannot %s", self.task.id, step.value, exc_info=error)
        text = str(error) or type(error).__name__
        if step in (Step.STOP, Step.STOP_SICK, Step.CLEAR):
            log.warning("task %s: cannot %s: %s", self.task.id, step.value, text)
            await self._unless(self._news, asyncio.sleep(RETRY_S))
            return
        rejected = self.status.state < TaskState.STARTING or isinstance(error, PortTaken)
        state = TaskState.REJECTED if rejected else TaskState.FAILED
        self._say(state, "", self._executor.look(self.task.id), text)

    async def _take_away(self) -> None:
        """Stop and remove the container, however long it takes."""
        wait_s = RETRY_S
        while (seen := self._executor.look(self.task.id)) is not None:
            try:
                if seen.live:
                    await self._executor.stop(self.task)
                await self._executor.remove(self.task.id)
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("task %s: cannot remove its container: %s", self.task.id, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, STOP_RETRY_MAX_S)

    # Helpers

    def _say(self, state: TaskState, message: str, seen: Seen | None, err: str = "") -> None:
        before = self.status
        if seen is None:
            container, address, ports = before.container_status, "", before.port_status
        else:
            container = ContainerStatus(
                container_id=seen.id, pid=seen.pid, exit_code=seen.exit_code
            )
            address, ports = seen.node_address, seen.ports
        self.status = TaskStatus(
            timestamp=self._clock.now(),
            state=state,
            message=message,
            err=err,
            container_status=container,
            port_status=ports,
            node_address=address if seen is not None and seen.live else before.node_address,
            boot_id=self._boot_id,
        )
        self._report(self.task, self.status)

    def _note_wish(self) -> None:
        if self.task.desired_state >= TaskState.SHUTDOWN:
            self._stopping.set()
        self._news.set()

    async def _unless(self, event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, but give it up as soon as `event` is set. Raises what `work` raises."""
        if event.is_set():
            work.close()
            return
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(work), loop.create_task(event.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                if not task.done():
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def remove_leftover(task_id: str, executor: Executor) -> None:
    """Remove the container of a task that nobody knows, however long it takes."""
    wait_s = RETRY_S
    while executor.look(task_id) is not None:
        try:
            await executor.remove(task_id)
        except (ShoalError, OSError) as error:
            log.warning("cannot remove the container of task %s: %s", task_id, error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, STOP_RETRY_MAX_S)
