"""Makes containers: request, image, networks and volumes into a record on disk."""

import asyncio
import random
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from common import names
from common.clock import Clock
from common.errors import Conflict, Invalid, NotFound, NotImplementedHere
from common.ids import Ids
from common.model.container import ContainerCreate, HostConfig
from worker.engine import modes, points, propagation, request
from worker.engine.container import Container, FilePoint, MountPoint, Record, State
from worker.engine.disk import Disk
from worker.engine.networking import Connections
from worker.engine.remap import Remap
from worker.engine.runtimes import Runtimes
from worker.engine.seams import Images
from worker.network.model import Attachment, HostPort
from worker.volumes.copyup import copy_up
from worker.volumes.store import Volumes


class Names:
    """Which name is whose; a name is taken from before its container is made."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ids: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The id, or ""."""
        return self._ids.get(name, "")

    def take(self, name: str, container_id: str) -> str:
        """`name`, or a new one if that is empty. Raises Conflict."""
        chosen = request.check_name(name) if name else names.new(self._rng, self._ids)
        holder = self._ids.get(chosen, container_id)
        if holder != container_id:
            raise Conflict(
                f'Conflict. The container name "/{chosen}" is already in use by container '
                f'"{holder}". You have to remove (or rename) that container to be able to reuse '
                "that name."
            )
        self._ids[chosen] = container_id
        return chosen

    def free(self, name: str, container_id: str) -> None:
        if self._ids.get(name) == container_id:
            del self._ids[name]


class Creation:
    def __init__(
        self,
        available: int,
        disk: Disk,
        images: Images,
        volumes: Volumes,
        names_: Names,
        ids: Ids,
        clock: Clock,
        find: Callable[[str], Container],
        runtimes: Runtimes,
        users: Remap,
        connections: Connections,
    ) -> None:
        self._users = users
        self._connections = connections
        self._runtimes = runtimes
        self._find = find
        self._disk = disk
        self._images = images
        self._volumes = volumes
        self._names = names_
        self._ids = ids
        self._clock = clock
        self._available = available  # capabilities that this machine can give

    async def create(
        self,
        body: ContainerCreate,
        name: str,
        attachments: tuple[Attachment, ...] | None,
        host_ports: tuple[HostPort, ...],
        owner: str,
        files: tuple[FilePoint, ...] = (),
    ) -> Container:
        """Raises Invalid, NotFound, Conflict, NotImplementedHere; nothing is left then."""
        image = self._images.get(body.image)
        container_id = self._ids.hex(64)
        modes.check(body)
        runtime = self._runtimes.path(body.host_config.runtime)
        self._users.check(body.host_config, runtime)
        host = self._with_donors(request.check_host(body.host_config, self._available))
        body = msgspec.structs.replace(body, host_config=host)
        config, line = request.merged(self._named(body, container_id), image.config)
        mode, attachments = self._networks_of(body, attachments)
        inherited = self._inherited(host)
        wishes = [
            wish
            for wish in points.wishes(config, host)
            if not (wish.declared and wish.point.destination in inherited)
        ]
        if runtime and any(wish.point.subpath for wish in wishes):
            raise NotImplementedHere(f"volume-subpath needs the built-in runtime, not {runtime}")
        chosen = self._names.take(name, container_id)
        made: list[str] = []
        try:
            lower = self._images.lower_dirs(image.id)
            mounts = [await self._resolve(wish, lower, made) for wish in wishes]
            record = Record(
                id=container_id,
                name=chosen,
                created_at=self._clock.now(),
                image_id=image.id,
                config=config,
                host_config=host,
                networking=body.networking_config,
                path=line[0],
                args=line[1:],
                mounts=points.joined(mounts, inherited),
                files=files,
                network_mode=mode,
                attachments=attachments,
                host_ports=host_ports or request.host_ports(config, host),
                owner=owner,
            )
            await asyncio.to_thread(self._disk.create, record)
            for volume in made:
                await asyncio.to_thread(self._volumes.settle, volume)
        except BaseException:
            self._names.free(chosen, container_id)
            for volume in made:
                await self._volumes.remove(volume, force=True)
            await asyncio.to_thread(self._disk.remove, container_id)
            raise
        return Container(record, State())

    def _inherited(self, host: HostConfig) -> dict[str, MountPoint]:
        """The volumes and binds of other containers (`--volumes-from`), by destination."""
        found: dict[str, MountPoint] = {}
        for text in host.volumes_from or ():
            ref, mode = points.volumes_from(text)
            try:
                others = self._find(ref).record.mounts
            except NotFound as error:
                # Not NotFound: clients take that for a missing image and go and pull it.
                raise Invalid(f"HostConfig.VolumesFrom: {error}") from error
            found |= points.lent(others, read_only=mode == "ro")
        return found

    def _with_donors(self, host: HostConfig) -> HostConfig:
        """`container:NAME` with ids, so that a new name changes nothing."""
        changes: dict[str, str] = {}
        shown = {"pid_mode": "PidMode", "ipc_mode": "IpcMode", "network_mode": "NetworkMode"}
        shown["uts_mode"] = "UTSMode"
        for field, name in shown.items():
            ref = modes.donor(getattr(host, field))
            if not ref:
                continue
            try:
                changes[field] = modes.CONTAINER + self._find(ref).id
            except NotFound as error:
                # Not NotFound: clients take that for a missing image and go and pull it.
                raise Invalid(f"HostConfig.{name}: {error}") from error
        return msgspec.structs.replace(host, **changes)

    def _named(self, body: ContainerCreate, container_id: str) -> ContainerCreate:
        """With a host name: its own, that of the network or names it shares, or its id."""
        host = body.host_config
        if body.hostname:
            return body
        name = container_id[:12]
        if host.network_mode == "host" or host.uts_mode == "host":
            name = socket.gethostname()
        elif ref := modes.donor(host.uts_mode) or modes.donor(host.network_mode):
            name = self._find(ref).config.hostname
        return msgspec.structs.replace(body, hostname=name)

    def _networks_of(
        self, body: ContainerCreate, given: tuple[Attachment, ...] | None
    ) -> tuple[str, tuple[Attachment, ...]]:
        if given is not None:
            mode, _ = request.wanted_networks(body, body.host_config, None)
            return mode, given
        mode, wanted = request.wanted_networks(body, body.host_config, body.networking_config)
        found = [self._connections.attachment(name, point) for name, point in wanted.items()]
        return mode, tuple(found)

    async def _resolve(
        self, wish: points.Wish, lower: tuple[Path, ...], made: list[str]
    ) -> MountPoint:
        """A volume is made if it is missing, and a new one filled from the image."""
        point = wish.point
        if point.type == "bind":
            await asyncio.to_thread(_check_source, point, wish.make_source)
            await asyncio.to_thread(propagation.check, point.source, point.propagation)
        if point.type != "volume":
            return point
        known = {volume["Name"] for volume in self._volumes.list()}
        volume = await self._volumes.create(
            point.name,
            opts=dict(wish.options),
            labels=dict(wish.labels),
            pending=point.anonymous,
        )
        name = volume["Name"]
        if name not in known and point.anonymous:
            made.append(name)
        path = self._volumes.path(name)
        if wish.copy:
            async with self._volumes.filling(name):
                await asyncio.to_thread(copy_up, lower, point.destination, path)
        return msgspec.structs.replace(point, name=name, source=str(path))

    async def rename(self, container: Container, name: str) -> None:
        """Raises Conflict, Invalid."""
        async with container.lock:
            if container.removed:
                raise NotFound(f"No such container: {container.id}")
            old, new = container.name, self._names.take(name, container.id)
            if new == old:
                raise Invalid("Renaming a container with the same name as its current name")
            record = msgspec.structs.replace(container.record, name=new)
            try:
                await asyncio.to_thread(self._disk.save_record, record)
            except OSError:
                self._names.free(new, container.id)
                raise
            container.record = record
            self._names.free(old, container.id)


def _check_source(point: MountPoint, make: bool) -> None:
    source = Path(point.source)
    if source.exists():
        return
    if not make:
        raise Invalid(
            f'invalid mount config for type "bind": bind source path does not exist: {source}'
        )
    source.mkdir(parents=True, exist_ok=True)
