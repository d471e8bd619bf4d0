"""What a child does in the container's root before it executes: who it is, where, its terminal.

The image is hostile: its files are read with links followed inside only.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import termios

from worker.runtime import capabilities, mounts, targets, userns, users
from worker.runtime import syscalls as sc
from worker.runtime.steps import Plan, Process

_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_READ_LIMIT = 1 << 20  # of the image's passwd and group files


def account_in(process: Process, root: str = "/") -> users.Account:
    """Who the process is to be, by the files of the image at `root`. Raises UserError."""
    identity = process.identity
    return users.resolve(
        identity.user,
        identity.groups,
        _read_inside("/etc/passwd", root),
        _read_inside("/etc/group", root),
    )


def available_names() -> list[str]:
    """The capabilities that this machine can give."""
    own = capabilities.own()
    return [name for bit, name in enumerate(capabilities.NAMES) if own >> bit & 1]


def _read_inside(path: str, top: str) -> str:
    """A file of the image; empty if missing. Its links may lead anywhere but out of the root."""
    root = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        flags, resolve = os.O_RDONLY | os.O_NONBLOCK, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
        fd = sc.openat2(root, path, flags, resolve)
    except OSError:
        return ""
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, _READ_LIMIT).decode(errors="replace")
    finally:
        os.close(fd)


def make_cwd(path: str) -> str:
    if not path.startswith("/"):
        raise OSError(errno.EINVAL, f"the working directory {path!r} is not an absolute path")
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(targets.open_target(root, path, directory=True))
    except OSError as error:
        text = f"cannot make the working directory {path}: {error.strerror}"
        raise OSError(error.errno, text) from error
    finally:
        os.close(root)
    return path


def write_sysctls(plan: Plan, folder: int) -> None:
    """`folder`: /proc/sys as it was before it was made read-only, or -1."""
    for path, value in plan.sysctls:
        try:
            if folder >= 0:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
            else:
                fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
            with open(fd, "w") as file:
                file.write(value)
        except OSError as error:
            text = f"sysctl {path.replace('/', '.')}={value}: {error.strerror}"
            raise OSError(error.errno, text) from error


def console(process: Process, channel: int, bind: bool) -> None:
    """A terminal of the container's own devpts, made the controlling one; its master goes out."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if any(process.size):
        rows, columns = process.size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    if bind:
        os.close(os.open("/dev/console", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        tree = mounts.clone("", at=slave)
        sc.move_mount(tree, sc.AT_FDCWD, "/dev/console")
        os.close(tree)
    with socket.socket(fileno=os.dup(channel)) as peer:
        socket.send_fds(peer, [b"tty"], [master])
    os.close(master)
    account = account_in(process)
    os.fchown(slave, userns.outside(process.mapping.uids, account.uid), -1)
    for target in range(3):
        os.dup2(slave, target)
    os.close(slave)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def own_stdio(uid: int) -> None:
    """A process may open /dev/stdout again, so its pipes must be its own."""
    null = os.stat("/dev/null") if os.path.exists("/dev/null") else None
    for fd in range(3):
        info = os.fstat(fd)
        if null is not None and info.st_rdev == null.st_rdev and stat.S_ISCHR(info.st_mode):
            continue
        if info.st_uid != uid:
            with contextlib.suppress(OSError):  # a socket, or a pipe of another namespace
                os.fchown(fd, uid, -1)


def await_network(connected: int) -> None:
    """The pipe closes without a byte if the daemon failed, or is gone."""
    if os.read(connected, 1) != b"\1":
        raise OSError(errno.ECANCELED, "the container's network could not be made")
