"""Volumes of one node: folders that outlive containers.

volumes/NAME/_data        the content, or where it is mounted if the volume has options
volumes/NAME/filling      while the image's content is copied into a new one
volumes/NAME/pending      while the container that it is for is being made, or removed with it
volumes/NAME/volume.json  labels and when it was made; written last, so it marks a whole volume
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from common.clock import Clock
from common.errors import Conflict, Invalid, NotFound, NotImplementedHere
from common.ids import Ids
from worker.volumes import mounting, options
from worker.volumes.holds import Holds
from worker.volumes.measure import folder_size

_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$")
_FILLER = "filling"  # who holds a volume while it is filled
_META, _FILLING, _PENDING = "volume.json", "filling", "pending"
ANONYMOUS = "com.docker.volume.anonymous"

_log = logging.getLogger(__name__)

Filters = dict[str, list[str]]
Names = list[str]
Publish = Callable[[str, str, str, dict[str, str]], None]


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    created_at: dt.datetime
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, str] = msgspec.field(default_factory=dict)


class Volumes:
    """Named and anonymous volumes. `in_use(name)` gives the ids of containers that have it."""

    def __init__(
        self,
        root: Path,
        clock: Clock,
        ids: Ids,
        publish: Publish,
        in_use: Callable[[str], list[str]],
    ) -> None:
        self._root = root
        self._clock = clock
        self._ids = ids
        self._publish = publish
        self._in_use = in_use
        self._volumes: dict[str, Volume] = {}
        self._holds = Holds()
        # Held by who makes or fills a volume, and gone with the last of them.
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """Find what is on disk; a half-made or half-removed volume is cleared away."""
        self._volumes = await asyncio.to_thread(self._load)
        for name in self._volumes:
            if not self._in_use(name):
                await asyncio.to_thread(mounting.detach, self.path(name))
                await asyncio.to_thread(self._empty_half_filled, name)
        for name in list(self._volumes):
            if not self._in_use(name) and (self._root / name / _PENDING).exists():
                del self._volumes[name]
                await asyncio.to_thread(self._destroy, name)
            else:
                await asyncio.to_thread(self.settle, name)

    def _empty_half_filled(self, name: str) -> None:
        """A crash came while it was filled: the next container that has it fills it again."""
        folder = self._root / name
        if (folder / _FILLING).exists():
            shutil.rmtree(folder / "_data", ignore_errors=True)
            (folder / "_data").mkdir(exist_ok=True)
            (folder / _FILLING).unlink()

    @contextlib.asynccontextmanager
    async def filling(self, name: str) -> AsyncIterator[None]:
        """While what an image has goes into a volume; one at a time fills it."""
        lock = self._busy.setdefault(name, asyncio.Lock())
        mark = self._root / self._find(name).name / _FILLING
        async with lock, self.held((name,), _FILLER):
            empty = not await asyncio.to_thread(os.listdir, self.path(name))
            # What is mounted there is not ours to empty after a crash.
            marked = empty and not self._find(name).options
            if marked:
                await asyncio.to_thread(mark.touch)
            yield
            if marked:
                await asyncio.to_thread(mark.unlink, True)

    def _load(self) -> dict[str, Volume]:
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o701)
        found = {}
        for folder in self._root.iterdir():
            try:
                volume = msgspec.json.decode((folder / _META).read_bytes(), type=Volume)
            except (OSError, msgspec.DecodeError):
                if mounting.holds_mounts(folder):
                    continue  # what is mounted is none of ours to remove
                shutil.rmtree(folder, ignore_errors=True)
            else:
                found[volume.name] = volume
        return found

    def list(self, filters: Filters | None = None) -> list[dict[str, Any]]:
        """Docker's JSON of all that pass: name, label, driver, dangling."""
        wanted = filters or {}
        if unknown := set(wanted) - {"name", "label", "driver", "dangling"}:
            raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
        names = sorted(self._volumes)
        return [self._json(self._volumes[name]) for name in names if self._passes(name, wanted)]

    def _passes(self, name: str, wanted: Filters) -> bool:
        labels = self._volumes[name].labels
        if (values := wanted.get("name")) and not any(value in name for value in values):
            return False
        if not set(wanted.get("driver") or ["local"]) & {"local"}:
            return False
        for text in wanted.get("label") or ():
            key, equals, value = text.partition("=")
            if key not in labels or (equals and labels[key] != value):
                return False
        dangling = wanted.get("dangling") or ()
        return all((v in ("1", "true")) == (not self._in_use(name)) for v in dangling)

    def inspect(self, name: str) -> dict[str, Any]:
        return self._json(self._find(name))

    def _find(self, name: str) -> Volume:
        if name not in self._volumes:
            raise NotFound(f"get {name}: no such volume")
        return self._volumes[name]

    def path(self, name: str) -> Path:
        """Where its content lies."""
        return self._root / self._find(name).name / "_data"

    # --- what is mounted

    async def hold(self, names: Iterable[str], holder: str) -> None:
        """`holder` needs these volumes: those with options are mounted. Raises Invalid,
        Unavailable; `release` what was held by then."""
        for name in names:
            volume = self._volumes.get(name)
            wanted = options.source(volume.options) if volume is not None else None
            if wanted is not None:
                await self._holds.take(name, holder, wanted, self.path(name))

    async def release(self, names: Iterable[str], holder: str) -> None:
        """It needs them no more. Safe to repeat; what cannot be unmounted is logged."""
        for name in names:
            if name in self._volumes and self._volumes[name].options:
                try:
                    await self._holds.give_back(name, holder, self.path(name))
                except OSError as error:
                    _log.error("cannot unmount volume %s: %s", name, error)

    @contextlib.asynccontextmanager
    async def held(self, names: Iterable[str], holder: str) -> AsyncIterator[None]:
        """For as long as this lasts."""
        names = tuple(names)
        try:
            await self.hold(names, holder)
            yield
        finally:
            await self.release(names, holder)

    async def adopt(self, users: dict[str, Iterable[str]]) -> None:
        """At the start, when it is known which containers run: the volumes of each, by its id.
        What is mounted and nobody needs is unmounted."""
        for holder, names in users.items():
            for name in names:
                self._holds.note(name, holder)
        optioned = [name for name, volume in self._volumes.items() if volume.options]
        await self._holds.sweep({name: self.path(name) for name in optioned})

    async def size(self, name: str) -> int:
        """Bytes of its files; -1 if it has options: they may be anywhere. Raises NotFound."""
        if self._find(name).options:
            return -1
        return await asyncio.to_thread(folder_size, self.path(name))

    def users(self, name: str) -> Names:
        """Ids of the containers that have it."""
        return self._in_use(name)

    def _json(self, volume: Volume) -> dict[str, Any]:
        return {
            "Name": volume.name,
            "Driver": "local",
            "Mountpoint": str(self._root / volume.name / "_data"),
            "CreatedAt": volume.created_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "Labels": volume.labels or None,
            "Options": volume.options or None,
            "Scope": "local",
        }

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "",
        opts: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        pending: bool = False,
    ) -> dict[str, Any]:
        """Make it if it is not there, as Docker does. `opts` is what to mount as its content
        (`options.py`). Raises Invalid, NotImplementedHere; Conflict if it has other options.

        `pending`: it is for a container that is being made, and goes if that never comes to be;
        `settle` ends this.
        """
        if driver not in ("", "local"):
            raise NotImplementedHere(f"volume driver {driver!r} is not supported; use local")
        given = dict(opts or {})
        options.source(given)
        own = dict(labels or {})
        if not name:
            name = self._ids.hex(64)
            own[ANONYMOUS] = ""
        if not _NAME.match(name):
            raise Invalid(
                f"volume name {name!r} includes invalid characters: only [a-zA-Z0-9_.-] are allowed"
            )
        async with self._busy.setdefault(name, asyncio.Lock()):
            if name not in self._volumes:
                volume = Volume(name=name, created_at=self._clock.now(), labels=own, options=given)
                await asyncio.to_thread(self._make, volume, pending)
                self._volumes[name] = volume
                self._publish("volume", "create", name, {"driver": "local"})
            elif given and given != self._volumes[name].options:
                raise Conflict(
                    f"volume {name} is there with other options: remove it, or use it without any"
                )
        return self._json(self._volumes[name])

    def settle(self, name: str) -> None:
        """The container that it was made for is there. Blocking."""
        (self._root / name / _PENDING).unlink(missing_ok=True)

    def doom(self, name: str) -> None:
        """It is to go with its container, also if a crash comes between the two. Blocking."""
        with contextlib.suppress(FileNotFoundError):
            (self._root / name / _PENDING).touch()

    def _make(self, volume: Volume, pending: bool) -> None:
        folder = self._root / volume.name
        (folder / "_data").mkdir(parents=True, exist_ok=True)
        if pending:
            (folder / _PENDING).touch()
        folder.chmod(0o701)
        temporary = folder / f".{_META}"
        temporary.write_bytes(msgspec.json.encode(volume))
        temporary.rename(folder / _META)

    async def remove(self, name: str, force: bool = False) -> None:
        """Raises Conflict while a container has it; NotFound unless forced."""
        if name not in self._volumes:
            if force:
                return
            self._find(name)
        if users := self._in_use(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        await asyncio.to_thread(self._unmount, name)
        del self._volumes[name]
        await asyncio.to_thread(self._destroy, name)
        self._publish("volume", "destroy", name, {"driver": "local"})

    def _unmount(self, name: str) -> None:
        """So that nothing of what is mounted is removed. Raises Conflict."""
        folder = self._root / name
        mounting.detach(folder / "_data")
        if mounting.holds_mounts(folder):
            raise Conflict(f"remove {name}: something is mounted in {folder}; unmount it first")

    def _destroy(self, name: str) -> None:
        folder = self._root / name
        if mounting.holds_mounts(folder):
            return  # mounted since; the volume is found again at the next start
        with contextlib.suppress(FileNotFoundError):
            (folder / _META).unlink()
        shutil.rmtree(folder, ignore_errors=True)
