"""A process's stdio for a client: read with back-pressure, written to without losing bytes."""

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios

_READ = 1 << 16
_PACKET = _READ + 1
_INPUT_PACKET = 32 * 1024


async def ready(fd: int, write: bool = False) -> None:
    """Until `fd` can be read, or written."""
    await any_ready((fd,), write)


async def any_ready(fds: tuple[int, ...], write: bool = False) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    for fd in fds:
        add(fd, wake)
    try:
        await future
    finally:
        for fd in fds:
            remove(fd)


class Pipes:
    """Own descriptors: the pipes of an exec, or the master of its terminal."""

    def __init__(self, outputs: dict[int, int], stdin: int) -> None:
        """`outputs`: descriptor -> stream. `stdin` may be one of them (a terminal), or -1."""
        self._outputs = dict(outputs)
        self._stdin = stdin
        for fd in (*outputs, stdin):
            if fd >= 0:
                os.set_blocking(fd, False)

    async def read(self) -> tuple[int, bytes] | None:
        """(stream, bytes), or None at the end of all output."""
        while self._outputs:
            for fd, stream in list(self._outputs.items()):
                data = self._read(fd)
                if data:
                    return stream, data
                if data == b"":
                    self._close(fd)
            if self._outputs:
                await any_ready(tuple(self._outputs))
        return None

    def _read(self, fd: int) -> bytes | None:
        try:
            return os.read(fd, _READ)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # the terminal's last user is gone
                return b""
            raise

    async def write(self, data: bytes) -> None:
        """What comes after the process closed its stdin is dropped."""
        while data and self._stdin >= 0:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await ready(self._stdin, write=True)
            except OSError:
                await self.close_stdin()

    async def close_stdin(self) -> None:
        if self._stdin >= 0 and self._stdin not in self._outputs:
            os.close(self._stdin)
        self._stdin = -1

    def resize(self, rows: int, columns: int) -> None:
        for fd in self._outputs:
            if os.isatty(fd):
                size = struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0)
                fcntl.ioctl(fd, termios.TIOCSWINSZ, size)

    def _close(self, fd: int) -> None:
        del self._outputs[fd]
        if fd == self._stdin:
            self._stdin = -1
        os.close(fd)

    async def close(self) -> None:
        """Let go. A process that still writes gets SIGPIPE, as with Docker."""
        for fd in list(self._outputs):
            self._close(fd)
        await self.close_stdin()


class Attachment:
    """A connection to the keeper, which holds the container's stdio."""

    def __init__(self, connection: socket.socket, before: tuple[tuple[int, bytes], ...]) -> None:
        """`before`: what the log holds already."""
        connection.setblocking(False)
        self._connection = connection
        self._before = list(reversed(before))

    async def read(self) -> tuple[int, bytes] | None:
        if self._before:
            return self._before.pop()
        while True:
            if self._connection.fileno() < 0:
                return None
            try:
                packet = self._connection.recv(_PACKET)
            except BlockingIOError:
                await ready(self._connection.fileno())
                continue
            except OSError:
                return None
            return (packet[0], packet[1:]) if packet else None

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), _INPUT_PACKET):
            await self._send(b"\0" + data[start : start + _INPUT_PACKET])

    async def close_stdin(self) -> None:
        await self._send(b"\x01")

    async def _send(self, packet: bytes) -> None:
        while self._connection.fileno() >= 0:
            try:
                self._connection.send(packet)
            except BlockingIOError:
                await ready(self._connection.fileno(), write=True)
            except OSError:
                return
            else:
                return

    async def close(self) -> None:
        self._connection.close()


class Nothing:
    """No process: what the log holds, and then the end."""

    def __init__(self, before: tuple[tuple[int, bytes], ...]) -> None:
        self._before = list(reversed(before))

    async def read(self) -> tuple[int, bytes] | None:
        return self._before.pop() if self._before else None

    async def write(self, data: bytes) -> None:
        return None

    async def close_stdin(self) -> None:
        return None

    async def close(self) -> None:
        return None
