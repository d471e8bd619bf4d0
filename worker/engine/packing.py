"""Files of a container as a tar: `docker cp` out of it, and `docker export`. Blocking.

The container may run and be hostile: every step goes by descriptor, nothing but regular files is
ever opened, and what is exchanged under our hands is either the old or the new, never outside.
"""

import contextlib
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from typing import IO

import msgspec

from common.errors import Invalid, NotFound
from worker.engine.rootfs import FOLDER, open_inside, reopen, true_path

_CHUNK = 256 * 1024
_UNMEASURED = 1024 * 1024  # bytes
_MAX_DEPTH = 400  # folders; each holds a descriptor and a call
_LOOK = os.O_PATH | os.O_NOFOLLOW
_CAPABILITY = "security.capability"
_GO_FOLDER, _GO_LINK, _GO_DEVICE, _GO_FIFO, _GO_SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
_GO_SETUID, _GO_SETGID, _GO_CHARACTER, _GO_STICKY = 1 << 23, 1 << 22, 1 << 21, 1 << 20
_SPECIAL = {
    stat.S_IFDIR: _GO_FOLDER,
    stat.S_IFLNK: _GO_LINK,
    stat.S_IFBLK: _GO_DEVICE,
    stat.S_IFCHR: _GO_DEVICE | _GO_CHARACTER,
    stat.S_IFIFO: _GO_FIFO,
    stat.S_IFSOCK: _GO_SOCKET,
}


class PathStat(msgspec.Struct, frozen=True, kw_only=True):
    """What `X-Docker-Container-Path-Stat` tells of a path. `mode` is in Go's bits."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link_target: str = ""


def plain(path: str) -> str:
    """An absolute path, cleaned; a slash or a dot at the end stays, as it means something."""
    if "\0" in path:
        raise Invalid(f"path {path[:80]!r} holds a zero byte")
    clean = posixpath.normpath("/" + path.lstrip("/"))
    if path.endswith("/."):
        return f"{clean.rstrip('/')}/."
    return f"{clean}/" if path.endswith("/") and clean != "/" else clean


def base_name(path: str) -> str:
    """The last word of a path as Go has it: "/" for the root."""
    return path.rstrip("/").rpartition("/")[2] or "/"


def find(root: int, path: str) -> int:
    """`path` below `root` with O_PATH; a link at its very end is not followed. Raises NotFound."""
    folder, _, name = plain(path).rpartition("/")
    try:
        parent = open_inside(root, folder or "/", os.O_PATH | os.O_DIRECTORY)
        if name in ("", "."):
            return parent
        try:
            return os.open(name, _LOOK | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
    except FileNotFoundError:
        raise NotFound(f"Could not find the file {path} in container") from None
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from error


def describe(root: int, path: str) -> PathStat:
    """Raises NotFound, Invalid."""
    fd = find(root, path)
    try:
        info = os.fstat(fd)
        link = _target(root, fd, path) if stat.S_ISLNK(info.st_mode) else ""
    finally:
        os.close(fd)
    return PathStat(
        name=base_name(plain(path)),
        size=info.st_size,
        mode=go_mode(info.st_mode),
        mtime_ns=info.st_mtime_ns,
        link_target=link,
    )


def _target(root: int, link: int, path: str) -> str:
    """Where a link leads in the end, from the container's root; also if nothing is there."""
    try:
        fd = open_inside(root, path, os.O_PATH)
    except OSError:
        there = posixpath.join(posixpath.dirname(true_path(link)), os.readlink("", dir_fd=link))
        return posixpath.normpath(there)
    try:
        return true_path(fd)
    finally:
        os.close(fd)


def go_mode(mode: int) -> int:
    """The bits of Go's os.FileMode."""
    bits = (mode & 0o777) | _SPECIAL.get(stat.S_IFMT(mode), 0)
    for flag, there in (
        (_GO_SETUID, stat.S_ISUID), (_GO_SETGID, stat.S_ISGID), (_GO_STICKY, stat.S_ISVTX)
    ):  # fmt: skip
        bits |= flag if mode & there else 0
    return bits


def pack(root: int, path: str, out: IO[bytes], volumes: frozenset[str]) -> None:
    """Write `path` and all below as a tar, named as Docker names it.

    Of what is mounted below `path`, only `volumes` (destinations) are gone into.
    """
    name = base_name(plain(path))
    fd = find(root, path)
    try:
        with tar_stream(out) as tar:
            _Packer(tar, volumes).add(fd, "" if name == "/" else name, true_path(fd))
    finally:
        os.close(fd)


def pack_root(root: int, out: IO[bytes]) -> None:
    """Write all that is below `root`, without `root` itself and without what is mounted there."""
    with tar_stream(out) as tar:
        _Packer(tar, frozenset()).add_content(root, "", "/", os.fstat(root).st_dev)


@contextlib.contextmanager
def tar_stream(out: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """A tar that is written as it comes; one that fails is left without its end."""
    tar = tarfile.open(  # noqa: SIM115
        fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK,
        encoding="utf-8", errors="surrogateescape",
    )  # fmt: skip
    try:
        yield tar
        tar.close()
    finally:
        tar.fileobj.closed = True  # type: ignore[attr-defined]  # or it writes when it is collected


class _Packer:
    """Writes a tar from descriptors."""

    def __init__(self, tar: tarfile.TarFile, volumes: frozenset[str]) -> None:
        self._tar = tar
        self._volumes = volumes
        self._links: dict[tuple[int, int], str] = {}

    def add(self, fd: int, name: str, path: str, depth: int = 0) -> None:
        """A file or folder with all below it. `path`: where it is in the container."""
        info = os.fstat(fd)
        member = header(fd, info, name)
        if member is None:
            return
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            known = self._links.setdefault((info.st_dev, info.st_ino), name)
            if known != name:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, known, 0
        if member.isreg():
            self._add_file(fd, member)
            return
        if member.isdir() and not name:
            member.name = "/"
        self._tar.addfile(member)
        self._tar.members = []  # type: ignore[attr-defined]  # or it remembers every one
        if member.isdir():
            self.add_content(fd, f"{name}/", path, info.st_dev, depth)

    def add_content(self, fd: int, prefix: str, path: str, device: int, depth: int = 0) -> None:
        """All that is in the folder `fd`. `device`: what lies on another is mounted there."""
        if depth > _MAX_DEPTH:
            raise Invalid(f"{path[:80]}… is more than {_MAX_DEPTH} folders deep")
        folder = os.open(".", FOLDER | os.O_CLOEXEC, dir_fd=fd)
        try:
            for name in sorted(os.listdir(folder)):
                inner = f"{path.rstrip('/')}/{name}"
                try:
                    entry = os.open(name, _LOOK | os.O_CLOEXEC, dir_fd=folder)
                except FileNotFoundError:
                    continue  # gone since
                try:
                    self._add_entry(entry, prefix + name, inner, device, depth)
                finally:
                    os.close(entry)
        finally:
            os.close(folder)

    def _add_entry(self, fd: int, name: str, path: str, device: int, depth: int) -> None:
        info = os.fstat(fd)
        mounted = stat.S_ISDIR(info.st_mode) and info.st_dev != device
        if not mounted or path in self._volumes:
            self.add(fd, name, path, depth + 1)
        elif (member := header(fd, info, name)) is not None:
            self._tar.addfile(member)

    def _add_file(self, fd: int, member: tarfile.TarInfo) -> None:
        with open(reopen(fd, os.O_RDONLY | os.O_NOATIME), "rb", buffering=0) as file:
            begin = b"" if member.size else _unmeasured(file)
            member.size = member.size or len(begin)
            self._tar.addfile(member, Exactly(file, member.size, begin))
        self._tar.members = []  # type: ignore[attr-defined]


def _unmeasured(file: IO[bytes]) -> bytes:
    """The content of a file that says it is empty, as those of /proc do; a limit's worth of it."""
    data = b""
    while len(data) < _UNMEASURED and (piece := file.read(_UNMEASURED - len(data))):
        data += piece
    return data


class Exactly:
    """A file of a fixed length, whatever the container does to it meanwhile."""

    def __init__(self, file: IO[bytes], size: int, begin: bytes = b"") -> None:
        """`begin`: what has been read of it already."""
        self._file = file
        self._begin = begin
        self._left = size

    def read(self, size: int = _CHUNK, /) -> bytes:
        wanted = min(size, self._left)
        data, self._begin = self._begin[:wanted], self._begin[wanted:]
        while len(data) < wanted and (piece := self._file.read(wanted - len(data))):
            data += piece
        self._left -= wanted
        return data.ljust(wanted, b"\0")


def header(fd: int, info: os.stat_result, name: str) -> tarfile.TarInfo | None:
    """A file's member without its content; None for a socket, which no tar can hold."""
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
    member.mtime = int(info.st_mtime)
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFREG:
        member.size = info.st_size
        _add_capability(fd, member)
    elif kind == stat.S_IFDIR:
        member.type = tarfile.DIRTYPE
    elif kind == stat.S_IFLNK:
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink("", dir_fd=fd)
    elif kind == stat.S_IFIFO:
        member.type = tarfile.FIFOTYPE
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        member.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    else:
        return None
    return member


def _add_capability(fd: int, member: tarfile.TarInfo) -> None:
    try:
        value = os.getxattr(f"/proc/self/fd/{fd}", _CAPABILITY)
    except OSError:
        return
    text = value.decode("utf-8", "surrogateescape")
    member.pax_headers = {f"SCHILY.xattr.{_CAPABILITY}": text}
