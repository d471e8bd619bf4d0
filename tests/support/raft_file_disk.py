"""The real disk of a Raft member on faulty files: it takes time, fails, fills up, loses power."""

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from manager.raft.disk import FileDisk
from manager.raft.message import Entry, HardState
from tests.support.faulty_files import FaultyFolder, Image

SEGMENT_BYTES = 8 << 10
KILLED = 0.3  # of the crashes are of the process only

_T = TypeVar("_T")


class FaultyFileDisk(FileDisk):
    """One run of a member on its folder; `crash` ends it. Looks like `raft_disk.FakeDisk`."""

    def __init__(
        self, path: Path, folder: FaultyFolder, member_id: str, rng: random.Random
    ) -> None:
        super().__init__(path, member_id, segment_bytes=SEGMENT_BYTES)
        self.folder = folder
        self.slowness_s = 0.0
        self.running = asyncio.Event()  # clear while the process is paused
        self.running.set()
        self.written: list[Entry] = []  # drained by the checker
        self._rng = rng
        self._flying: list[Callable[[], object]] = []  # writes of the log that are to come
        self._crashed = False
        self._broken = False

    @property
    def broken(self) -> bool:
        """Whether it has failed, or is to fail with the next write."""
        return self._broken or self._crashed

    @broken.setter
    def broken(self, broken: bool) -> None:
        self._broken = self.folder.full = broken

    def fail_at(self, step: int) -> None:
        """Let the power fail before write or sync number `step`."""
        self.folder.fails_at = step
        self._broken = True

    async def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        await super().write(hard_state, entries)
        self.written.extend(entries)

    def crash(self) -> None:
        """The process or the whole machine ends, perhaps in the middle of a write."""
        self._crashed = True
        if self._flying and self._rng.random() < 0.7:
            self.folder.fails_at = self.folder.steps + self._rng.randrange(1, 6)
            try:
                self._flying[0]()
            except OSError:
                return
        if self._rng.random() < KILLED:
            self.folder.kill()
        else:
            self.folder.lose_power()

    def left(self) -> Image:
        """What the next run finds."""
        return self.folder.lose_power()

    async def _run(self, thread: Executor, function: Callable[[], _T]) -> _T:
        is_log = thread is self._log_thread
        if is_log:
            self._flying.append(function)
        await asyncio.sleep(self._rng.uniform(0.0005, 0.01) + self.slowness_s)
        await self.running.wait()
        if self._crashed:
            await asyncio.Event().wait()  # the process is gone; nothing of it goes on
        if is_log:
            self._flying.remove(function)
        return await super()._run(thread, function)
