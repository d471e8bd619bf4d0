"""A container as the engine holds it: what was asked for, and what became of it."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Literal

import msgspec

from common.model.base import ZERO_TIME
from common.model.container import ContainerConfig, HostConfig, NetworkingConfig
from worker.network.model import Attachment, HostPort, Sandbox

Status = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]
_LIVE = ("running", "paused")


class MountPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One resolved mount. `source` is a path of the host; "" for tmpfs."""

    type: str  # bind, volume, tmpfs
    destination: str
    source: str = ""
    name: str = ""  # of the volume
    read_only: bool = False
    anonymous: bool = False  # removed with the container, if asked
    propagation: str = ""
    recursive: bool = True
    subpath: str = ""  # of a volume: what in it is mounted
    options: tuple[str, ...] = ()  # tmpfs
    mode: str = ""  # as given after the second colon of a bind


class FilePoint(msgspec.Struct, frozen=True):
    """A file that is given from outside and held in memory only (`memory_files.py`)."""

    destination: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o444


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed when a container is made (`container.json`); only the name, its limits and its
    networks may change."""

    id: str
    name: str
    created_at: dt.datetime
    image_id: str
    config: ContainerConfig
    host_config: HostConfig
    networking: NetworkingConfig | None = None
    path: str
    args: tuple[str, ...]
    mounts: tuple[MountPoint, ...] = ()
    files: tuple[FilePoint, ...] = ()
    network_mode: str = "private"  # private, none, host
    attachments: tuple[Attachment, ...] = ()
    detached: bool = False  # it was disconnected from all its networks
    host_ports: tuple[HostPort, ...] = ()
    owner: str = ""  # id of the task that the container is for


class State(msgspec.Struct, kw_only=True):
    """What changes (`state.json`)."""

    status: Status = "created"
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started_at: dt.datetime = ZERO_TIME
    finished_at: dt.datetime = ZERO_TIME
    restart_count: int = 0
    manually_stopped: bool = False
    frozen_for_commit: bool = False  # paused, and not by the user


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One health probe."""

    start: dt.datetime
    end: dt.datetime
    exit_code: int
    output: str


def volumes_of(points: tuple[MountPoint, ...]) -> tuple[str, ...]:
    """The names of the volumes among them."""
    return tuple(point.name for point in points if point.type == "volume")


Predicate = Callable[["Container"], bool]


class Container:
    """One container. Its state is changed by the engine only, on the event loop."""

    def __init__(self, record: Record, state: State) -> None:
        self.record = record
        self.current = state
        self.sandbox: Sandbox | None = None
        self.health = ""  # "", starting, healthy, unhealthy
        self.failing_streak = 0
        self.probes: list[Probe] = []
        self.exec_ids: list[str] = []
        self.exits = 0  # how often it ended while this daemon looked
        self.removed = False
        self.lock = asyncio.Lock()  # held by what starts, ends or removes it
        self.saving = asyncio.Lock()
        self._waiters: list[tuple[Predicate, asyncio.Future[None]]] = []

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """Without a leading slash."""
        return self.record.name

    @property
    def config(self) -> ContainerConfig:
        return self.record.config

    @property
    def host_config(self) -> HostConfig:
        return self.record.host_config

    @property
    def image_id(self) -> str:
        return self.record.image_id

    @property
    def owner(self) -> str:
        return self.record.owner

    @property
    def state(self) -> Status:
        return self.current.status

    @property
    def pid(self) -> int:
        """In the host's pid namespace; 0 when it does not run."""
        return self.current.pid

    @property
    def exit_code(self) -> int:
        return self.current.exit_code

    @property
    def oom_killed(self) -> bool:
        return self.current.oom_killed

    @property
    def error(self) -> str:
        return self.current.error

    @property
    def started_at(self) -> dt.datetime:
        return self.current.started_at

    @property
    def finished_at(self) -> dt.datetime:
        return self.current.finished_at

    @property
    def node_address(self) -> str:
        """On the node's own bridge; "" if it has none."""
        return self.sandbox.node_address if self.sandbox is not None else ""

    @property
    def live(self) -> bool:
        """Whether it has a process."""
        return self.current.status in _LIVE

    def changed(self) -> None:
        """Tell who waits. Each predicate sees every state, also one that lasts a moment only."""
        waiting = []
        for predicate, future in self._waiters:
            if future.done():
                continue
            if predicate(self):
                future.set_result(None)
            else:
                waiting.append((predicate, future))
        self._waiters = waiting

    async def until(self, predicate: Predicate) -> None:
        """Returns once `predicate` has held, if only for a moment."""
        if predicate(self):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((predicate, future))
        try:
            await future
        finally:
            future.cancel()
            self._waiters = [entry for entry in self._waiters if entry[1] is not future]
