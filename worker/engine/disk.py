"""Containers on disk: one folder each, written so that a crash at any moment leaves it readable.

containers/ID/container.json   what was asked for
containers/ID/state.json       what became of it
containers/ID/config.json      the OCI configuration of the last start
containers/ID/{upper,work,rootfs}, hosts, hostname, resolv.conf, keeper.json, container.log
containers/.ID.removing        on its way out
"""

import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from worker.engine.container import Record, State

RECORD, STATE, CONFIG = "container.json", "state.json", "config.json"
_PARTS = ("upper", "work", "rootfs")


class Disk:
    """All blocking: call it in a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, container_id: str) -> Path:
        return self.root / container_id

    def create(self, record: Record) -> None:
        """A container that a user was promised is synced; a task's is made again if it is lost."""
        folder = self.folder(record.id)
        folder.mkdir(parents=True)
        folder.chmod(0o710)
        for part in _PARTS:
            (folder / part).mkdir()
        (folder / "upper").chmod(0o755)
        create(folder / RECORD, msgspec.json.encode(record), sync=not record.owner)

    def save_record(self, record: Record) -> None:
        self._write(self.folder(record.id) / RECORD, record, sync=not record.owner)

    def save_state(self, container_id: str, state: State) -> None:
        """Not synced: after a power cut nothing runs, whatever it says."""
        self._write(self.folder(container_id) / STATE, state, sync=False)

    def _write(self, path: Path, value: object, sync: bool) -> None:
        replace(path, msgspec.json.encode(value), sync)

    def load(self) -> list[tuple[Record, State]]:
        """All containers. What cannot be read was being made or removed, and is cleared away."""
        self.root.mkdir(parents=True, exist_ok=True)
        found = []
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if not entry.is_dir(follow_symlinks=False):
                continue
            loaded = None if entry.name.startswith(".") else self._load(Path(entry.path))
            if loaded is None:
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                found.append(loaded)
        return found

    def _load(self, folder: Path) -> tuple[Record, State] | None:
        try:
            record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None
        if record.id != folder.name:
            return None
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return record, msgspec.json.decode((folder / STATE).read_bytes(), type=State)
        return record, State()

    def remove(self, container_id: str) -> None:
        """First out of sight in one step, so that a crash leaves no half container."""
        gone = self.root / f".{container_id}.removing"
        with contextlib.suppress(FileNotFoundError):
            self.folder(container_id).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def create(path: Path, data: bytes, sync: bool) -> None:
    """Write a new file. A crash meanwhile may leave half of it, so only for what is then cleared.

    One wait for the disk instead of two, which is most of a creation where others write as well:
    the file systems that can be an overlay's upper layer (ext4, xfs, btrfs) write a new file's
    names, and those of its folders, with the file.
    """
    with open(path, "xb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def replace(path: Path, data: bytes, sync: bool) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.rename(path)
    if sync:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
