"""Finds, and makes, the places inside a hostile root that something is mounted at.

Everything is resolved with openat2 inside the root, so that no symbolic link leads out.
"""

import contextlib
import errno
import os

from worker.runtime import syscalls as sc

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
INSIDE = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
# Where the kernel's own file systems go; a link there would put them somewhere else.
_NO_LINKS = ("/proc", "/sys", "/dev")
_MOST_LINKS = 40  # as the kernel


def open_target(root: int, path: str, directory: bool) -> int:
    """A descriptor of `path` inside `root`, made if it is missing, links followed inside only."""
    flags = os.O_PATH | (os.O_DIRECTORY if directory else 0)
    resolve = INSIDE
    if path in _NO_LINKS:
        resolve |= sc.RESOLVE_NO_SYMLINKS
    try:
        return sc.openat2(root, path, flags, resolve)
    except FileNotFoundError:
        if not _make_last(root, path, directory):
            _make(root, path, directory)
        return sc.openat2(root, path, flags, resolve)


def _make_last(root: int, path: str, directory: bool) -> bool:
    """The usual case at less cost: only the last part is missing, and no link is in its place."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        return False
    try:
        folder = sc.openat2(root, parent or "/", DIRECTORY, INSIDE)
    except FileNotFoundError:
        return False
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=folder)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=folder))
    except FileExistsError:
        return False
    finally:
        os.close(folder)
    return True


def _make(root: int, path: str, directory: bool, depth: int = 0) -> None:
    """Make what is missing of `path`. A link that leads nowhere yet has its target made, inside."""
    if depth > _MOST_LINKS:
        raise OSError(errno.ELOOP, f"too many symbolic links: {path}")
    parts, here = [part for part in path.split("/") if part], "/"
    for index, part in enumerate(parts):
        folder = directory or index + 1 < len(parts)
        target = f"{here.rstrip('/')}/{part}"
        if not _exists(root, target):
            link = _make_one(root, here, part, folder)
            if link:
                _make(root, link if link.startswith("/") else f"{here}/{link}", folder, depth + 1)
        here = target


def _exists(root: int, path: str) -> bool:
    try:
        os.close(sc.openat2(root, path, os.O_PATH, INSIDE))
    except FileNotFoundError:
        return False
    return True


def _make_one(root: int, parent: str, name: str, directory: bool) -> str:
    """Make `name` in the existing folder `parent`; if it is a link, return where that leads."""
    folder = sc.openat2(root, parent, os.O_PATH | os.O_DIRECTORY, INSIDE)
    try:
        with contextlib.suppress(OSError):
            return os.readlink(name, dir_fd=folder)
        if directory:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=folder)
        else:
            flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=folder))
    finally:
        os.close(folder)
    return ""
