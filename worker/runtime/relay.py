"""The keeper's end of a container's stdio: output to the log and to who is attached, input back.

Output pipes are FIFOs that the container's side opens for reading too: if the keeper dies, writers
in the container wait instead of being killed by SIGPIPE, and the next keeper goes on reading.

Who is attached gets packets: one byte for the stream, then the data. A slow one holds the container
back once `_HIGH` bytes wait for it, as a slow reader of a pipe would.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Callable

from worker.runtime.logfile import STDERR, STDOUT, Writer
from worker.runtime.reactor import READ, WRITE, Reactor

_READ_SIZE = 1 << 16
_HIGH = 1 << 20
_LAST_DRAIN = 4 << 20  # a process outside that holds the pipe may write for ever
FIFOS = {STDOUT: "stdout.fifo", STDERR: "stderr.fifo"}


def make_fifos(folder: str) -> dict[int, int]:
    """Fresh FIFOs in `folder`, opened as the container shall have them."""
    ends = {}
    for stream, name in FIFOS.items():
        path = f"{folder}/{name}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)
        ends[stream] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return ends


def open_fifos(folder: str) -> dict[int, int]:
    """The reading ends; those missing are left out."""
    ends = {}
    for stream, name in FIFOS.items():
        with contextlib.suppress(FileNotFoundError):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            ends[stream] = os.open(f"{folder}/{name}", flags)
    return ends


class Viewer:
    """One attached client. `streams`: what it wants to see."""

    def __init__(self, connection: socket.socket, streams: frozenset[int], stdin: bool) -> None:
        self.connection = connection
        self.streams = streams
        self.stdin = stdin
        self.queue: deque[bytes] = deque()
        self.waiting = 0
        self.closing = False


class Relay:
    """All stdio of one container."""

    def __init__(self, reactor: Reactor, on_output: Callable[[], None]) -> None:
        self._reactor = reactor
        self._on_output = on_output
        self._outputs: dict[int, int] = {}  # descriptor -> stream
        self._viewers: dict[int, Viewer] = {}  # by descriptor
        self._log: Writer | None = None
        self._input = -1
        self._input_queue = b""
        self._close_input_at_end = False
        self._terminal = -1
        self._held = False
        self._early = False  # viewers came before the start: what they send stays with them
        self._ending = False  # no more input once the queue is written
        self.lost = 0  # bytes that could not be logged

    def log_to(self, log: Writer | None) -> None:
        self._log = log

    def connect(self, outputs: dict[int, int]) -> None:
        """Start reading `outputs` (stream -> descriptor)."""
        for stream, fd in outputs.items():
            os.set_blocking(fd, False)
            self._outputs[fd] = stream
            self._reactor.watch(fd, 0 if self._held else READ, self._reader(fd))

    def _reader(self, fd: int) -> Callable[[int], None]:
        def read(_: int) -> None:
            self._read(fd)

        return read

    def connect_input(self, fd: int, close_at_end: bool) -> None:
        """The writing end of the container's stdin."""
        os.set_blocking(fd, False)
        self._input, self._close_input_at_end = fd, close_at_end
        self._reactor.watch(fd, 0, self._input_event)
        self._take_input()

    def connect_terminal(self, master: int) -> None:
        self._terminal = master
        self.connect({STDOUT: master})
        self._input = master
        self._take_input()

    def keep_input(self) -> None:
        """Take nothing from viewers until there is a stdin to write it to."""
        self._early = True

    def _take_input(self) -> None:
        self._early = False
        self._viewers_interest()

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal >= 0:
            size = struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def attach(self, connection: socket.socket, streams: frozenset[int], stdin: bool) -> None:
        viewer = Viewer(connection, streams, stdin)
        fd = connection.fileno()
        self._viewers[fd] = viewer
        interest = self._viewer_interest(viewer)
        self._reactor.watch(fd, interest, lambda events: self._viewer_event(viewer, events))

    @property
    def attached(self) -> int:
        return len(self._viewers)

    # --- output

    def _read(self, fd: int) -> int:
        try:
            data = os.read(fd, _READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that its last user is gone
                raise
            data = b""
        if not data:
            self._close_output(fd)
            return 0
        self._take(self._outputs[fd], data)
        return len(data)

    def _take(self, stream: int, data: bytes) -> None:
        if self._log is not None:
            try:
                self._log.write(stream, data, time.time_ns())
            except OSError:  # a full disk must not end the container
                self.lost += len(data)
        self._on_output()
        for viewer in list(self._viewers.values()):
            if stream in viewer.streams and not viewer.closing:
                viewer.queue.append(bytes((stream,)) + data)
                viewer.waiting += len(data)
                self._flush(viewer)
        self._hold()

    def _hold(self) -> None:
        held = any(viewer.waiting > _HIGH for viewer in self._viewers.values())
        if held != self._held:
            self._held = held
            for fd in self._outputs:
                self._reactor.change(fd, 0 if held else READ)

    def _close_output(self, fd: int) -> None:
        self._reactor.forget(fd)
        del self._outputs[fd]
        if fd == self._terminal:
            self._terminal = self._input = -1
        os.close(fd)

    # --- viewers

    def _viewer_event(self, viewer: Viewer, events: int) -> None:
        if events & WRITE:
            self._flush(viewer)
            self._hold()
        if events & ~WRITE and viewer.connection.fileno() in self._viewers:
            self._receive(viewer)

    def _flush(self, viewer: Viewer) -> None:
        try:
            while viewer.queue:
                viewer.connection.send(viewer.queue[0])
                viewer.waiting -= len(viewer.queue.popleft()) - 1
        except BlockingIOError:
            self._reactor.change(viewer.connection.fileno(), READ | WRITE)
            return
        except OSError:
            self._detach(viewer)
            return
        if viewer.closing:
            self._detach(viewer)
        else:
            self._reactor.change(viewer.connection.fileno(), self._viewer_interest(viewer))

    def _viewer_interest(self, viewer: Viewer) -> int:
        return 0 if viewer.stdin and (self._early or self._input_queue) else READ

    def _receive(self, viewer: Viewer) -> None:
        try:
            data = viewer.connection.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and data[:1] == b"\0":  # input; anything else is not ours to understand
            if viewer.stdin and self._input >= 0:
                self._input_queue += data[1:]
                self._write_input()
        elif data == b"\x01":  # end of input
            if viewer.stdin and self._close_input_at_end:
                self._end_input()
        elif not data:
            self._detach(viewer)
            self._hold()
            if viewer.stdin and self._close_input_at_end:
                self._end_input()

    def _detach(self, viewer: Viewer) -> None:
        fd = viewer.connection.fileno()
        if self._viewers.pop(fd, None) is not None:
            self._reactor.forget(fd)
            viewer.connection.close()

    # --- input

    def _input_event(self, events: int) -> None:
        if events & ~WRITE:  # nobody reads any more
            self._input_queue = b""
            self._close_input()
        self._write_input()

    def _write_input(self) -> None:
        if self._input < 0:
            self._input_queue = b""
            return
        try:
            while self._input_queue:
                written = os.write(self._input, self._input_queue[:_READ_SIZE])
                self._input_queue = self._input_queue[written:]
        except BlockingIOError:
            self._input_interest(WRITE)
            self._viewers_interest()
            return
        except OSError:  # nobody reads any more
            self._input_queue = b""
            self._close_input()
        self._input_interest(0)
        if self._input_queue == b"" and self._ending:
            self._close_input()
        self._viewers_interest()

    def _end_input(self) -> None:
        self._ending = True
        if not self._input_queue:
            self._close_input()

    def _input_interest(self, events: int) -> None:
        if self._input >= 0 and self._input != self._terminal:
            self._reactor.change(self._input, events)
        elif self._input >= 0 and events:
            self._reactor.later(0.01, self._write_input)

    def _viewers_interest(self) -> None:
        for fd, viewer in self._viewers.items():
            if not viewer.queue:
                self._reactor.change(fd, self._viewer_interest(viewer))

    def _close_input(self) -> None:
        if self._input >= 0 and self._input != self._terminal:
            self._reactor.forget(self._input)
            os.close(self._input)
        self._input = -1

    # --- the end

    def finish(self) -> None:
        """The container is dead: take what is left in its pipes, then let go of everything."""
        for fd in list(self._outputs):
            taken = 0
            while fd in self._outputs and taken < _LAST_DRAIN:
                count = self._read(fd)
                if not count:
                    break
                taken += count
            if fd in self._outputs:
                self._close_output(fd)
        self._close_input()
        if self._log is not None:
            self._log.close()
            self._log = None
        for viewer in list(self._viewers.values()):
            viewer.closing = True
            self._flush(viewer)
