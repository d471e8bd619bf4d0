"""The container engine of one node: what the agent's executor and the HTTP API talk to."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from common.clock import Clock
from common.config import DaemonConfig
from common.errors import Conflict, NotFound, NotImplementedHere, Unavailable
from common.ids import Ids
from common.model.container import ContainerCreate, EndpointConfig
from worker.engine import inspect as views
from worker.engine import oom, remap, usage
from worker.engine.background import Background
from worker.engine.container import Container, FilePoint, Predicate, volumes_of
from worker.engine.copying import Files
from worker.engine.creation import Creation, Names
from worker.engine.disk import Disk
from worker.engine.events import EventBus
from worker.engine.exec import ExecConfig, Execs
from worker.engine.health import Monitors
from worker.engine.lifecycle import Lifecycle
from worker.engine.logs import ALL, Batches, LogLine, LogQuery, Logs, each
from worker.engine.memory_files import MemoryFiles
from worker.engine.networking import Connections
from worker.engine.recovery import Recovery
from worker.engine.runtimes import Runtimes
from worker.engine.seams import Images, Networks
from worker.engine.streams import Attachment as Attached
from worker.engine.streams import Nothing, Pipes
from worker.engine.updating import ContainerUpdate, updated
from worker.network.model import Attachment, HostPort
from worker.runtime import capabilities, cgroups
from worker.runtime.client import KeeperClient, KeeperError
from worker.volumes.store import Volumes

Ids_ = list[str]
Sample = dict[str, Any]


class Engine:
    """All containers of one daemon. `ref` is an id, a unique beginning of one, or a name."""

    def __init__(
        self,
        config: DaemonConfig,
        images: Images,
        networks: Networks,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.runtimes = Runtimes(config.runtimes, config.runtime)
        users = remap.load(config.userns_remap)
        self._clock = clock
        self._closing = False
        self._containers: dict[str, Container] = {}
        self._background = Background()
        self._disk = Disk(config.state_dir / "containers")
        self._memory = MemoryFiles(config.run_dir / "files")
        self._hierarchy = cgroups.detect(str(config.cgroup_root))
        ids = Ids(rng)
        self._names = Names(rng)
        self._keeper = KeeperClient(
            config.run_dir,
            self._disk.root,
            config.cgroup_root,
            self._on_event,
            self._on_keeper_lost,
            config.container_open_files,
        )
        self.events = EventBus(clock)
        self.volumes = Volumes(
            config.state_dir / "volumes", clock, ids, self.events.publish, self._volume_users
        )
        self._lifecycle = Lifecycle(
            config, self._disk, self._memory, self._keeper, images, networks, self.events,
            self._hierarchy, clock, self._background, self._remove_after_end, self.find,
            self.runtimes, users, self.volumes,
        )  # fmt: skip
        available = capabilities.own()
        if not self._lifecycle.device_filter:
            available &= ~capabilities.mask(["CAP_MKNOD"])
        self._available = available
        self._connections = Connections(networks, self._disk, self.find)
        self._creation = Creation(
            available, self._disk, images, self.volumes, self._names, ids, clock,
            self.find, self.runtimes, users, self._connections,
        )  # fmt: skip
        self.files = Files(self.find, self._disk, images, self.volumes)
        self._execs = Execs(self._keeper, self._lifecycle, ids)
        self._monitors = Monitors(self._execs, clock, self._background, self._lifecycle.publish)
        self._logs = Logs(self._disk.folder, clock, self._follow)
        self._lifecycle.on_started = self._monitors.begin
        self._lifecycle.on_ended = self._on_ended
        self._recovery = Recovery(
            self._containers, self._keeper, self._lifecycle, self._monitors, self._logs, networks,
            self._background,
        )  # fmt: skip

    async def open(self) -> None:
        """Find the containers of before: those that run are adopted, what died is written down,
        what is left over is cleared away. Raises Unavailable without a keeper."""
        for record, state in await asyncio.to_thread(self._disk.load):
            self._containers[record.id] = Container(record, state)
            self._names.take(record.name, record.id)
        await self.volumes.open()
        await asyncio.to_thread(self._memory.keep, set(self._containers))
        ended = await self._recovery.at_start()
        await self.volumes.adopt(
            {c.id: volumes_of(c.record.mounts) for c in self._containers.values() if c.live}
        )
        for container in ended:
            await self._remove(container, volumes=True)

    async def close(self) -> None:
        """Let go of everything; containers go on."""
        self._closing = True
        await self._background.close()
        await self._keeper.close()
        await asyncio.to_thread(self._hierarchy.discard_empty, self._lifecycle.parent)

    @property
    def keeper_pid(self) -> int:
        """The process that is the parent of all containers."""
        return self._keeper.keeper_pid

    # --- finding

    def list(self, all: bool = False) -> list[Container]:
        """Those that run, or all, oldest first."""
        found = [c for c in self._containers.values() if all or c.live or c.state == "restarting"]
        return sorted(found, key=lambda container: container.record.created_at)

    def find(self, ref: str) -> Container:
        """Raises NotFound; Conflict for a beginning that several ids have."""
        if ref in self._containers:
            return self._containers[ref]
        named = self._containers.get(self._names.find(ref.removeprefix("/")))
        if named is not None:
            return named
        matches = [c for key, c in self._containers.items() if ref and key.startswith(ref)]
        if not matches:
            raise NotFound(f"No such container: {ref}")
        if len(matches) > 1:
            raise Conflict(f"multiple containers found with id prefix {ref!r}; give more of it")
        return matches[0]

    def inspect(self, ref: str) -> dict[str, Any]:
        """Docker's JSON."""
        container = self.find(ref)
        return views.inspect(container, self._disk.folder(container.id))

    def summary(self, container: Container) -> dict[str, Any]:
        """Its row in /containers/json."""
        return views.summary(container, self._clock.now())

    # --- life

    async def create(
        self,
        body: ContainerCreate,
        name: str = "",
        *,
        attachments: tuple[Attachment, ...] | None = None,
        host_ports: tuple[HostPort, ...] = (),
        owner: str = "",
        files: tuple[FilePoint, ...] = (),
    ) -> str:
        """Make a container; its id. `attachments` are given for tasks; for others the networks are
        taken from the request. `files` must be filled before a start. Raises Invalid, NotFound
        (image), Conflict (name) and NotImplementedHere.
        """
        work = self._create(body, name, attachments, host_ports, owner, files)
        return await self._background.finish(work, "create a container")

    async def _create(
        self,
        body: ContainerCreate,
        name: str,
        attachments: tuple[Attachment, ...] | None,
        host_ports: tuple[HostPort, ...],
        owner: str,
        files: tuple[FilePoint, ...],
    ) -> str:
        container = await self._creation.create(body, name, attachments, host_ports, owner, files)
        self._containers[container.id] = container
        self._lifecycle.publish(container, "create")
        return container.id

    async def fill(self, ref: str, contents: Sequence[bytes]) -> None:
        """Give a container the contents of its `files`, in their order."""
        container = self.find(ref)
        async with container.lock:
            if container.removed:
                raise NotFound(f"No such container: {container.id}")
            points = container.record.files
            await asyncio.to_thread(self._memory.write, container.id, points, contents)

    async def start(self, ref: str) -> None:
        """Returns once its process has executed; nothing happens if it runs. Raises Invalid for a
        command that cannot be executed (`exit_code` is then 127 or 126), Conflict."""
        container = self.find(ref)
        if container.state == "paused":
            raise Conflict("cannot start a paused container, try unpause instead")
        await self._lifecycle.start(container)

    async def stop(
        self, ref: str, timeout_s: float | None = None, signal: str | None = None
    ) -> None:
        """Its stop signal, the grace period (-1: no end), then SIGKILL. Returns when it ended."""
        await self._lifecycle.stop(self.find(ref), timeout_s, signal)

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Raises Conflict if it does not run, Invalid for an unknown signal."""
        await self._lifecycle.kill(self.find(ref), signal)

    async def restart(
        self, ref: str, timeout_s: float | None = None, signal: str | None = None
    ) -> None:
        container = self.find(ref)
        await self._lifecycle.stop(container, timeout_s, signal)
        await self._lifecycle.start(container)
        self._lifecycle.publish(container, "restart")

    async def pause(self, ref: str) -> None:
        await self._lifecycle.pause(self.find(ref))

    async def unpause(self, ref: str) -> None:
        await self._lifecycle.unpause(self.find(ref))

    async def update(self, ref: str, changes: ContainerUpdate) -> None:
        """New limits, at once if it runs, and restart policy. Raises Invalid."""
        container = self.find(ref)
        await self._background.finish(self._update(container, changes), f"update {container.name}")

    async def _update(self, container: Container, changes: ContainerUpdate) -> None:
        async with container.lock:
            if container.removed:
                raise NotFound(f"No such container: {container.id}")
            host = updated(container.host_config, changes, self._available)
            if container.live:
                await self._lifecycle.limit(container, host)
            record = msgspec.structs.replace(container.record, host_config=host)
            await asyncio.to_thread(self._disk.save_record, record)
            container.record = record
        self._lifecycle.publish(container, "update")

    @contextlib.asynccontextmanager
    async def frozen(self, ref: str) -> AsyncIterator[None]:
        """Paused for as long as this lasts, if it runs; also a crash ends it."""
        container = self.find(ref)
        if container.state != "running":
            yield
            return
        container.current.frozen_for_commit = True
        try:
            await self._lifecycle.pause(container)
            yield
        finally:
            container.current.frozen_for_commit = False
            if self.find(container.id).state == "paused":
                await self._background.finish(self._lifecycle.unpause(container), "unpause")

    def tell(self, container: Container, action: str, extra: dict[str, str] | None = None) -> None:
        """Publish an event of a container."""
        self._lifecycle.publish(container, action, extra)

    async def rename(self, ref: str, name: str) -> None:
        """Raises Conflict if the name is taken."""
        container = self.find(ref)
        old = container.name
        await self._background.finish(self._creation.rename(container, name), f"rename {old}")
        await self._connections.renamed(container)
        self._lifecycle.publish(container, "rename", {"oldName": f"/{old}"})

    async def connect(self, ref: str, network: str, point: EndpointConfig) -> None:
        """Put a container on a network, also while it runs. Raises NotFound, Invalid, Forbidden."""
        container = self.find(ref)
        work = self._connections.connect(container, network, point)
        await self._background.finish(work, f"connect {container.name}")

    async def disconnect(self, ref: str, network: str) -> None:
        """Take a container off a network. Raises NotFound, Invalid, Forbidden."""
        container = self.find(ref)
        work = self._connections.disconnect(container, network)
        await self._background.finish(work, f"disconnect {container.name}")

    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None:
        """Raises Conflict while it runs, unless forced: then it is killed. `volumes`: its anonymous
        volumes too."""
        container = self.find(ref)
        if not force:
            self._check_removable(container)
        elif container.live:
            await self._lifecycle.kill(container, "SIGKILL")
        work = self._remove(container, volumes)
        await self._background.finish(work, f"remove {container.name}")

    def _check_removable(self, container: Container) -> None:
        name = f"/{container.name}"
        if container.state == "paused":
            raise Conflict(
                f'cannot remove container "{name}": container is paused and must be unpaused first'
            )
        if container.live or container.state == "restarting":
            raise Conflict(
                f'cannot remove container "{name}": container is {container.state}: stop the '
                "container before removing or force remove"
            )

    async def _remove_after_end(self, container: Container) -> None:
        await self._remove(container, volumes=True)

    async def _remove(self, container: Container, volumes: bool) -> None:
        async with container.lock:
            if container.removed:
                return
            self._check_removable_now(container)
            self._lifecycle.forget_restart(container)
            container.current.status = "removing"
            await self._lifecycle.release(container)
            await asyncio.to_thread(self._memory.remove, container.id)
            for name in _anonymous(container) if volumes else ():
                await asyncio.to_thread(self.volumes.doom, name)
            await asyncio.to_thread(self._disk.remove, container.id)
            del self._containers[container.id]
            self._names.free(container.name, container.id)
            container.removed = True
        if volumes:
            for name in _anonymous(container):
                if not self._volume_users(name):
                    await self.volumes.remove(name, force=True)
        self._lifecycle.publish(container, "destroy")
        self._logs.grown(container.id)
        container.changed()

    def _check_removable_now(self, container: Container) -> None:
        """It may have been started since it was asked for."""
        if container.live:
            self._check_removable(container)

    async def wait(self, ref: str, condition: str = "not-running") -> int:
        """The exit code once it does not run; at its next end; or when it is removed."""
        container = self.find(ref)
        seen = container.exits
        if condition == "not-running" and not (container.live or container.state == "restarting"):
            return container.exit_code
        code = container.exit_code

        def reached(c: Container) -> bool:
            nonlocal code
            if c.exits > seen or c.removed:
                code = c.exit_code
            return c.removed if condition == "removed" else c.exits > seen or c.removed

        await container.until(reached)
        return code

    async def wait_for(self, ref: str, predicate: Predicate) -> Container:
        """Returns once `predicate` has held, if only for a moment, or when it was removed."""
        container = self.find(ref)
        await container.until(lambda c: c.removed or predicate(c))
        return container

    # --- stdio

    def logs(self, ref: str, query: LogQuery = ALL) -> AsyncIterator[LogLine]:
        """An asynchronous generator: close it with `contextlib.aclosing`."""
        return each(self.log_batches(ref, query))

    def log_batches(self, ref: str, query: LogQuery = ALL) -> Batches:
        """The same, many lines at once: much quicker if there are many."""
        container = self.find(ref)
        if container.host_config.log_config.type == "none":
            raise NotImplementedHere("configured logging driver does not support reading")
        return self._logs.batches(container, query)

    async def _follow(self, container: Container, on: bool) -> None:
        if not container.removed and not self._closing:
            with contextlib.suppress(Unavailable):  # the next keeper is told when it is there
                await self._keeper.request("follow", container=container.id, on=on)

    async def attach(
        self,
        ref: str,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        logs: bool = False,
        stream: bool = True,
    ) -> Attached | Nothing:
        """The container's stdio, also before its start. Ends when it ends."""
        container = self.find(ref)
        if container.state == "paused":
            raise Conflict(f"container {container.name} is paused, unpause it first")
        before: tuple[tuple[int, bytes], ...] = ()
        if logs:
            lines = each(self._logs.batches(container, LogQuery(stdout=stdout, stderr=stderr)))
            before = tuple([(line.stream, line.data) async for line in lines])
        if not stream:
            return Nothing(before)
        streams = [n for n, wanted in ((1, stdout), (2, stderr)) if wanted]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                await self._keeper.request(
                    "attach",
                    (theirs.fileno(),),
                    container=container.id,
                    streams=streams,
                    stdin=stdin and container.config.open_stdin,
                )
        except BaseException:
            ours.close()
            raise
        self._lifecycle.publish(container, "attach")
        return Attached(ours, before)

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        container = self.find(ref)
        if not container.live:
            raise Conflict(f"container {container.name} is not running")
        try:
            await self._keeper.request("resize", container=container.id, rows=rows, columns=columns)
        except KeeperError:  # it has just ended
            return

    async def exec_create(self, ref: str, config: ExecConfig) -> str:
        """Raises Conflict if the container does not run."""
        return self._execs.create(self.find(ref), config)

    async def exec_start(
        self, exec_id: str, tty: bool = False, detach: bool = False
    ) -> Pipes | None:
        """Its stdio; None if detached."""
        return await self._execs.start(exec_id, tty, detach)

    async def exec_wait(self, exec_id: str) -> None:
        """Until its process has ended and its exit code is known."""
        await self._execs.find(exec_id).ended.wait()

    async def exec_resize(self, exec_id: str, rows: int, columns: int) -> None:
        self._execs.resize(exec_id, rows, columns)

    def exec_inspect(self, exec_id: str) -> dict[str, Any]:
        return self._execs.inspect(exec_id)

    # --- figures

    async def top(self, ref: str, ps_arguments: str = "") -> dict[str, Any]:
        """Its processes: as `ps -ef` shows them, or as ps with other arguments."""
        container = self.find(ref)
        if not container.live:
            raise Conflict(f"container {container.name} is not running")
        cgroup = self._lifecycle.cgroup(container)
        if ps_arguments.strip() not in ("", "-ef"):
            return await asyncio.to_thread(usage.ps, self._hierarchy, cgroup, ps_arguments)
        return await asyncio.to_thread(usage.top, self._hierarchy, cgroup, self._clock.now())

    async def stats(self, ref: str, before: Sample | None = None) -> Sample:
        """A sample, with the one `before` it as Docker gives it."""
        container = self.find(ref)
        sample = await asyncio.to_thread(self._sample, container)
        empty = {"cpu_usage": {"total_usage": 0}, "throttling_data": {}}
        return sample | {
            "preread": before["read"] if before else "0001-01-01T00:00:00Z",
            "precpu_stats": before["cpu_stats"] if before else empty,
        }

    def _sample(self, container: Container) -> dict[str, Any]:
        used = None
        if container.live:
            try:
                used = self._hierarchy.usage(self._lifecycle.cgroup(container))
            except FileNotFoundError:
                used = None
        return usage.stats(used, container.name, container.id, container.pid, self._clock.now())

    # --- what the keeper tells

    def _on_event(self, event: dict[str, Any]) -> None:
        container_id = event["container"]
        if event["event"] == "container":
            self._recovery.found(event)
            return
        if event["event"] == "log":
            self._logs.grown(container_id)
            return
        container = self._containers.get(container_id)
        if container is None:
            return
        if event["event"] == "exit":
            self._recovery.ended(container_id)
            self._lifecycle.ended(container, event)
        elif event["event"] == "exec":
            self._execs.on_end(event["exec"], event["code"])
        elif event["event"] == "oom":
            self._lifecycle.publish(container, "oom", oom.attributes(event))

    def _on_ended(self, container: Container) -> None:
        self._monitors.end(container)
        self._execs.container_ended(container)
        self._logs.grown(container.id)

    def _on_keeper_lost(self) -> None:
        if not self._closing:
            self._background.start(self._recovery.after_loss(), "keeper recovery")

    def _volume_users(self, name: str) -> Ids_:
        return [
            container.id
            for container in self._containers.values()
            if any(point.name == name for point in container.record.mounts)
        ]


def _anonymous(container: Container) -> list[str]:
    """The volumes that were made for it alone."""
    return [point.name for point in container.record.mounts if point.anonymous and point.name]
