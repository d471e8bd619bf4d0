"""Mounts what a volume's options say at its place, and finds what is mounted. Blocking."""

import errno
import os
import re
import stat
from pathlib import Path

import msgspec

from worker.runtime import mounts
from worker.runtime import syscalls as sc
from worker.volumes.options import Source

_MOST_STACKED = 16
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Failure(msgspec.Struct, frozen=True):
    """Why a mount could not be made."""

    errno: int
    text: str


def attach(wanted: Source, target: str) -> Failure | None:
    """Mount `wanted` at the folder `target`, for all of the machine; None if that went well."""
    try:
        mount = _bind(wanted) if wanted.type == "bind" else _filesystem(wanted)
    except OSError as error:
        return Failure(error.errno or errno.EIO, error.strerror or str(error))
    try:
        sc.mount_propagation(mount, sc.MS_PRIVATE)
        sc.move_mount(mount, sc.AT_FDCWD, target)
    except OSError as error:
        return Failure(error.errno or errno.EIO, f"at {target}: {error.strerror}")
    finally:
        os.close(mount)
    return None


def _bind(wanted: Source) -> int:
    if not stat.S_ISDIR(os.stat(wanted.device).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder")
    return mounts.clone(wanted.device, wanted.attributes, wanted.recursive)


def _filesystem(wanted: Source) -> int:
    try:
        context = sc.fsopen(wanted.type)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        text = f"this machine's kernel has no file system {wanted.type!r}"
        raise OSError(error.errno, text) from error
    try:
        sc.fsconfig(context, "source", wanted.device)
        for name, value in wanted.data:
            sc.fsconfig(context, name, value)
        sc.fsconfig_create(context)
        return sc.fsmount(context, wanted.attributes)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{mounts.complaint(context)}") from error
    finally:
        os.close(context)


def detach(target: Path) -> None:
    """Unmount what is mounted at `target`; who still looks at it keeps it that long."""
    for _ in range(_MOST_STACKED):
        if not is_mounted(target):
            return
        try:
            sc.unmount(str(target), sc.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:  # somebody was faster
                raise


def is_mounted(target: Path) -> bool:
    """Whether anything is mounted at `target`."""
    return _place(target) in mount_points()


def holds_mounts(folder: Path) -> bool:
    """Whether anything is mounted at `folder` or below it: then its files are not its own."""
    place = _place(folder)
    return any(f == place or f.startswith(place + b"/") for f in mount_points())


def _place(path: Path) -> bytes:
    return os.fsencode(os.path.realpath(path))


def mount_points() -> set[bytes]:
    """Of this process's mount namespace."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    return {_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split()[4]) for line in lines}
