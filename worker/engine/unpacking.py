"""A tar unpacked into a container: `docker cp` into it. Blocking.

As with layers, every name is resolved inside the container's root. What differs: the container may
run while we write, marks of layers mean nothing, and what stands in the way may be refused.
"""

import os
import stat
import tarfile
import zlib
from typing import IO, NamedTuple

from common.errors import Invalid, NotFound
from worker.engine.rootfs import open_inside
from worker.images.unpack import SafeTarInfo, Tree
from worker.runtime import users

_CHUNK = 256 * 1024
_MAX_MEMBERS = 5_000_000
_ETC_LIMIT = 1 << 20  # bytes of passwd and of group that are read


class Owner(NamedTuple):
    """Who everything is given to, instead of who the tar names."""

    uid: int
    gid: int


class _Target(Tree):
    """The container's root, with all members put below one folder of it."""

    def __init__(self, root: int, folder: str, keep_kinds: bool, owner: Owner | None) -> None:
        super().__init__(root, owner=True)
        self._folder_name = folder.strip("/")
        self._keep_kinds = keep_kinds
        self._give_to = owner

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        clean = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if not clean and not member.isdir():
            raise Invalid("a member of the archive has no name")
        if not clean:
            return  # the folder itself stays as it is
        if ".." in clean.split("/"):
            raise Invalid(f"{member.name!r} in the archive leads out of the target")
        if self._give_to is not None:
            member.uid, member.gid = self._give_to
        member.name = self._below(clean)
        if member.islnk():
            member.linkname = self._below(member.linkname)
        super().add(member, tar)

    def _below(self, name: str) -> str:
        return f"{self._folder_name}/{name}"

    def _make(
        self, parent: int, base: str, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile
    ) -> None:
        if self._keep_kinds:
            _refuse_other_kind(parent, base, name, member)
        super()._make(parent, base, name, member, tar)

    def _node(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        """The mode comes with the node: a later chmod by name could be led astray."""
        kind = stat.S_IFIFO
        if not member.isfifo():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        device = 0 if kind == stat.S_IFIFO else os.makedev(member.devmajor, member.devminor)
        if kind == stat.S_IFCHR and device == 0:
            raise Invalid(f"{member.name!r} in the archive is a device 0:0, overlayfs' own mark")
        os.mknod(base, kind | (member.mode & 0o777), device, dir_fd=parent)
        self._give(parent, base, member)


def _refuse_other_kind(parent: int, base: str, name: str, member: tarfile.TarInfo) -> None:
    try:
        there = os.stat(base, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(there.st_mode) and not member.isdir():
        raise Invalid(f'cannot overwrite directory "/{name}" with non-directory')
    if not stat.S_ISDIR(there.st_mode) and member.isdir():
        raise Invalid(f'cannot overwrite non-directory "/{name}" with directory')


def unpack(
    root: int, path: str, source: IO[bytes], keep_kinds: bool, owner: Owner | None
) -> None:  # fmt: skip
    """Unpack `source` into the folder `path` below `root`, which is closed.

    `keep_kinds`: refuse a folder where there is a file, and the other way round. Raises NotFound,
    Invalid.
    """
    target = _Target(root, path, keep_kinds, owner)
    try:
        _check_folder(root, path)
        with tarfile.open(
            fileobj=source, mode="r|*", bufsize=_CHUNK, tarinfo=SafeTarInfo,
            encoding="utf-8", errors="surrogateescape",
        ) as tar:  # fmt: skip
            for count, member in enumerate(tar):
                if count >= _MAX_MEMBERS:
                    raise Invalid(f"the archive has more than {_MAX_MEMBERS} members")
                target.add(member, tar)
                tar.members = []  # type: ignore[attr-defined]  # or it remembers every one
        target.finish()
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise Invalid(f"the archive is damaged: {error}") from error
    except OSError as error:
        raise Invalid(f"cannot copy into {path}: {error.strerror or error}") from error
    finally:
        target.close()


def _check_folder(root: int, path: str) -> None:
    try:
        os.close(open_inside(root, path, os.O_PATH | os.O_DIRECTORY))
    except FileNotFoundError:
        raise NotFound(f"Could not find the file {path} in container") from None
    except NotADirectoryError:
        raise Invalid("extraction point is not a directory") from None


def owner_of(root: int, user: str) -> Owner:
    """The container's user by its own passwd and group files. Raises Invalid."""
    try:
        account = users.resolve(user, (), _etc(root, "passwd"), _etc(root, "group"))
    except users.UserError as error:
        raise Invalid(str(error)) from error
    return Owner(account.uid, account.gid)


def _etc(root: int, name: str) -> str:
    try:
        fd = open_inside(root, f"/etc/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_ETC_LIMIT).decode(errors="replace")
