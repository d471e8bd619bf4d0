"""Fills a new volume with what the image has at its place. Blocking: call it in a thread.

The image is hostile: it is seen through a mount that is attached nowhere, and paths are resolved
inside it, so that a link in it cannot reach the machine's files.
"""

import contextlib
import os
import shutil
import stat
from pathlib import Path

from worker.runtime import mounts
from worker.runtime import syscalls as sc

_RESOLVE = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS


def copy_up(layers: tuple[Path, ...], path: str, volume: Path) -> bool:
    """Copy the image's `path` into `volume`, if that is empty. False: there was nothing to copy."""
    if any(volume.iterdir()):
        return False
    root = _image_root(layers)
    try:
        source = sc.openat2(root, path, os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
    except (FileNotFoundError, NotADirectoryError):
        return False
    finally:
        os.close(root)
    target = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _copy_folder(source, target)
    finally:
        os.close(source)
        os.close(target)
    return True


def _image_root(layers: tuple[Path, ...]) -> int:
    if len(layers) == 1:  # an overlay without an upper layer wants two
        return os.open(layers[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return mounts.overlay(tuple(map(str, layers)), attributes=sc.MOUNT_ATTR_RDONLY)


def _copy_folder(source: int, target: int) -> None:
    for name in os.listdir(source):
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner = _open(name, source), _open(name, target)
            try:
                _copy_folder(*inner)
            finally:
                for fd in inner:
                    os.close(fd)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISREG(info.st_mode):
            _copy_file(name, source, target, info)
        # devices, sockets and pipes stay behind
    _like(os.fstat(source), source, target)


def _open(name: str, directory: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


def _copy_file(name: str, source: int, target: int, info: os.stat_result) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(reading, "rb") as old, open(os.open(name, flags, 0o600, dir_fd=target), "wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        _like(info, old.fileno(), new.fileno())


def _like(info: os.stat_result, source: int, target: int) -> None:
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            with contextlib.suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
