"""A container's way from created to running to exited, and back."""

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from common.clock import Clock
from common.config import DaemonConfig
from common.errors import Conflict, Invalid, NotFound, ShoalError, Unavailable
from common.model.container import HostConfig
from worker.engine import devices, files, gate, modes, oci, oom, request, restart, signals
from worker.engine.background import Background
from worker.engine.container import Container, volumes_of
from worker.engine.disk import CONFIG, Disk, replace
from worker.engine.events import EventBus
from worker.engine.memory_files import MemoryFiles
from worker.engine.remap import Remap
from worker.engine.runtimes import Runtimes, init_binary
from worker.engine.seams import Images, Networks
from worker.network.model import Sandbox, SandboxSpec
from worker.runtime import seccomp, seccomp_profile
from worker.runtime.cgroups import Hierarchy
from worker.runtime.client import KeeperClient, KeeperError
from worker.runtime.seccomp import FilterCache
from worker.volumes.store import Volumes

_KILL_S = 10.0  # for the kernel to end a process after SIGKILL
_USUAL_WEIGHT = 100  # of a cgroup that was given none, for BFQ
_STRAY_CODE = 255  # how Docker tells of a container whose end nobody saw
_log = logging.getLogger(__name__)


class Lifecycle:
    """Starts, stops and hears of the end of containers. Every method that changes one finishes
    what it began even if its caller goes away."""

    def __init__(
        self,
        config: DaemonConfig,
        disk: Disk,
        memory: MemoryFiles,
        keeper: KeeperClient,
        images: Images,
        networks: Networks,
        events: EventBus,
        hierarchy: Hierarchy,
        clock: Clock,
        background: Background,
        on_gone: Callable[[Container], Any],
        find: Callable[[str], Container],
        runtimes: Runtimes,
        users: Remap,
        volumes: Volumes,
    ) -> None:
        self._users = users
        self._volumes = volumes
        self._runtimes = runtimes
        self._find = find
        self._config = config
        self._disk = disk
        self._memory = memory
        self._keeper = keeper
        self._images = images
        self._networks = networks
        self._events = events
        self._hierarchy = hierarchy
        self._clock = clock
        self._background = background
        self._filters = FilterCache(config.state_dir / "seccomp")
        self._restarts: dict[str, asyncio.Task[Any]] = {}
        self._delays: dict[str, float] = {}
        self.on_gone = on_gone  # removes a container with auto_remove
        self.on_started: Callable[[Container], None] = lambda _: None
        self.on_ended: Callable[[Container], None] = lambda _: None

    # --- start

    async def start(self, container: Container) -> None:
        """Returns once the container's process has executed, when its state may be yet to be
        written: after a crash the keeper tells it. Raises Invalid for a command that cannot be
        executed; `exit_code` is then 127 or 126."""
        executed = asyncio.get_running_loop().create_future()
        work = self._start_locked(container, lambda: executed.set_result(None))
        await self._background.finish(work, f"start {container.name}", executed)

    async def _start_locked(self, container: Container, executed: Callable[[], None]) -> None:
        async with container.lock:
            if container.live:
                return
            if container.removed or container.state in ("removing", "dead"):
                raise Conflict(f"container {container.name} is being removed and cannot be started")
            self.forget_restart(container)
            container.current.manually_stopped = False
            await self._launch(container, executed)

    async def _launch(
        self, container: Container, executed: Callable[[], None] = lambda: None
    ) -> None:
        donors = self._donors(container)
        begin = partial(self._begin, container, donors)
        try:
            await self._volumes.hold(volumes_of(container.record.mounts), container.id)
            if "network" in donors:
                answer = await begin(None)
            else:
                connect = partial(self._networks.open_sandbox, _sandbox_spec(container))
                answer = await gate.start(connect, begin)
        except (ShoalError, OSError) as error:
            await self._start_failed(container, error)
            raise
        self.running(container, answer)
        self.publish(container, "start")
        self.on_started(container)
        executed()
        await self.save(container)

    async def _begin(
        self,
        container: Container,
        donors: dict[str, oci.Donor],
        sandbox: Sandbox | None,
        waiting: int = -1,
        asked: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Have the keeper start it, and call `asked` then; `waiting` is the gate, if it is to wait
        for its network."""
        container.sandbox = sandbox
        lower = self._images.lower_dirs(container.image_id)
        await asyncio.to_thread(self._write_files, container, lower, donors)
        asked()
        fds = (waiting,) if waiting >= 0 else ()
        return await self._keeper.request("start", fds, container=container.id)

    async def _start_failed(self, container: Container, error: Exception) -> None:
        await self._let_go(container)
        current = container.current
        current.error = str(error)
        current.exit_code = getattr(error, "code", 0) or 128
        if current.status == "restarting":
            current.status = "exited"
        await self.save(container)
        container.changed()
        if container.host_config.auto_remove and container.state in ("created", "exited"):
            self._background.start(self.on_gone(container), f"remove {container.name}")
        if isinstance(error, KeeperError):
            text = f"failed to start container {container.name}: {error}"
            raise (Invalid if error.code in (126, 127) else ShoalError)(text) from error
        if isinstance(error, OSError):
            raise ShoalError(f"failed to start container {container.name}: {error}") from error

    def running(self, container: Container, answer: dict[str, Any]) -> None:
        """The keeper says that it runs: after a start, or when another daemon started it."""
        current = container.current
        current.status, current.pid = "running", answer["pid"]
        current.started_at = moment(answer["started_ns"]) or self._clock.now()
        current.exit_code, current.oom_killed, current.error = 0, False, ""
        container.changed()

    def _donors(self, container: Container) -> dict[str, oci.Donor]:
        """Whose namespaces it shares. Raises Conflict if one does not run."""
        found = {}
        for kind, ref in modes.donors(container.host_config).items():
            donor = self._find(ref)
            if donor is container or not donor.live:
                raise Conflict(
                    f"cannot join the {kind} namespace of container {donor.name}: it does not run"
                )
            # Who shares its processes too may look into its memory anyhow.
            same = container.host_config.pid_mode == container.host_config.ipc_mode
            if kind == "ipc" and not same and not modes.shares_memory(donor.host_config):
                raise Conflict(
                    f"cannot join the ipc namespace of container {donor.name}: it is private; "
                    "start that container with --ipc shareable"
                )
            found[kind] = oci.Donor(donor.id, donor.pid)
        return found

    def _write_files(
        self, container: Container, lower: tuple[Path, ...], donors: dict[str, oci.Donor]
    ) -> None:
        folder, sandbox = self._disk.folder(container.id), container.sandbox
        if self._memory.missing(container.id, container.record.files):
            raise Conflict(f"the secrets and configs of {container.name} are not on this node yet")
        if sandbox is not None:
            files.write(folder, container, sandbox)
        around = oci.Surroundings(
            folder=folder,
            lower=lower,
            netns=sandbox.netns if sandbox is not None else "",
            cgroup=self.cgroup(container),
            seccomp=self.seccomp(container),
            device_filter=self.device_filter,
            files=self._disk.folder(self._files_of(container, donors)),
            memory=self._memory.folder(container.id),
            devices=devices.find(container.host_config),
            donors=donors,
            userns=self.userns(container),
        )
        configuration = oci.configuration(container.record, around)
        runtime = self._runtimes.path(container.host_config.runtime)
        if runtime:
            init = init_binary() if container.host_config.init else ""
            profile = self._profile(container)
            configuration = oci.for_another(configuration, runtime, profile, init)
        replace(folder / CONFIG, msgspec.json.encode(configuration), sync=False)

    def _files_of(self, container: Container, donors: dict[str, oci.Donor]) -> str:
        """Who shares a network shares its /etc/hosts, too; a donor may share another's."""
        while (donor := donors.get("network")) is not None:
            container = self._find(donor.id)
            ids = modes.donors(container.host_config)
            donors = {kind: oci.Donor(ref, 0) for kind, ref in ids.items()}
        return container.id

    def cgroup(self, container: Container) -> str:
        """Below each hierarchy's mount point."""
        own = container.host_config.cgroup_parent.strip("/")
        return f"{own or self.parent}/{container.id}"

    @property
    def parent(self) -> str:
        """The cgroup above all containers."""
        return self._config.cgroup_parent.strip("/")

    @property
    def device_filter(self) -> bool:
        """Whether the machine's cgroups say which devices a container may open."""
        return self._hierarchy.filters_devices

    def seccomp(self, container: Container, privileged: bool = False) -> str:
        """The file with the filter for the container's processes; "" for none."""
        host = container.host_config
        wanted = request.security(host.security_opt or ()).seccomp
        if wanted == "unconfined" or host.privileged or privileged:
            return ""
        profile = "" if wanted == "builtin" else wanted
        return str(self._filters.path(frozenset(oci.granted(host)), profile))

    def userns(self, container: Container) -> str:
        """The mapping of its user namespace, as the runtime takes it; "" for the machine's."""
        return self._users.note(container.host_config)

    def _profile(self, container: Container) -> dict[str, Any] | None:
        """`linux.seccomp` for a runtime that makes the filter itself."""
        host = container.host_config
        wanted = request.security(host.security_opt or ()).seccomp
        if wanted == "unconfined" or host.privileged:
            return None
        held = frozenset(oci.granted(host))
        if wanted == "builtin":
            return seccomp.default_profile(held)
        return seccomp_profile.resolve(wanted, held, seccomp.kernel_version())

    # --- the end

    def ended(self, container: Container, event: dict[str, Any]) -> None:
        """The keeper says that the container's first process has ended."""
        self._background.start(self._ended(container, event), f"end of {container.name}")

    async def _ended(self, container: Container, event: dict[str, Any]) -> None:
        async with container.lock:
            if container.removed:
                return
            await self.record_end(container, event)
            if container.host_config.auto_remove:
                self._background.start(self.on_gone(container), f"remove {container.name}")
                return
            self.plan_restart(container)

    async def record_end(self, container: Container, event: dict[str, Any]) -> None:
        """Write down how it ended. The caller holds the lock."""
        current = container.current
        code = event.get("code")
        current.status, current.pid = "exited", 0
        current.exit_code = _STRAY_CODE if code is None else code
        if code is None:
            current.error = "nobody saw how the container ended: its keeper or the machine stopped"
        current.oom_killed = bool(event.get("oom"))
        if current.oom_killed and current.exit_code and not current.error:
            current.error = oom.reason(event)
        current.finished_at = moment(event.get("finished_ns") or 0) or self._clock.now()
        wait = self._restart_delay(container)
        if wait is not None:
            current.status = "restarting"
        self.on_ended(container)
        self.publish(container, "die", {"exitCode": str(current.exit_code)})
        await self.save(container)
        with contextlib.suppress(Unavailable, KeeperError):
            await self._keeper.request("forget", container=container.id)
        container.exits += 1
        container.changed()
        await self._let_go(container)

    async def _let_go(self, container: Container) -> None:
        """It does not run: its network and its volumes are others'."""
        await self._networks.close_sandbox(container.id)
        container.sandbox = None
        await self._volumes.release(volumes_of(container.record.mounts), container.id)

    def _restart_delay(self, container: Container) -> float | None:
        current = container.current
        wait = restart.delay(
            container.host_config.restart_policy,
            exit_code=current.exit_code,
            manually_stopped=current.manually_stopped,
            restarts=current.restart_count,
            ran_s=(current.finished_at - current.started_at).total_seconds(),
            last_s=self._delays.get(container.id, 0.0),
        )
        if wait is None:
            self._delays.pop(container.id, None)
        else:
            self._delays[container.id] = wait
        return wait

    def plan_restart(self, container: Container) -> None:
        """Start it again when its delay is over, if its policy wants that."""
        if container.state == "restarting" and container.id not in self._restarts:
            work = self._restart_later(container, self._delays.get(container.id, 0.1))
            task = self._background.start(work, f"restart {container.name}")
            self._restarts[container.id] = task

    async def _restart_later(self, container: Container, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with container.lock:
            if container.state != "restarting" or self._restarts.pop(container.id, None) is None:
                return
            container.current.restart_count += 1
            try:
                await self._launch(container)
            except ShoalError as error:
                _log.warning("restart of %s: %s", container.name, error)

    def forget_restart(self, container: Container) -> None:
        """Whoever starts, stops or removes it decides now."""
        task = self._restarts.pop(container.id, None)
        if task is not None:
            task.cancel()

    # --- stop

    async def stop(self, container: Container, timeout_s: float | None, signal: str | None) -> None:
        """The stop signal, `timeout_s` (-1: no end) to obey it, then SIGKILL. Returns when it has
        ended; nothing happens if it does not run."""
        number = signals.number(signal or container.config.stop_signal or "SIGTERM")
        work = self._stop(container, timeout_s, number)
        await self._background.finish(work, f"stop {container.name}")

    async def _stop(self, container: Container, timeout_s: float | None, number: int) -> None:
        if container.state == "restarting":
            async with container.lock:
                if container.state == "restarting":
                    self.forget_restart(container)
                    container.current.status = "exited"
                    container.current.manually_stopped = True
                    await self.save(container)
                    container.changed()
                    return
        if not container.live:
            return
        container.current.manually_stopped = True
        await self.save(container)
        seen = container.exits
        await self._signal(container, number)
        if container.state == "paused":
            await self.unpause(container)
        if not await self._ends(container, seen, self._grace(container, timeout_s)):
            await self._kill(container, seen)
        self.publish(container, "stop")

    def _grace(self, container: Container, timeout_s: float | None) -> float | None:
        if timeout_s is None:
            own = container.config.stop_timeout
            timeout_s = self._config.stop_grace_s if own is None else float(own)
        return None if timeout_s < 0 else timeout_s

    async def _ends(self, container: Container, seen: int, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await container.until(lambda c: c.exits > seen or c.removed)
        except TimeoutError:
            return False
        return True

    async def _kill(self, container: Container, seen: int) -> None:
        await self._signal(container, 9)
        if container.state == "paused":
            await self.unpause(container)
        if not await self._ends(container, seen, _KILL_S):
            raise Unavailable(
                f"container {container.name} did not end {_KILL_S:g} s after SIGKILL: a process "
                "of it hangs in the kernel"
            )

    async def kill(self, container: Container, signal: str) -> None:
        """Send a signal. After SIGKILL, returns when the container has ended."""
        number = signals.number(signal)
        if not container.live:
            raise Conflict(f"cannot kill container: {container.name}: container is not running")
        stop_signal = signals.number(container.config.stop_signal or "SIGTERM")
        if number in (9, stop_signal):
            container.current.manually_stopped = True
        if number == 9:
            await self._background.finish(
                self._kill(container, container.exits), f"kill {container.name}"
            )
        else:
            await self._signal(container, number)

    async def _signal(self, container: Container, number: int) -> None:
        try:
            await self._keeper.request("signal", container=container.id, signal=number)
        except KeeperError:  # it has just ended
            return
        self.publish(container, "kill", {"signal": str(number)})

    # --- pause

    async def pause(self, container: Container) -> None:
        if container.state == "paused":
            raise Conflict(f"container {container.name} is already paused")
        if container.state != "running":
            raise Conflict(f"container {container.name} is not running")
        await self._freeze(container, True)
        container.current.status = "paused"
        await self.save(container)
        self.publish(container, "pause")
        container.changed()

    async def unpause(self, container: Container) -> None:
        if container.state != "paused":
            raise Conflict(f"container {container.name} is not paused")
        await self._freeze(container, False)
        if container.state == "paused":
            container.current.status = "running"
            await self.save(container)
            self.publish(container, "unpause")
            container.changed()

    async def _freeze(self, container: Container, frozen: bool) -> None:
        try:
            await asyncio.to_thread(self._hierarchy.freeze, self.cgroup(container), frozen)
        except FileNotFoundError:
            raise Conflict(f"container {container.name} is not running") from None
        except (OSError, TimeoutError) as error:
            raise ShoalError(f"cannot freeze container {container.name}: {error}") from error

    async def release(self, container: Container) -> None:
        """It is being removed: the keeper and the network forget it. The caller holds the lock."""
        with contextlib.suppress(KeeperError):
            await self._keeper.request("forget", container=container.id, removed=True)
        await self._networks.close_sandbox(container.id)
        container.sandbox = None
        self._delays.pop(container.id, None)

    # --- common

    async def save(self, container: Container) -> None:
        async with container.saving:  # what is newest is written last
            try:
                copy = msgspec.structs.replace(container.current)
                await asyncio.to_thread(self._disk.save_state, container.id, copy)
            except OSError as error:
                _log.error("cannot write the state of container %s: %s", container.name, error)

    def publish(
        self, container: Container, action: str, extra: dict[str, str] | None = None
    ) -> None:
        attributes = {
            **(container.config.labels or {}),
            "image": container.config.image,
            "name": container.name,
            **(extra or {}),
        }
        self._events.publish("container", action, container.id, attributes)

    async def limit(self, container: Container, host: HostConfig) -> None:
        """Give a running container the limits of `host`. Raises Invalid if the kernel refuses."""
        cgroup, before = self.cgroup(container), container.host_config
        try:
            await asyncio.to_thread(self._limit, cgroup, before, host)
        except FileNotFoundError:
            return  # it has just ended
        except OSError as error:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._limit, cgroup, host, before)
            raise Invalid(f"Cannot update container {container.id}: {error}") from error

    def _limit(self, cgroup: str, before: HostConfig, host: HostConfig) -> None:
        found = None
        if not devices.same_disks(before, host):
            disks = devices.changed(devices.block(before), devices.block(host))
            if before.blkio_weight and not host.blkio_weight:
                disks["weight"] = _USUAL_WEIGHT
            found = devices.Devices((), disks)
        self._hierarchy.update(cgroup, oci.resources(host, found))

    async def close_strays(self, live: set[str]) -> None:
        """Close sandboxes whose container does not run."""
        for sandbox_id in set(self._networks.sandboxes()) - live:
            with contextlib.suppress(NotFound):
                await self._networks.close_sandbox(sandbox_id)


def _sandbox_spec(container: Container) -> SandboxSpec:
    record, host = container.record, container.host_config
    return SandboxSpec(
        id=record.id,
        mode="none" if record.config.network_disabled else record.network_mode,
        attachments=record.attachments,
        host_ports=record.host_ports,
        internal_only=record.detached,
        hostname=record.config.hostname,
        name=record.name,
        dns_servers=host.dns or (),
        dns_search=host.dns_search or (),
        dns_options=host.dns_options or (),
        sysctls={k: v for k, v in (host.sysctls or {}).items() if k.startswith("net.")},
    )


def moment(time_ns: int) -> dt.datetime | None:
    """Nanoseconds since 1970 as a time; None for 0."""
    if not time_ns:
        return None
    return dt.datetime.fromtimestamp(time_ns // 1000 / 1_000_000, dt.UTC)
