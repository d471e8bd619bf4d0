"""Further processes in a running container."""

import asyncio
import os
import socket
from typing import Any

import msgspec

from common.errors import Conflict, Invalid, NotFound
from common.ids import Ids
from common.model.base import Model
from worker.engine import oci, request
from worker.engine.container import Container
from worker.engine.lifecycle import Lifecycle
from worker.engine.streams import Pipes
from worker.runtime.client import KeeperClient, KeeperError

_KEPT = 200  # ended ones that can still be inspected
_f = msgspec.field


class ExecConfig(Model, frozen=True, kw_only=True):
    """The body of `POST /containers/{id}/exec`."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    tty: bool = _f(default=False, name="Tty")
    env: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    console_size: tuple[int, int] | None = None
    detach: bool = False


class ExecFailed(Invalid):
    """It could not be started; the exec has ended, with exit code 126, 127 or 128."""


class Exec:
    """One such process, from its creation until some time after its end."""

    def __init__(self, exec_id: str, container: Container, config: ExecConfig) -> None:
        self.id = exec_id
        self.container = container
        self.config = config
        self.pid = 0
        self.exit_code: int | None = None
        self.running = False
        self.pipes: Pipes | None = None
        self.ended = asyncio.Event()


class Execs:
    def __init__(self, keeper: KeeperClient, lifecycle: Lifecycle, ids: Ids) -> None:
        self._keeper = keeper
        self._lifecycle = lifecycle
        self._ids = ids
        self._execs: dict[str, Exec] = {}

    def create(self, container: Container, config: ExecConfig, visible: bool = True) -> str:
        """Raises Conflict if the container does not run, Invalid."""
        if container.state == "paused":
            raise Conflict(f"container {container.name} is paused, unpause it first")
        if container.state != "running":
            raise Conflict(f"container {container.id} is not running")
        if not config.cmd:
            raise Invalid("No exec command specified")
        self._drop_old()
        entry = Exec(self._ids.hex(64), container, config)
        self._execs[entry.id] = entry
        if visible:
            container.exec_ids.append(entry.id)
            self._publish(entry, "exec_create")
        return entry.id

    def _drop_old(self) -> None:
        done = [e for e in self._execs.values() if e.ended.is_set()]
        for entry in done[:-_KEPT]:
            del self._execs[entry.id]

    def find(self, exec_id: str) -> Exec:
        if exec_id not in self._execs:
            raise NotFound(f"No such exec instance: {exec_id}")
        return self._execs[exec_id]

    async def start(self, exec_id: str, tty: bool = False, detach: bool = False) -> Pipes | None:
        """Its stdio, or None if detached. Raises Conflict, Invalid (not executable)."""
        entry = self.find(exec_id)
        if entry.running or entry.ended.is_set():
            raise Conflict(f"exec {exec_id} has been started already")
        if entry.container.state != "running":
            raise Conflict(f"container {entry.container.id} is not running")
        entry.running = True
        try:
            if entry.config.tty:
                entry.pipes = await self._start_terminal(entry)
            else:
                entry.pipes = await self._start_pipes(entry, detach)
        except KeeperError as error:
            self._failed(entry, error.code)
            raise ExecFailed(f"exec failed: {error}") from error
        except BaseException:
            self._failed(entry, 128)
            raise
        if exec_id in entry.container.exec_ids:  # not a health probe
            self._publish(entry, "exec_start")
        if detach and entry.pipes is not None:
            await entry.pipes.close()
            return None
        return entry.pipes

    def _failed(self, entry: Exec, code: int) -> None:
        entry.running, entry.exit_code = False, code or 128
        entry.ended.set()

    async def _start_pipes(self, entry: Exec, detach: bool) -> Pipes:
        config = entry.config
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        theirs, ours, outputs = [], [], {}
        stdin = -1
        try:
            if config.attach_stdin and not detach:
                reading, stdin = os.pipe()
                theirs.append(reading)
                ours.append(stdin)
            else:
                theirs.append(os.dup(null))
            for stream, wanted in ((1, config.attach_stdout), (2, config.attach_stderr)):
                if wanted and not detach:
                    output, writing = os.pipe()
                    theirs.append(writing)
                    ours.append(output)
                    outputs[output] = stream
                else:
                    theirs.append(os.dup(null))
            await self._ask(entry, tuple(theirs))
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in (null, *theirs):
                os.close(fd)
        return Pipes(outputs, stdin)

    async def _start_terminal(self, entry: Exec) -> Pipes:
        """The terminal is made inside, on the container's own devpts, and its master sent out."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                await self._ask(entry, (theirs.fileno(),))
            _, fds, _, _ = socket.recv_fds(ours, 16, 1)
        master = fds[0]
        return Pipes({master: 1}, master if entry.config.attach_stdin else -1)

    async def _ask(self, entry: Exec, fds: tuple[int, ...]) -> None:
        container, config = entry.container, entry.config
        process = self._process(entry)
        own = msgspec.structs.replace(container.config, user=config.user or container.config.user)
        seccomp = self._lifecycle.seccomp(container, config.privileged)
        answer = await self._keeper.request(
            "exec",
            fds,
            container=container.id,
            exec=entry.id,
            process=process,
            notes=oci.process_notes(
                own, container.host_config, seccomp, self._lifecycle.userns(container)
            ),
        )
        entry.pid = answer["pid"]

    def _process(self, entry: Exec) -> dict[str, Any]:
        container, config = entry.container, entry.config
        process = oci.process(
            container.config,
            container.host_config,
            config.privileged,
            self._lifecycle.device_filter,
        )
        rows, columns = config.console_size or (0, 0)
        env = request.environment(container.config.env or (), config.env or (), config.tty)
        return process | {
            "args": list(config.cmd or ()),
            "terminal": config.tty,
            "env": list(env),
            "cwd": config.working_dir or container.config.working_dir or "/",
            "consoleSize": {"height": rows, "width": columns},
        }

    def on_end(self, exec_id: str, code: int) -> None:
        """The keeper says so."""
        entry = self._execs.get(exec_id)
        if entry is None or entry.ended.is_set():
            return
        entry.running, entry.exit_code = False, code
        entry.ended.set()
        if exec_id in entry.container.exec_ids:
            entry.container.exec_ids.remove(exec_id)
            self._publish(entry, "exec_die", {"exitCode": str(code)})

    def container_ended(self, container: Container) -> None:
        """All processes of it have ended with it."""
        for entry in list(self._execs.values()):
            if entry.container is container and entry.running:
                self.on_end(entry.id, 137)

    async def run(
        self, container: Container, command: tuple[str, ...], timeout_s: float, limit: int
    ) -> tuple[int | None, bytes]:
        """Run to its end: (exit code, the first `limit` bytes of output). None: it took too long
        and was killed."""
        config = ExecConfig(cmd=command, attach_stdout=True, attach_stderr=True)
        exec_id = self.create(container, config, visible=False)
        output = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                pipes = await self.start(exec_id)
                assert pipes is not None
                while (news := await pipes.read()) is not None:
                    output += news[1][: max(limit - len(output), 0)]
                await self.find(exec_id).ended.wait()
            return self.find(exec_id).exit_code, bytes(output)
        except TimeoutError:
            await self._kill(exec_id)
            return None, bytes(output)
        finally:
            entry = self._execs.pop(exec_id, None)
            if entry is not None and entry.pipes is not None:
                await entry.pipes.close()

    async def _kill(self, exec_id: str) -> None:
        entry = self.find(exec_id)
        try:
            await self._keeper.request(
                "signal", container=entry.container.id, exec=exec_id, signal=9
            )
        except KeeperError:
            return

    def resize(self, exec_id: str, rows: int, columns: int) -> None:
        entry = self.find(exec_id)
        if entry.pipes is not None and entry.running:
            entry.pipes.resize(rows, columns)

    def inspect(self, exec_id: str) -> dict[str, Any]:
        """Docker's JSON."""
        entry = self.find(exec_id)
        config, command = entry.config, entry.config.cmd or ("",)
        return {
            "ID": entry.id,
            "Running": entry.running,
            "ExitCode": entry.exit_code,
            "ProcessConfig": {
                "tty": config.tty,
                "entrypoint": command[0],
                "arguments": list(command[1:]),
                "privileged": config.privileged,
                "user": config.user,
            },
            "OpenStdin": config.attach_stdin,
            "OpenStdout": config.attach_stdout,
            "OpenStderr": config.attach_stderr,
            "CanRemove": entry.ended.is_set(),
            "ContainerID": entry.container.id,
            "DetachKeys": config.detach_keys,
            "Pid": entry.pid,
        }

    def _publish(self, entry: Exec, action: str, extra: dict[str, str] | None = None) -> None:
        text = " ".join(entry.config.cmd or ())
        named = action if action == "exec_die" else f"{action}: {text}"
        self._lifecycle.publish(entry.container, named, {"execID": entry.id, **(extra or {})})
