"""One helper thread that enters network namespaces and hands back sockets and descriptors.

`setns` moves a thread, so it must never happen on the event loop's. Everything that touches the
kernel's network state runs here, one piece after the other.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from worker.network import syscalls

P = ParamSpec("P")
R = TypeVar("R")

_OWN = "/proc/thread-self/ns/net"


class NamespaceHelper:
    """The thread. `inside` and `create` are for functions that run on it.

    `machine` is a descriptor of the namespace that counts as the machine's own; by default the
    process's.
    """

    def __init__(self, machine: int | None = None) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns")
        if machine is not None:
            self._thread.submit(syscalls.setns_net, machine).result()
        self._home = self._thread.submit(os.open, _OWN, os.O_RDONLY | os.O_CLOEXEC).result()

    @property
    def home(self) -> int:
        """A descriptor of the machine's own namespace."""
        return self._home

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`function(...)` on the thread. Once started it runs to its end, also if cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        os.close(self._home)

    @contextmanager
    def inside(self, namespace: int) -> Iterator[None]:
        """The calling thread is in `namespace` meanwhile."""
        syscalls.setns_net(namespace)
        try:
            yield
        finally:
            syscalls.setns_net(self._home)

    def create(self, prepare: Callable[[], R]) -> tuple[int, R]:
        """A new namespace's descriptor, and what `prepare` gave when run in it."""
        syscalls.unshare_net()
        try:
            descriptor = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return descriptor, prepare()
            except BaseException:
                os.close(descriptor)
                raise
        finally:
            syscalls.setns_net(self._home)


def persist(descriptor: int, path: Path) -> None:
    """Keep the namespace behind `descriptor` alive under `path`, whatever becomes of us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    try:
        syscalls.bind(f"/proc/self/fd/{descriptor}", str(path))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def forget(path: Path) -> None:
    """Undo `persist`; it is no error if it was undone before."""
    try:
        syscalls.unbind(str(path))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    path.unlink(missing_ok=True)


def reopen(path: Path) -> int | None:
    """A descriptor of the namespace kept under `path`; None if it is gone (a reboot)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if not _is_namespace(descriptor):
        os.close(descriptor)
        return None
    return descriptor


def _is_namespace(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").startswith("/") and (
        os.fstat(descriptor).st_dev == os.stat("/proc/self/ns/net").st_dev
    )


def write_sysctl(name: str, value: str) -> None:
    """Set `name` ("net.ipv4.ip_forward") in the calling thread's namespace."""
    path = Path("/proc/sys") / name.replace(".", "/")
    path.write_text(value)


def try_sysctl(name: str, value: str) -> None:
    """The same where the kernel has it and allows it."""
    with suppress(OSError):
        write_sysctl(name, value)


def udp_and_tcp(address: str) -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on free ports of `address`, for a resolver."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        udp.bind((address, 0))
        tcp.bind((address, 0))
        tcp.listen(64)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
