"""A container's log: frames of (time, stream, length) and the bytes just as they were read.

One frame for each read of the keeper, not for each line: lines are cut when somebody reads. Files
are NAME, NAME.1 (older), NAME.2 …; a frame lies whole in one file.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

STDOUT, STDERR = 1, 2
NAME = "container.log"
_HEADER = struct.Struct("<QIHBx")  # time, length, mark, stream
_MARK = 0x534C
HEADER_SIZE = _HEADER.size
_LARGEST = 1 << 20


class Frame(NamedTuple):
    """`end` is the offset behind it."""

    time_ns: int
    stream: int
    data: bytes
    end: int


class Writer:
    """Appends frames and rotates. `max_size` 0: one file without limit."""

    def __init__(self, path: str, max_size: int, max_files: int) -> None:
        self._path = path
        self._max_size = max_size
        self._max_files = max(max_files, 1)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, data: bytes, time_ns: int) -> None:
        """Raises OSError if the disk is full; what was written in part is taken back."""
        if self._max_size and self._size and self._size + len(data) > self._max_size:
            self._rotate()
        header = _HEADER.pack(time_ns, len(data), _MARK, stream)
        written = os.writev(self._fd, (header, data))
        if written != len(header) + len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError(28, "the disk is full")
        self._size += written

    def _rotate(self) -> None:
        os.close(self._fd)
        for number in range(self._max_files - 1, 0, -1):
            older = f"{self._path}.{number - 1}" if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.rename(older, f"{self._path}.{number}")
        if self._max_files == 1:
            os.unlink(self._path)
        self._open()

    def close(self) -> None:
        os.close(self._fd)


def read_frame(fd: int, offset: int) -> Frame | None:
    """The frame at `offset`; None at the end, or where one is not whole (yet)."""
    header = os.pread(fd, HEADER_SIZE, offset)
    if len(header) < HEADER_SIZE:
        return None
    time_ns, length, mark, stream = _HEADER.unpack(header)
    if mark != _MARK or length > _LARGEST:
        return None
    data = os.pread(fd, length, offset + HEADER_SIZE)
    if len(data) < length:
        return None
    return Frame(time_ns, stream, data, offset + HEADER_SIZE + length)


def frames(fd: int, offset: int = 0) -> Iterator[Frame]:
    """All whole frames from `offset` on."""
    while (frame := read_frame(fd, offset)) is not None:
        yield frame
        offset = frame.end


def repair(path: str) -> None:
    """Cut a torn frame off the end, which a power cut can leave."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        end = 0
        for frame in frames(fd):
            end = frame.end
        if end != os.fstat(fd).st_size:
            os.ftruncate(fd, end)
    finally:
        os.close(fd)
