"""Making files that are whole or not there, and removing them for good. Blocking."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_PIECE = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make created, renamed and removed names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def create(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Make `path` hold `pieces`, replacing it: after a crash it is as before or complete."""
    temporary = path.with_name(path.name + ".tmp")
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
    handle = os.open(temporary, flags, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(handle, view[:_PIECE]) :]
        os.fsync(handle)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk its room is needed
        raise
    finally:
        os.close(handle)
    temporary.rename(path)
    sync_folder(path.parent)


def read_back(path: Path) -> bytes:
    """What is in `path` on the disk itself, not only in memory.

    What a process wrote and did not sync before it was killed is still in memory, and would be
    taken for durable; it is synced first. After a sync that failed, memory holds what the disk
    does not; so memory is dropped before reading.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read()
    finally:
        os.close(handle)


def write_at(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
