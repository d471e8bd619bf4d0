"""How the agent gets containers made and ended.

`Executor` is all that the agent asks for; simulations give a fake one. `EngineExecutor` is the
node's engine. A container is found by the task it is for (its owner), never by a remembered id:
so a crash between making a container and noting it down loses nothing.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from common.errors import Conflict, NotFound
from common.model.image import RegistryAuth
from common.model.node import NodeDescription
from common.model.task import PortConfig, PortStatus, Task
from common.protocol.dispatcher import LogLine, LogRequest
from common.protocol.execs import ExecRequest
from common.protocol.usage import TaskUsage
from worker.agent import spec
from worker.agent.execs import NotStarted, Process
from worker.agent.steps import Seen
from worker.agent.task_files import TaskFiles, wanted
from worker.engine.exec import ExecConfig, ExecFailed
from worker.engine.logs import LogQuery
from worker.engine.streams import Nothing, Pipes

if TYPE_CHECKING:
    from worker.engine.container import Container
    from worker.engine.engine import Engine
    from worker.images.images import Images


class Executor(Protocol):
    """Containers of tasks. All raise ShoalError; Unavailable means: may work if tried again."""

    def tasks(self) -> list[str]:
        """The tasks that have a container here."""
        ...

    def look(self, task_id: str) -> Seen | None:
        """The task's container as it is now."""
        ...

    async def changed(self, task_id: str, seen: Seen) -> None:
        """Returns once the container differs from `seen`."""
        ...

    async def pull(self, task: Task) -> None:
        """Have the task's image on this node."""
        ...

    async def gather(self, task: Task) -> None:
        """Wait until the secrets and configs of the task are on this node."""
        ...

    async def create(self, task: Task) -> None:
        """Make the task's container."""
        ...

    async def start(self, task: Task) -> None:
        """Returns once the container's process runs, or raises."""
        ...

    async def stop(self, task: Task) -> None:
        """Stop signal, grace period, SIGKILL; returns when it has ended."""
        ...

    async def remove(self, task_id: str) -> None:
        """Remove the container, its log and its anonymous volumes; it is killed if it runs.
        Nothing happens if there is none."""
        ...

    def logs(self, task_id: str, request: LogRequest) -> AsyncIterator[LogLine]:
        """Lines of the container; an asynchronous generator."""
        ...

    async def usage(self, task_id: str) -> TaskUsage | None:
        """What the task uses; None if it does not run."""
        ...

    async def exec(self, request: ExecRequest) -> Process:
        """Run a process in the container. Raises NotStarted, Conflict (it does not run)."""
        ...


class EngineExecutor:
    """Runs tasks with the node's engine."""

    def __init__(
        self,
        engine: "Engine",
        images: "Images",
        describe: Callable[[], NodeDescription],
        files: TaskFiles,
        *,
        stop_grace_s: float = 10.0,
        auth: Callable[[Task], RegistryAuth | None] = lambda _: None,
    ) -> None:
        """`auth` gives the credentials with which a task's image is pulled."""
        self._engine = engine
        self._images = images
        self._describe = describe
        self._files = files
        self._stop_grace_s = stop_grace_s
        self._auth = auth
        self._containers: dict[str, str] | None = None  # task id -> container id

    def tasks(self) -> list[str]:
        self._containers = {
            container.owner: container.id
            for container in self._engine.list(all=True)
            if container.owner
        }
        return list(self._containers)

    def look(self, task_id: str) -> Seen | None:
        container = self._find(task_id)
        return None if container is None else _seen(container)

    async def changed(self, task_id: str, seen: Seen) -> None:
        container = self._find(task_id)
        if container is not None:
            await self._engine.wait_for(container.id, lambda c: _seen(c) != seen)

    async def pull(self, task: Task) -> None:
        image = spec.container_spec(task).image
        try:
            self._images.get(image)
        except NotFound:
            await self._images.pull(image, self._auth(task))

    async def gather(self, task: Task) -> None:
        await self._files.ready(task)

    async def create(self, task: Task) -> None:
        plan = spec.plan(task, self._describe())
        try:
            created = await self._engine.create(
                plan.body,
                plan.name,
                attachments=plan.attachments,
                host_ports=plan.host_ports,
                owner=task.id,
                files=plan.files,
            )
        except Conflict:
            self.tasks()  # it may be there already, from before a crash
            if self._find(task.id) is None:
                raise
        else:
            self._known[task.id] = created

    async def start(self, task: Task) -> None:
        container = self._must_find(task.id)
        if wanted(task):
            await self._engine.fill(container, self._files.contents(task, self._describe()))
        await self._engine.start(container)

    async def stop(self, task: Task) -> None:
        grace_s = spec.stop_grace_s(task, self._stop_grace_s)
        await self._engine.stop(self._must_find(task.id), timeout_s=grace_s)

    async def remove(self, task_id: str) -> None:
        container = self._find(task_id)
        if container is not None:
            with contextlib.suppress(NotFound):
                await self._engine.remove(container.id, force=True, volumes=True)
        self._known.pop(task_id, None)

    async def logs(self, task_id: str, request: LogRequest) -> AsyncIterator[LogLine]:
        query = LogQuery(
            follow=request.follow,
            stdout=request.stdout,
            stderr=request.stderr,
            since_ns=request.since_ns,
            until_ns=request.until_ns,
            tail=request.tail,
        )
        lines = self._engine.logs(self._must_find(task_id), query)
        async with contextlib.aclosing(lines) as open_lines:  # type: ignore[type-var]
            async for line in open_lines:
                yield LogLine(
                    task_id=task_id, stream=line.stream, time_ns=line.time_ns, data=line.data
                )

    async def usage(self, task_id: str) -> TaskUsage | None:
        container = self._find(task_id)
        if container is None or container.state != "running":
            return None
        return task_usage(task_id, await self._engine.stats(container.id))

    async def exec(self, request: ExecRequest) -> Process:
        config = ExecConfig(
            attach_stdin=request.stdin,
            attach_stdout=True,
            attach_stderr=True,
            tty=request.tty,
            env=request.env,
            cmd=request.command,
            privileged=request.privileged,
            user=request.user,
            working_dir=request.workdir,
            console_size=request.size,
        )
        exec_id = await self._engine.exec_create(self._must_find(request.task_id), config)
        try:
            pipes = await self._engine.exec_start(exec_id, request.tty, request.detach)
        except ExecFailed as error:
            code: int = self._engine.exec_inspect(exec_id)["ExitCode"]
            raise NotStarted(str(error), code) from error
        return _EngineProcess(self._engine, exec_id, pipes or Nothing(()), detached=pipes is None)

    @property
    def _known(self) -> dict[str, str]:
        if self._containers is None:
            self.tasks()
        assert self._containers is not None
        return self._containers

    def _find(self, task_id: str) -> "Container | None":
        container_id = self._known.get(task_id)
        if container_id is None:
            return None
        try:
            return self._engine.find(container_id)
        except NotFound:
            return None

    def _must_find(self, task_id: str) -> str:
        container = self._find(task_id)
        if container is None:
            raise NotFound(f"the container of task {task_id} is gone")
        return container.id


class _EngineProcess:
    """A Process (execs.py) of the engine."""

    def __init__(
        self, engine: "Engine", exec_id: str, stdio: Pipes | Nothing, *, detached: bool
    ) -> None:
        self._engine = engine
        self._exec_id = exec_id
        self._detached = detached
        self._stdio = stdio
        self.read = stdio.read
        self.write = stdio.write
        self.close_stdin = stdio.close_stdin
        self.close = stdio.close

    def resize(self, rows: int, columns: int) -> None:
        if isinstance(self._stdio, Pipes):
            self._stdio.resize(rows, columns)

    async def exit_code(self) -> int | None:
        if self._detached:
            return None
        await self._engine.exec_wait(self._exec_id)
        code: int | None = self._engine.exec_inspect(self._exec_id)["ExitCode"]
        return code


def task_usage(task_id: str, sample: Mapping[str, Any]) -> TaskUsage:
    """What matters of a sample for scaling. Files that the kernel can drop are not the task's."""
    memory = sample["memory_stats"]
    kept = memory.get("stats", {})
    droppable = kept.get("total_inactive_file", kept.get("inactive_file", 0))
    return TaskUsage(
        task_id=task_id,
        cpu_ns=sample["cpu_stats"]["cpu_usage"]["total_usage"],
        memory=max(memory.get("usage", 0) - droppable, 0),
    )


def _seen(container: "Container") -> Seen:
    return Seen(
        id=container.id,
        state=container.state,
        pid=container.pid,
        exit_code=container.exit_code,
        oom_killed=container.oom_killed,
        error=container.error,
        health=container.health,
        node_address=container.node_address,
        ports=_ports(container),
    )


def _ports(container: "Container") -> PortStatus:
    """The host-mode ports it has, with the numbers that were chosen."""
    sandbox = container.sandbox
    if sandbox is None or not sandbox.host_ports:
        return PortStatus()
    ports = (
        PortConfig(
            protocol=port.protocol,
            target_port=port.target,
            published_port=port.published,
            publish_mode="host",
            host_ip=port.host_ip,
        )
        for port in sandbox.host_ports
    )
    return PortStatus(ports=tuple(ports))
