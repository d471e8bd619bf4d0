"""Files of containers that are kept in memory only, as those of secrets. Blocking.

One tmpfs for the node, which does not swap where the kernel knows how; in it a folder for each
container with its files 0, 1, 2 …. It outlives the daemon, not the machine.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from worker.engine.container import FilePoint
from worker.runtime import syscalls as sc

SIZE = 256 << 20  # bytes of all files
_OPTIONS: dict[str, str | None] = {"size": str(SIZE), "mode": "0700"}
_ATTRIBUTES = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC


class MemoryFiles:
    """The files of all containers of one daemon."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()  # the last removal unmounts; nothing may be written then

    def keep(self, container_ids: Collection[str]) -> None:
        """Remove the files of all other containers, as after a crash."""
        if self._root.is_dir():
            for folder in os.listdir(self._root):
                if folder not in container_ids:
                    self.remove(folder)

    def write(
        self, container_id: str, points: Sequence[FilePoint], contents: Sequence[bytes]
    ) -> None:
        """Give a container its files, in place of any it had."""
        with self._lock:
            self._mount()
            self._write(container_id, points, contents)

    def _write(
        self, container_id: str, points: Sequence[FilePoint], contents: Sequence[bytes]
    ) -> None:
        new, folder = self._root / f"{container_id}.new", self.folder(container_id)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        for number, (point, content) in enumerate(zip(points, contents, strict=True)):
            handle = os.open(new / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(handle, "wb") as file:
                file.write(content)
                os.fchown(handle, point.uid, point.gid)
                os.fchmod(handle, point.mode)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)

    def folder(self, container_id: str) -> Path:
        """Where a container's files are, if it has any."""
        return self._root / container_id

    def missing(self, container_id: str, points: Sequence[FilePoint]) -> bool:
        """Whether the container cannot start for want of its files."""
        folder = self.folder(container_id)
        return any(not (folder / str(number)).exists() for number in range(len(points)))

    def remove(self, container_id: str) -> None:
        """Forget a container's files; with the last of them goes the tmpfs."""
        with self._lock:
            if self._root.is_dir():
                self._remove(container_id)

    def _remove(self, container_id: str) -> None:
        shutil.rmtree(self.folder(container_id), ignore_errors=True)
        shutil.rmtree(self._root / f"{container_id}.new", ignore_errors=True)
        if not os.listdir(self._root):
            with contextlib.suppress(OSError):  # still in use: by the next removal then
                sc.unmount(str(self._root))
            with contextlib.suppress(OSError):
                self._root.rmdir()

    def _mount(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.ismount(self._root):
            return
        try:
            mount = _tmpfs(_OPTIONS | {"noswap": None})
        except OSError:  # before Linux 6.4, or in a user namespace
            mount = _tmpfs(_OPTIONS)
        try:
            sc.move_mount(mount, sc.AT_FDCWD, str(self._root))
        finally:
            os.close(mount)


def _tmpfs(options: dict[str, str | None]) -> int:
    """A mount that is nowhere yet. Raises OSError."""
    context = sc.fsopen("tmpfs")
    try:
        for key, value in options.items():
            sc.fsconfig(context, key, value)
        sc.fsconfig_create(context)
        return sc.fsmount(context, _ATTRIBUTES)
    finally:
        os.close(context)
