"""The user's terminal and a process elsewhere, joined."""

import contextlib
import os
import selectors
import shutil
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator

CHUNK = 65536


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Every key goes to the process, also Ctrl-C; restored at the end."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin, termios.TCSADRAIN)  # keys that were typed ahead are kept
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def follow_size(resize: Callable[[int, int], None]) -> None:
    """Tell the process the terminal's height and width, now and whenever they change."""

    def tell(*_: object) -> None:
        width, height = shutil.get_terminal_size()
        resize(height, width)

    tell()
    signal.signal(signal.SIGWINCH, tell)


def join(raw: socket.socket, started: bytes, *, stdin: bool, is_tty: bool) -> None:
    """Copy stdin to the connection and its output here, until the output ends."""
    output = _Output(is_tty)
    output.feed(started)
    with selectors.DefaultSelector() as selector:
        selector.register(raw, selectors.EVENT_READ)
        if stdin:
            with contextlib.suppress(PermissionError):  # a regular file: epoll refuses it
                selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        if stdin and len(selector.get_map()) == 1:
            _send_file(raw)
        while True:
            for key, _ in selector.select():
                if key.fileobj is raw:
                    data = raw.recv(CHUNK)
                    if not data:
                        return
                    output.feed(data)
                elif data := os.read(sys.stdin.fileno(), CHUNK):
                    raw.sendall(data)
                else:
                    selector.unregister(key.fileobj)
                    raw.shutdown(socket.SHUT_WR)


def _send_file(raw: socket.socket) -> None:
    while data := sys.stdin.buffer.read(CHUNK):
        raw.sendall(data)
    raw.shutdown(socket.SHUT_WR)


class _Output:
    """What comes back: raw from a terminal, else in Docker's frames."""

    def __init__(self, is_tty: bool) -> None:
        self._is_tty = is_tty
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        if self._is_tty:
            self._write(1, data)
            return
        self._buffer += data
        while len(self._buffer) >= 8:
            end = 8 + int.from_bytes(self._buffer[4:8], "big")
            if len(self._buffer) < end:
                return
            self._write(self._buffer[0], self._buffer[8:end])
            self._buffer = self._buffer[end:]

    def _write(self, stream: int, data: bytes) -> None:
        out = sys.stderr.buffer if stream == 2 else sys.stdout.buffer
        out.write(data)
        out.flush()
