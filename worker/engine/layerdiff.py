"""What a container changed of its image: `docker diff`, and the layer of `docker commit`. Blocking.

Read from the container's upper folder, where overlayfs keeps it: a character device 0:0 hides what
the image has, and a folder marked opaque hides all that the image has in it.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from common.errors import Invalid
from worker.engine.packing import Exactly, header, tar_stream
from worker.engine.rootfs import FOLDER, reopen
from worker.images.unpack import OPAQUE, WHITEOUT
from worker.runtime import mounts
from worker.runtime import syscalls as sc

MODIFIED, ADDED, DELETED = 0, 1, 2
_MAX_DEPTH = 400
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
# Where every start mounts something; the empty places for it are no change of the user's.
_MOUNT_POINTS = (
    "/dev", "/proc", "/sys", "/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
)  # fmt: skip


class Change(msgspec.Struct, frozen=True):
    """`kind`: 0 modified, 1 added, 2 deleted. `opaque`: nothing of the image is left in it."""

    path: str
    kind: int
    opaque: bool = False


def changes(upper: Path, lower: tuple[Path, ...], mount_points: frozenset[str]) -> list[Change]:
    """In the order of paths. `mount_points`: where the container's own mounts go."""
    image = _image(lower)
    try:
        top = os.open(upper, FOLDER | os.O_CLOEXEC)
        try:
            return list(_Scan(mount_points).folder(top, image, ""))
        finally:
            os.close(top)
    finally:
        os.close(image)


def _image(lower: tuple[Path, ...]) -> int:
    if len(lower) == 1:  # an overlay without an upper layer wants two
        return os.open(lower[0], FOLDER | os.O_CLOEXEC)
    fd = mounts.overlay(tuple(map(str, lower)), attributes=sc.MOUNT_ATTR_RDONLY)
    try:
        return os.open(".", FOLDER | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


class _Scan:
    def __init__(self, mount_points: frozenset[str]) -> None:
        self._mount_points = mount_points | frozenset(_MOUNT_POINTS)
        self._above = {path.rpartition("/")[0] for path in self._mount_points}

    def folder(self, upper: int, image: int, path: str, depth: int = 0) -> Iterator[Change]:
        """The changes below a folder; `image` is what the image has there, or -1."""
        if depth > _MAX_DEPTH:
            raise Invalid(f"{path[:80]}… is more than {_MAX_DEPTH} folders deep")
        for name in sorted(os.listdir(upper)):
            entry = os.open(name, _LOOK, dir_fd=upper)
            try:
                yield from self._entry(entry, image, name, f"{path}/{name}", depth)
            finally:
                os.close(entry)

    def _entry(self, fd: int, image: int, name: str, path: str, depth: int) -> Iterator[Change]:
        info, old = os.fstat(fd), _stat(image, name)
        if _is_whiteout(info):
            if old is not None:
                yield Change(path, DELETED)
            return
        if not stat.S_ISDIR(info.st_mode):
            if not (path in self._mount_points and info.st_size == 0 and old is None):
                yield Change(path, ADDED if old is None else MODIFIED)
            return
        yield from self._folder_entry(fd, image, name, path, depth, info, old)

    def _folder_entry(
        self, fd: int, image: int, name: str, path: str, depth: int,
        info: os.stat_result, old: os.stat_result | None,
    ) -> Iterator[Change]:  # fmt: skip
        was_folder = old is not None and stat.S_ISDIR(old.st_mode)
        opaque = was_folder and _is_opaque(fd)
        inner = _open(image, name) if was_folder and not opaque else -1
        content = os.open(".", FOLDER | os.O_CLOEXEC, dir_fd=fd)
        try:
            below = list(self.folder(content, inner, path, depth + 1))
            if opaque:
                below = sorted([*below, *_hidden(image, name, path, content)], key=_by_path)
        finally:
            os.close(content)
            if inner >= 0:
                os.close(inner)
        if below or opaque or self._counts(path, info, old):
            yield Change(path, ADDED if old is None else MODIFIED, opaque)
        yield from below

    def _counts(self, path: str, info: os.stat_result, old: os.stat_result | None) -> bool:
        """Whether a folder is a change though nothing in it is."""
        if old is None:
            return path not in self._mount_points
        same = (old.st_mode, old.st_uid, old.st_gid) == (info.st_mode, info.st_uid, info.st_gid)
        touched = old.st_mtime_ns != info.st_mtime_ns and path not in self._above
        return not same or (touched and path not in self._mount_points)


def _by_path(change: Change) -> str:
    return change.path


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", _OPAQUE) == b"y"
    except OSError:
        return False


def _hidden(image: int, name: str, path: str, content: int) -> Iterator[Change]:
    """What the image has in a folder that was emptied and is not there again."""
    folder = _open(image, name)
    try:
        for old in set(os.listdir(folder)) - set(os.listdir(content)):
            yield Change(f"{path}/{old}", DELETED)
    finally:
        os.close(folder)


def _stat(folder: int, name: str) -> os.stat_result | None:
    if folder < 0:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _open(folder: int, name: str) -> int:
    return os.open(name, FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def write_layer(upper: Path, found: list[Change], out: IO[bytes]) -> None:
    """`found`, the changes of `upper`, as a layer of an image."""
    top = os.open(upper, FOLDER | os.O_CLOEXEC)
    links: dict[tuple[int, int], str] = {}
    try:
        with tar_stream(out) as tar:
            for change in found:
                _add(tar, top, change, links)
                tar.members = []  # type: ignore[attr-defined]  # or it remembers every one
    finally:
        os.close(top)


def _add(tar: tarfile.TarFile, top: int, change: Change, links: dict[tuple[int, int], str]) -> None:
    name = change.path.lstrip("/")
    if change.kind == DELETED:
        folder, slash, base = name.rpartition("/")
        tar.addfile(tarfile.TarInfo(f"{folder}{slash}{WHITEOUT}{base}"))
        return
    try:
        fd = sc.openat2(top, name, _LOOK, sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_IN_ROOT)
    except FileNotFoundError:
        return  # gone since
    try:
        _add_member(tar, fd, name, links)
    finally:
        os.close(fd)
    if change.opaque:
        tar.addfile(tarfile.TarInfo(f"{name}/{OPAQUE}"))


def _add_member(
    tar: tarfile.TarFile, fd: int, name: str, links: dict[tuple[int, int], str]
) -> None:
    info = os.fstat(fd)
    member = header(fd, info, name)
    if member is None or _is_whiteout(info):
        return
    known = links.setdefault((info.st_dev, info.st_ino), name) if info.st_nlink > 1 else name
    if member.isreg() and known != name:
        member.type, member.linkname, member.size = tarfile.LNKTYPE, known, 0
    if not member.isreg():
        tar.addfile(member)
        return
    with open(reopen(fd, os.O_RDONLY | os.O_NOATIME), "rb", buffering=0) as file:
        tar.addfile(member, Exactly(file, member.size))
