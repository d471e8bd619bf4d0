"""Unpacking one layer, as hostile input, into the form overlayfs wants.

Run in a thread for small layers, and as a program for large ones, so that the daemon's loop and
memory do not feel them: `python -m worker.images.unpack ARCHIVE FOLDER MAX_BYTES` prints
`DIFF_ID SIZE`.

Names are resolved by the kernel inside the layer's folder (openat2 with RESOLVE_IN_ROOT), so no
`..`, absolute name or link leads out of it. The rules of layers: OCI image specification, layer.md.
"""

import contextlib
import errno
import hashlib
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from common.errors import Invalid, ShoalError
from worker.runtime.syscalls import RESOLVE_IN_ROOT, openat2

_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE = RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_CHUNK = 256 * 1024
_MAX_HEADER = 1024 * 1024  # bytes of one extended header
_MAX_MEMBERS = 5_000_000
_MAX_DEPTH = 256  # folders above a file
_MACHINE_FAULTS = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.EPERM,
        errno.EACCES,
        errno.ENOMEM,
    )
)
_XATTR = "SCHILY.xattr."
_ZSTD_WINDOW = 128 * 1024 * 1024  # what a frame may make us hold in memory


class Unpacked(msgspec.Struct, frozen=True):
    """What a layer came to."""

    diff_id: str  # digest of the tar, uncompressed
    size: int  # bytes of its files


class SafeTarInfo(tarfile.TarInfo):
    """Refuses extended headers that would fill the memory."""

    def _proc_pax(self, tar: tarfile.TarFile) -> Any:
        self._check_header()
        return super()._proc_pax(tar)  # type: ignore[misc]

    def _proc_gnulong(self, tar: tarfile.TarFile) -> Any:
        self._check_header()
        return super()._proc_gnulong(tar)  # type: ignore[misc]

    def _check_header(self) -> None:
        if self.size > _MAX_HEADER:
            raise Invalid(f"a header of {self.size} bytes in a layer; at most {_MAX_HEADER} can be")


class _Plain:
    """The uncompressed bytes: hashed and counted as they pass."""

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._rest = b""
        self._left = limit
        self._limit = limit
        self.hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._left -= len(chunk)
            if self._left < 0:
                raise Invalid(f"a layer unpacks to more than {self._limit} bytes")
            self.hash.update(chunk)
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def drain(self) -> None:
        """To the end: what follows the tar's end mark counts for the digest."""
        while self.read(_CHUNK):
            pass


class Tree:
    """A folder that is filled from a tar's members, none of which can lead out of it."""

    def __init__(self, root: int, owner: bool) -> None:
        """`root`, the folder's descriptor, is closed by `close`."""
        self._root = root
        self._owner = owner  # whether we may give files away and make devices
        self._times: list[tuple[str, float]] = []
        self._parent_name: str | None = None
        self._parent = -1
        self.size = 0

    def close(self) -> None:
        self._forget_parent()
        os.close(self._root)

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        name = _clean(member.name)
        if not name:
            if member.isdir():
                self._finish_folder(self._root, ".", member)
            return
        folder, _, base = name.rpartition("/")
        parent = self._open_parent(folder)
        if not self._special(parent, base):
            self._make(parent, base, name, member, tar)

    def finish(self) -> None:
        """Times of folders, which the files made in them have changed."""
        for name, moment in reversed(self._times):
            with contextlib.suppress(OSError):
                descriptor = openat2(self._root, name, _FOLDER | os.O_NOFOLLOW, _RESOLVE)
                try:
                    os.utime(descriptor, (moment, moment))
                finally:
                    os.close(descriptor)

    def _special(self, parent: int, base: str) -> bool:
        """Whether a member is no file but a mark, and has been dealt with."""
        return False

    def _make(
        self, parent: int, base: str, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile
    ) -> None:
        if member.isdir():
            self._folder(parent, base, name, member)
            return
        _clear(parent, base)
        if member.islnk():
            self._hard_link(parent, base, member)
        elif member.issym():
            os.symlink(member.linkname, base, dir_fd=parent)
            self._give(parent, base, member)
            os.utime(base, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
        elif member.isreg():
            self._file(parent, base, member, tar)
        elif member.ischr() or member.isblk() or member.isfifo():
            self._node(parent, base, member)
        else:
            raise Invalid(f"layer member {member.name!r} is of a kind that cannot be unpacked")

    def _folder(self, parent: int, base: str, name: str, member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(base, 0o755, dir_fd=parent)
        except FileExistsError:
            there = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(there.st_mode):
                _clear(parent, base)
                os.mkdir(base, 0o755, dir_fd=parent)
        descriptor = os.open(base, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self._finish_folder(descriptor, name, member)
        finally:
            os.close(descriptor)

    def _finish_folder(self, descriptor: int, name: str, member: tarfile.TarInfo) -> None:
        self._dress(descriptor, member)
        self._times.append((name, member.mtime))

    def _file(self, parent: int, base: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(base, flags, 0o600, dir_fd=parent)
        with os.fdopen(descriptor, "wb") as out:
            source = tar.extractfile(member)
            assert source is not None
            while chunk := source.read(_CHUNK):
                self.size += out.write(chunk)
            out.flush()
            self._dress(descriptor, member)
            os.utime(descriptor, (member.mtime, member.mtime))

    def _hard_link(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        """To a file of the same layer; a link to a link is a link to itself, not to its target."""
        folder, _, target = _clean(member.linkname).rpartition("/")
        try:
            source = openat2(self._root, folder or ".", _FOLDER, _RESOLVE)
        except OSError as error:
            raise _no_target(member) from error
        try:
            os.link(target, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise _no_target(member) from error
        finally:
            os.close(source)

    def _node(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        """A device is only a name here: what a container may open, its device cgroup says."""
        kind = stat.S_IFIFO
        if not member.isfifo():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        device = os.makedev(member.devmajor, member.devminor)
        if kind == stat.S_IFCHR and device == 0:
            raise Invalid(f"layer member {member.name!r} is a device 0:0, overlayfs' own mark")
        if kind == stat.S_IFIFO or self._owner:
            os.mknod(base, kind | 0o600, 0 if kind == stat.S_IFIFO else device, dir_fd=parent)
            self._give(parent, base, member)
            os.chmod(base, member.mode & 0o7777, dir_fd=parent)

    def _dress(self, descriptor: int, member: tarfile.TarInfo) -> None:
        """Owner, then mode and attributes, which a change of owner would take away."""
        if self._owner:
            os.fchown(descriptor, _id(member.uid), _id(member.gid))
        os.fchmod(descriptor, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                self._attribute(descriptor, key.removeprefix(_XATTR), value)

    def _attribute(self, descriptor: int, name: str, value: str) -> None:
        """Only the harmless ones: `trusted.overlay.*` would steer overlayfs itself."""
        allowed = name.startswith("user.") or (name == "security.capability" and self._owner)
        if allowed:
            with contextlib.suppress(OSError):  # as Docker: the file system may not have them
                raw = value.encode("utf-8", "surrogateescape")
                os.setxattr(descriptor, name, raw)

    def _give(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        if self._owner:
            uid, gid = _id(member.uid), _id(member.gid)
            os.chown(base, uid, gid, dir_fd=parent, follow_symlinks=False)

    def _open_parent(self, folder: str) -> int:
        """The folder a member goes into; made if the archive has no entry for it."""
        if folder == self._parent_name:
            return self._parent
        self._forget_parent()
        self._parent = self._reach(folder)
        self._parent_name = folder
        return self._parent

    def _reach(self, folder: str) -> int:
        try:
            return openat2(self._root, folder or ".", _FOLDER, _RESOLVE)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Invalid(f"layer member in {folder!r}: {error.strerror}") from error
        above, _, base = folder.rpartition("/")
        parent = self._reach(above)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(base, 0o755, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            return openat2(self._root, folder, _FOLDER, _RESOLVE)
        except OSError as error:  # a dangling link stands there
            raise Invalid(f"layer member in {folder!r}: {error.strerror}") from error

    def _forget_parent(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
        self._parent, self._parent_name = -1, None


class _Layer(Tree):
    """A layer of an image, whose whiteouts become overlayfs' own."""

    def _special(self, parent: int, base: str) -> bool:
        if base.startswith(WHITEOUT):
            self._whiteout(parent, base)
            return True
        return False

    def _whiteout(self, parent: int, base: str) -> None:
        """A mark that hides what lower layers have, in overlayfs' form."""
        if base == OPAQUE:
            os.setxattr(parent, "trusted.overlay.opaque", b"y")
            return
        hidden = base.removeprefix(WHITEOUT)
        if hidden.startswith(WHITEOUT):
            return  # marks of aufs about itself
        if hidden in ("", ".", ".."):
            raise Invalid(f"layer member {base!r} hides no file")
        with contextlib.suppress(FileExistsError):  # this layer has it anew: it shows, not hidden
            os.mknod(hidden, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=parent)


def unpack(archive: Path, folder: Path, max_bytes: int) -> Unpacked:
    """Fill the empty `folder` from a layer: a tar, plain or compressed with gzip or zstd.

    Synced when it returns. Raises Invalid, OSError.
    """
    with archive.open("rb") as source:
        plain = _Plain(decompressed(source), max_bytes)
        layer = _Layer(os.open(folder, _FOLDER), os.geteuid() == 0)
        try:
            _members(plain, layer)
            plain.drain()
            layer.finish()
        except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:
            raise Invalid(f"a layer is damaged: {error}") from error
        except OSError as error:
            if error.errno in _MACHINE_FAULTS:
                raise
            raise Invalid(f"a layer cannot be unpacked: {error}") from error
        finally:
            layer.close()
    _sync(folder)
    return Unpacked(f"sha256:{plain.hash.hexdigest()}", layer.size)


def decompressed(source: IO[bytes]) -> Iterator[bytes]:
    """The chunks of a file, decompressed as its first bytes say. Raises Invalid."""
    head = source.read(6)
    source.seek(0)
    if head[:2] == b"\x1f\x8b":
        return _gunzip(source)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return _unzstd(source)
    if head[:3] == b"BZh" or head == b"\xfd7zXZ\0":
        raise Invalid("a layer compressed with bzip2 or xz cannot be unpacked: use gzip or zstd")
    return iter(lambda: source.read(_CHUNK), b"")


def _gunzip(source: IO[bytes]) -> Iterator[bytes]:
    """All members of a gzip file, one after the other; ours never holds more than a chunk."""
    data = source.read(_CHUNK)
    while data:
        engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not engine.eof:
            if not data:
                raise Invalid("a layer is damaged: its gzip data end too early")
            if chunk := engine.decompress(data, _CHUNK):
                yield chunk
            if not engine.eof:
                data = engine.unconsumed_tail or source.read(_CHUNK)
        data = engine.unused_data or source.read(_CHUNK)
        if not data.strip(b"\0"):  # padding, as gzip(1) tolerates
            return


def _unzstd(source: IO[bytes]) -> Iterator[bytes]:
    import zstandard  # only when needed: 2 MB of memory

    engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with engine.stream_reader(source, read_across_frames=True, closefd=False) as reader:
        try:
            while chunk := reader.read(_CHUNK):
                yield chunk
        except zstandard.ZstdError as error:
            raise Invalid(f"a layer is damaged: {error}") from error


def _members(plain: _Plain, layer: _Layer) -> None:
    with tarfile.open(
        fileobj=plain,  # type: ignore[call-overload]
        mode="r|",
        bufsize=_CHUNK,
        tarinfo=SafeTarInfo,
        errors="surrogateescape",
    ) as tar:
        for count, member in enumerate(tar):
            if count >= _MAX_MEMBERS:
                raise Invalid(f"a layer has more than {_MAX_MEMBERS} files")
            layer.add(member, tar)
            tar.members = []  # or it remembers every one


def _clean(name: str) -> str:
    """A member's name without what means nothing. Raises Invalid for `..`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Invalid(f"layer member {name!r} leads out of the layer")
    if len(parts) > _MAX_DEPTH:
        raise Invalid(f"layer member {name[:40]!r}… is more than {_MAX_DEPTH} folders deep")
    return "/".join(parts)


def _clear(parent: int, base: str) -> None:
    """Remove what an earlier member put there."""
    try:
        there = os.stat(base, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Invalid(f"layer member {base[:40]!r}…: {error.strerror}") from error
    if not stat.S_ISDIR(there.st_mode):
        os.unlink(base, dir_fd=parent)
        return
    import shutil  # rare

    shutil.rmtree(base, dir_fd=parent)


def _id(number: int) -> int:
    return number if 0 <= number < 2**32 - 1 else 0


def _no_target(member: tarfile.TarInfo) -> Invalid:
    return Invalid(
        f"layer member {member.name!r} is a link to {member.linkname!r}, which the layer lacks"
    )


def _sync(folder: Path) -> None:
    """All of the file system: thousands of small files are not synced one by one."""
    import ctypes

    descriptor = os.open(folder, _FOLDER)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(descriptor)


def main() -> int:
    """Exit code 0: done; 3: the layer is at fault; 4: the machine is, errno first on the line."""
    archive, folder, max_bytes = sys.argv[1:]
    try:
        done = unpack(Path(archive), Path(folder), int(max_bytes))
    except ShoalError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except OSError as error:
        sys.stderr.write(f"{error.errno} {error}\n")
        return 4
    sys.stdout.write(f"{done.diff_id} {done.size}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
