"""Real files of which a power failure loses what was not synced, sector by sector, in any order.

The code under test works on a real folder, through its own module `os` that this one counts the
steps of: each write and each sync is a step at which power can fail or the disk be full. What a
sync has made durable is remembered; everything else may or may not reach the platter:

- of a file, any subset of the sectors that differ from the last sync of the file,
- of the folder, any subset of the names that were made, replaced or removed since its last sync.
"""

import contextlib
import errno
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from types import ModuleType
from typing import Any

from manager.raft.wal import SECTOR

Image = dict[str, bytes]  # a folder: what each name holds


class PowerLost(OSError):
    """The machine is off; whatever the code under test still does has no effect."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the power failed")


class FaultyFolder:
    """One folder from a start to a power failure."""

    def __init__(self, path: Path, image: Image, rng: random.Random) -> None:
        self.steps = 0
        self.fails_at = 0  # the step before which power fails; 0: none
        self.full = False
        self._path = path
        self._rng = rng
        self._left: Image | None = None  # what the power failure has left
        self._names: dict[str, int] = {}  # durable names, and the inodes that they stand for
        self._contents: dict[int, bytes] = {}  # durable contents by inode
        self._pins: dict[int, int] = {}  # open files: their inodes are not given out again
        path.mkdir(parents=True)
        for name, data in image.items():
            (path / name).write_bytes(data)
        for name, inode in self._present().items():
            self._keep(path / name, inode)
        self._names = self._present()

    def step(self) -> None:
        """Something is about to be written or synced. Raises PowerLost, or ENOSPC."""
        self.steps += 1
        if self.fails_at and self.steps >= self.fails_at:
            self.lose_power()
        if self._left is not None:
            raise PowerLost
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def synced(self, handle: int) -> None:
        """What `handle` stands for is durable from now on."""
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            self._names = self._present()
        else:
            self._keep(Path(f"/proc/self/fd/{handle}"), os.fstat(handle).st_ino)

    def lose_power(self) -> Image:
        """What is found at the next start."""
        if self._left is None:
            self._left = dict(self._survivors())
            self._end()
        return self._left

    def kill(self) -> Image:
        """The process ends but the machine goes on: everything written is there."""
        if self._left is None:
            self._left = {name: (self._path / name).read_bytes() for name in self._present()}
            self._end()
        return self._left

    def _end(self) -> None:
        for pin in self._pins.values():
            os.close(pin)
        self._pins.clear()
        shutil.rmtree(self._path)

    def _present(self) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(self._path)}

    def _keep(self, path: Path, inode: int) -> None:
        self._contents[inode] = path.read_bytes()
        if inode not in self._pins:
            self._pins[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _survivors(self) -> Iterator[tuple[str, bytes]]:
        present = self._present()
        for name in sorted(self._names.keys() | present):
            old, new = self._names.get(name), present.get(name)
            if old == new or self._rng.getrandbits(1):
                old = new
            if old is not None:
                yield name, self._content(old, name if old == new else "")

    def _content(self, inode: int, name: str) -> bytes:
        """The content of a file, with some of its unsynced sectors."""
        old = self._contents.get(inode, b"")
        new = (self._path / name).read_bytes() if name else old
        size = self._rng.choice((len(old), len(new)))
        sectors = [self._rng.choice((old, new)) for _ in range(0, size, SECTOR)]
        pieces = (
            data[number * SECTOR : (number + 1) * SECTOR].ljust(SECTOR, b"\0")
            for number, data in enumerate(sectors)
        )
        return b"".join(pieces)[:size]


class FaultyFiles:
    """All folders of a simulation, in a scratch folder; a context, in which they are in force."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._folders: dict[str, FaultyFolder] = {}

    def folder(self, image: Image, rng: random.Random) -> tuple[Path, FaultyFolder]:
        path = self._scratch / f"{len(self._folders)}"
        folder = self._folders[path.name] = FaultyFolder(path, image, rng)
        return path, folder

    def of(self, handle: int) -> FaultyFolder | None:
        """The folder that the open file or folder `handle` is in."""
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if not path.is_relative_to(self._scratch):
            return None
        return self._folders[path.relative_to(self._scratch).parts[0]]

    @contextlib.contextmanager
    def in_force(self, package: str) -> Iterator[None]:
        """The modules of `package` see these files' `os` in the place of the real one.

        And no threads: what they give to one is done at once, so that runs can be replayed.
        """
        replaced = {"os": _CountingOs(self), "ThreadPoolExecutor": _NoThread}
        before = [
            (vars(module), name, vars(module)[name])
            for module_name, module in sys.modules.items()
            for name in replaced
            if module_name.startswith(f"{package}.") and name in vars(module)
        ]
        try:
            for names, name, _ in before:
                names[name] = replaced[name]
            yield
        finally:
            for names, name, real in before:
                names[name] = real


class _NoThread(Executor):
    """Does at once what it is given."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **named))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever looks at the future
            done.set_exception(error)
        return done


class _CountingOs(ModuleType):
    """`os`, but writes and syncs are steps of the folder they are in; nothing is really synced."""

    def __init__(self, files: FaultyFiles) -> None:
        super().__init__("os")
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, handle: int, data: bytes) -> int:
        self._step(handle)
        return os.write(handle, data)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        self._step(handle)
        return os.pwrite(handle, data, offset)

    def fsync(self, handle: int) -> None:
        folder = self._step(handle)
        if folder is None:
            os.fsync(handle)
        else:
            folder.synced(handle)

    fdatasync = fsync

    def _step(self, handle: int) -> FaultyFolder | None:
        folder = self._files.of(handle)
        if folder is not None:
            folder.step()
        return folder
