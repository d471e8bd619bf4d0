"""Messages between the daemon and the keeper: JSON over SOCK_SEQPACKET, descriptors beside it."""

import array
import contextlib
import json
import os
import socket
from typing import Any

LARGEST = 1 << 20
_MOST_FDS = 4
_encode = json.JSONEncoder(separators=(",", ":")).encode


def listen(directory: str, name: str) -> socket.socket:
    """A listening socket, only for root. A stale one of a dead keeper is replaced."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with _Reach(directory) as base:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{base}/{name}")
        umask = os.umask(0o177)
        try:
            server.bind(f"{base}/{name}")
        finally:
            os.umask(umask)
    server.listen(4)
    return server


def connect(directory: str, name: str) -> socket.socket:
    """Raises FileNotFoundError or ConnectionRefusedError where no keeper listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _Reach(directory) as base:
            client.connect(f"{base}/{name}")
    except OSError:
        client.close()
        raise
    return enlarge(client)


def enlarge(connection: socket.socket) -> socket.socket:
    """A message is sent whole, so the buffer must hold the longest."""
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST)
    with contextlib.suppress(OSError):  # SO_SNDBUFFORCE: beyond the machine's usual maximum
        connection.setsockopt(socket.SOL_SOCKET, 32, 2 * LARGEST)
    return connection


def send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Raises BlockingIOError if the peer is slow, ValueError if the message is too long."""
    data = _encode(message).encode()
    if len(data) > LARGEST:
        raise ValueError(f"a message of {len(data)} bytes is longer than {LARGEST}")
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], control)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors. Raises BlockingIOError, and EOFError at the end."""
    # Asked for, since room for the longest would be mapped and unmapped each time.
    size = connection.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    space = socket.CMSG_SPACE(_MOST_FDS * 4)
    data, control, _, _ = connection.recvmsg(size or 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        for fd in fds:
            os.close(fd)
        raise EOFError
    return json.loads(data), list(fds)


class _Reach:
    """A short name for a folder: a socket's path is limited to 107 bytes."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
