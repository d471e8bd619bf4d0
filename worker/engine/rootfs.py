"""A container's file tree as a descriptor, for copying in and out. Blocking.

Nothing is mounted where anybody could find it: what a stopped container's tree is made of hangs on
the descriptor alone, so that a crash of the daemon leaves nothing. All paths are resolved below the
descriptor by the kernel (openat2 with RESOLVE_IN_ROOT): no link of a hostile image leads out.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from common.errors import Unavailable
from worker.engine.container import MountPoint
from worker.runtime import mounts, targets
from worker.runtime import syscalls as sc

INSIDE = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
FOLDER = os.O_RDONLY | os.O_DIRECTORY
_FOLDER_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ATTEMPTS = 64


def running(pid: int, container_id: str) -> int:
    """The root of a running container as its first process sees it.

    Raises ProcessLookupError if that process is not the container's any more.
    """
    try:
        process = os.open(f"/proc/{pid}", FOLDER | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is gone") from None
    try:
        # The descriptor stays with this process, however soon its number is used again.
        if container_id not in _read(process, "cgroup"):
            raise ProcessLookupError(errno.ESRCH, f"process {pid} is another one")
        return os.open("root", _FOLDER_PATH, dir_fd=process)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is gone") from None
    finally:
        os.close(process)


def _read(folder: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        return file.read().decode(errors="replace")


def image_and_changes(folder: Path, lower: tuple[Path, ...]) -> int:
    """Read-only: the container's own files over its image, without any volume."""
    layers = (str(folder / "upper"), *map(str, lower))
    return mounts.overlay(layers, attributes=sc.MOUNT_ATTR_RDONLY)


def stopped(
    folder: Path, lower: tuple[Path, ...], points: tuple[MountPoint, ...], read_only: bool
) -> int:
    """The root of a container that does not run, with its volumes, as a start would make it.

    The calling thread gets a mount namespace of its own, so it must end afterwards. Only one such
    root, or a run of the container, may be there at a time.
    """
    sc.unshare(sc.CLONE_NEWNS)
    machine = os.open("/", _FOLDER_PATH)
    try:
        sc.mount_propagation(machine, sc.MS_SLAVE)
    finally:
        os.close(machine)
    root = mounts.overlay(tuple(map(str, lower)), str(folder / "upper"), str(folder / "work"))
    try:
        sc.move_mount(root, sc.AT_FDCWD, str(folder / "rootfs"))
        for point in sorted(points, key=lambda point: point.destination.count("/")):
            if point.type != "tmpfs":
                _bind(root, point)
        if read_only:
            sc.mount_setattr(root, sc.MOUNT_ATTR_RDONLY)
        return mounts.clone("", recursive=True, at=root)
    finally:
        os.close(root)


def _bind(root: int, point: MountPoint) -> None:
    attributes = sc.MOUNT_ATTR_RDONLY if point.read_only else 0
    try:
        if point.subpath:
            source = mounts.clone_inside(point.source, point.subpath, attributes, point.recursive)
        else:
            source = mounts.clone(point.source, attributes, point.recursive)
    except FileNotFoundError:
        return  # a bind whose source went away: a start would be refused, a copy need not be
    try:
        is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
        target = targets.open_target(root, point.destination, is_folder)
        try:
            sc.move_mount(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def open_inside(root: int, path: str, flags: int) -> int:
    """`path` below `root`, links followed. Raises OSError, Unavailable."""
    for _ in range(_ATTEMPTS):
        # EAGAIN: somebody renames folders while a `..` is followed, and it might lead out.
        with contextlib.suppress(BlockingIOError):
            return sc.openat2(root, path, flags, INSIDE)
    raise Unavailable(f"{path}: the container keeps renaming its folders; try again")


def reopen(fd: int, flags: int) -> int:
    """A file that was opened with O_PATH, and looked at, for its content."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def true_path(fd: int) -> str:
    """Where a descriptor of a container's tree is, from the container's root."""
    return os.readlink(f"/proc/self/fd/{fd}")
