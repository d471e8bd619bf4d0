"""What the network part must know after a restart of the daemon, as small files.

Most describe kernel state, which a crash of the machine takes with it; so they are renamed into
place, and a killed daemon never leaves half a file, but they are not synced to the disk. What a
user was promised is (`sync`).
"""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class Journal:
    """A folder of records: DIRECTORY/KIND/ID.json."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, kind: str, name: str, record: msgspec.Struct, *, sync: bool = False) -> None:
        place = self._place(kind, name)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = place.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(record))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, place)
        if sync:
            _sync(place.parent)

    def remove(self, kind: str, name: str, *, sync: bool = False) -> None:
        self._place(kind, name).unlink(missing_ok=True)
        if sync:
            _sync(self._place(kind, name).parent)

    def get(self, kind: str, name: str, of: type[T]) -> T | None:
        """None also if the record cannot be read: it then describes nothing we could adopt."""
        try:
            return msgspec.json.decode(self._place(kind, name).read_bytes(), type=of)
        except (OSError, msgspec.DecodeError):
            return None

    def load(self, kind: str, of: type[T]) -> dict[str, T]:
        """All readable records of `kind`; unreadable ones are removed."""
        found: dict[str, T] = {}
        for path in sorted((self._directory / kind).glob("*.json")):
            record = self.get(kind, path.stem, of)
            if record is None:
                path.unlink(missing_ok=True)
            else:
                found[path.stem] = record
        return found

    def _place(self, kind: str, name: str) -> Path:
        return self._directory / kind / f"{name}.json"


def _sync(folder: Path) -> None:
    """The names in `folder` survive a power cut, and so does its own."""
    for path in (folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
