"""Zero-filled files made ahead of need, so that going to the next segment costs no time.

A spare has a temporary name: what a crash leaves of it is removed at the next start. A segment
that is not needed any more becomes a spare again: that costs no new space, and a file whose
blocks are there already is cheaper to sync.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from manager.raft import files

SPARES_MAX = 2
_PIECE = bytes(256 << 10)

log = logging.getLogger(__name__)


class Spares:
    """The spare files of one log; called from its thread, filled in a thread of their own."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._thread = ThreadPoolExecutor(1, "raft-spare")
        self._closed = threading.Event()
        self._count = 0  # ready or being filled; changed by the log's thread only
        self._number = 0
        self._ready: deque[Path] = deque()
        self._failed: deque[Path] = deque()  # could not be filled

    def want(self) -> None:
        """See to it that there will be a spare."""
        self._forget_failed()
        if self._count == 0:
            self._fill(self._next_path())

    def take(self) -> Path | None:
        """A file of zeros, on disk; None if there is none now. The caller gives it a name."""
        try:
            path = self._ready.popleft()
        except IndexError:
            return None
        self._count -= 1
        return path

    def recycle(self, paths: Iterable[Path]) -> None:
        """Take over files that are needed no more: they lose their names at once, durably.

        Only when no name can come back by a power failure are their contents touched.
        """
        self._forget_failed()
        kept: list[Path] = []
        gone = 0
        for path in paths:
            gone += 1
            if self._count + len(kept) < SPARES_MAX and path.stat().st_size == self._size:
                kept.append(path.rename(self._next_path()))
            else:
                path.unlink()
        if gone:
            files.sync_folder(self._folder)
        for path in kept:
            self._fill(path)

    def close(self) -> None:
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _next_path(self) -> Path:
        self._number += 1
        return self._folder / f"spare-{self._number}.tmp"

    def _fill(self, path: Path) -> None:
        self._count += 1
        self._thread.submit(self._fill_now, path)

    def _fill_now(self, path: Path) -> None:
        try:
            if self._write_zeros(path):
                self._ready.append(path)
        except OSError as error:
            # Not fatal yet: the log fails only if there is no room when the segment is needed.
            log.warning(
                "cannot prepare the next segment of the Raft log; make room on its disk",
                extra={"path": str(path), "error": error.strerror or str(error)},
            )
            path.unlink(missing_ok=True)
            self._failed.append(path)

    def _write_zeros(self, path: Path) -> bool:
        """Whether it was done; closing cuts it short."""
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            for offset in range(0, self._size, len(_PIECE)):
                if self._closed.is_set():
                    return False
                files.write_at(handle, _PIECE[: self._size - offset], offset)
            os.fsync(handle)
        finally:
            os.close(handle)
        return True

    def _forget_failed(self) -> None:
        while self._failed:
            self._failed.popleft()
            self._count -= 1
