"""The daemon's side of the keeper: starts it if it is not there, asks, and hears of events."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import ShoalError, Unavailable
from worker.runtime import keeper, wire
from worker.runtime import syscalls as sc

_START_S = 10.0
_REQUEST_S = 30.0
_OPEN_ATTEMPTS = 3
_AT_ONCE = 64  # messages taken in one turn of the loop


class KeeperError(ShoalError):
    """The keeper could not do it. `code`: the exit code a failed start has (126, 127, 128)."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class KeeperClient:
    """One connection. `on_event` is called on the loop with each event, in order; `on_lost` once
    when the keeper is gone though nobody closed this client."""

    def __init__(
        self,
        run_dir: Path,
        containers: Path,
        cgroup_root: Path,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
        open_files: int = 0,
    ) -> None:
        """`open_files`: the soft limit of containers; 0: this process's own."""
        self._run_dir = run_dir
        self._containers = containers
        self._cgroup_root = cgroup_root
        self._on_event = on_event
        self._on_lost = on_lost
        self._open_files = open_files
        self._connection: socket.socket | None = None
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._established = False
        self.keeper_pid = 0

    @property
    def connected(self) -> bool:
        """Whether a keeper has been heard and was not lost since."""
        return self._connection is not None and self._established

    async def open(self) -> None:
        """Connect, after starting a keeper if none listens. Raises Unavailable."""
        for _ in range(_OPEN_ATTEMPTS - 1):
            with contextlib.suppress(Unavailable):  # it was just about to end, having no work
                return await self._open()
        await self._open()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        connecting = loop.run_in_executor(None, self._connect)
        try:
            self._connection = await asyncio.shield(connecting)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"cannot start the container keeper: {error}") from error
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_result)
            raise
        loop.add_reader(self._connection.fileno(), self._readable)
        try:
            hello = await self.request("hello")
        except BaseException:
            if self._connection is not None:
                self._disconnect()
            raise
        self.keeper_pid = hello["pid"]
        self._established = True

    def _connect(self) -> socket.socket:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._containers.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return wire.connect(str(self._run_dir), keeper.SOCKET)
            self._spawn()
        return wire.connect(str(self._run_dir), keeper.SOCKET)

    def _spawn(self) -> None:
        """From a read-only view of the interpreter: a container that gets hold of the keeper's
        binary through /proc cannot write to it (CVE-2019-5736)."""
        ready, theirs = os.pipe()
        binary = sc.read_only_copy(os.path.realpath(sys.executable))
        arguments = [sys.executable, "-I", "-S", keeper.__file__]
        arguments += [str(self._run_dir), str(self._containers), str(theirs)]
        arguments += [str(self._cgroup_root), str(self._open_files)]
        try:
            with open(self._run_dir / "keeper.log", "ab") as log:
                process = subprocess.Popen(
                    arguments,
                    executable=sys.executable if binary < 0 else f"/proc/self/fd/{binary}",
                    pass_fds=(theirs,) if binary < 0 else (theirs, binary),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
                    start_new_session=True,
                )
            os.close(theirs)
            theirs = -1
            self._await_ready(process, ready)
        finally:
            for fd in (ready, theirs, binary):
                if fd >= 0:
                    os.close(fd)

    def _await_ready(self, process: "subprocess.Popen[bytes]", ready: int) -> None:
        process.wait(_START_S)
        answer = os.read(ready, 1000)
        if answer != b"ready" and b"another keeper" not in answer:
            text = answer.decode(errors="replace") or "it ended; see keeper.log in the run folder"
            raise OSError(text)

    async def request(
        self, op: str, fds: tuple[int, ...] = (), timeout: float = _REQUEST_S, **fields: Any
    ) -> dict[str, Any]:
        """Ask. The descriptors stay the caller's. Raises KeeperError, Unavailable."""
        if self._connection is None:
            raise Unavailable("the container keeper is gone; it is being started again")
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            async with asyncio.timeout(timeout):
                await self._send({"op": op, "n": number, **fields}, fds)
                return await future
        except TimeoutError:
            raise Unavailable(
                f"the container keeper did not answer {op} in {timeout:g} s"
            ) from None
        finally:
            self._pending.pop(number, None)

    async def _send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        while True:
            if self._connection is None:
                raise Unavailable("the container keeper is gone; it is being started again")
            try:
                wire.send(self._connection, message, fds)
            except BlockingIOError:
                await _writable(self._connection)
            except OSError:
                self._lose()
            else:
                return

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if self._connection is None:
                return
            try:
                message, fds = wire.receive(self._connection)
            except BlockingIOError:
                return
            except (EOFError, OSError):
                self._lose()
                return
            for fd in fds:
                os.close(fd)
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if "n" not in message:
            self._on_event(message)
            return
        future = self._pending.get(message["n"])
        if future is None or future.done():
            return
        if "ok" in message:
            future.set_result(message["ok"])
        else:
            future.set_exception(KeeperError(message["error"], message.get("code", 0)))

    def _lose(self) -> None:
        if self._connection is None:
            return
        self._disconnect()
        if self._established:
            self._established = False
            self._on_lost()

    def _disconnect(self) -> None:
        assert self._connection is not None
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._connection.close()
        self._connection = None
        for future in self._pending.values():
            if not future.done():
                future.set_exception(Unavailable("the container keeper ended; try again"))

    async def close(self) -> None:
        """Take leave: containers go on, and the keeper stays just for them."""
        if self._connection is None:
            return
        with contextlib.suppress(Unavailable, KeeperError):
            await self.request("bye", timeout=2.0)
        if self._connection is not None:
            self._disconnect()


def _close_result(connecting: "asyncio.Future[socket.socket]") -> None:
    """Nobody waits for this connection any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


async def _writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_writer(connection.fileno(), ready)
    try:
        await future
    finally:
        loop.remove_writer(connection.fileno())
