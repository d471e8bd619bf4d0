"""After a restart of the daemon, or of the keeper: what runs is adopted, what died is noted."""

import asyncio
import contextlib
import logging
from typing import Any

from common.errors import ShoalError, Unavailable
from worker.engine import restart
from worker.engine.background import Background
from worker.engine.container import Container
from worker.engine.health import Monitors
from worker.engine.lifecycle import Lifecycle
from worker.engine.logs import Logs
from worker.engine.networking import note_networks
from worker.engine.seams import Networks
from worker.runtime.client import KeeperClient, KeeperError

_RETRY_S = 0.2
_log = logging.getLogger(__name__)


class Recovery:
    """Makes the engine's containers agree with the keeper's."""

    def __init__(
        self,
        containers: dict[str, Container],
        keeper: KeeperClient,
        lifecycle: Lifecycle,
        monitors: Monitors,
        logs: Logs,
        networks: Networks,
        background: Background,
    ) -> None:
        self._containers = containers
        self._keeper = keeper
        self._lifecycle = lifecycle
        self._monitors = monitors
        self._logs = logs
        self._networks = networks
        self._background = background
        self._found: dict[str, dict[str, Any]] = {}
        self._ended: set[str] = set()  # told since the list was asked for
        self._recovering = False

    def ended(self, container_id: str) -> None:
        """The keeper tells of an end: what its list says of that container is older."""
        self._ended.add(container_id)

    def found(self, event: dict[str, Any]) -> None:
        """One container of the keeper's list."""
        self._found[event["container"]] = event

    async def at_start(self) -> list[Container]:
        """Returns those to remove, as they asked to be once they ended."""
        before = {c.id for c in self._containers.values() if c.state not in ("created", "exited")}
        await self._keeper.open()
        await self._sync()
        for container in self._containers.values():
            if container.state == "restarting":  # its timer was the old daemon's
                container.current.status = "exited"
        live = {container.id for container in self._containers.values() if container.live}
        await self._lifecycle.close_strays(live)
        gone = []
        for container in self._containers.values():
            if container.live or container.state == "created":
                continue
            if container.host_config.auto_remove:
                gone.append(container)
            else:
                self._restart_at_boot(container, container.id in before)
        return gone

    def _restart_at_boot(self, container: Container, was_running: bool) -> None:
        if restart.at_boot(
            container.host_config.restart_policy,
            manually_stopped=container.current.manually_stopped,
            was_running=was_running,
        ):
            self._background.start(self._start(container), f"start {container.name}")

    async def _start(self, container: Container) -> None:
        try:
            await self._lifecycle.start(container)
        except ShoalError as error:
            _log.warning("cannot start %s with the daemon: %s", container.name, error)

    async def after_loss(self) -> None:
        """The keeper died. Another one takes over what lives."""
        if self._recovering:
            return  # the new one was lost too; whoever is at it tries again
        self._recovering = True
        try:
            await self._recover()
        finally:
            self._recovering = False

    async def _recover(self) -> None:
        _log.warning("the container keeper ended; starting another")
        while True:
            try:
                await self._keeper.open()
                await self._sync()
            except (Unavailable, KeeperError) as error:
                _log.error("%s", error)
                await asyncio.sleep(_RETRY_S)
            else:
                # It may be lost while its answers are worked off, with nothing more to ask it.
                if self._keeper.connected:
                    break
        for container in self._containers.values():
            if container.host_config.auto_remove and container.state == "exited":
                work = self._lifecycle.on_gone(container)
                self._background.start(work, f"remove {container.name}")
            self._lifecycle.plan_restart(container)

    async def _sync(self) -> None:
        self._found, self._ended = {}, set()
        await self._keeper.request("list")
        found = self._found
        sandboxes = self._networks.sandboxes()
        known = dict(self._containers)
        for container_id in set(found) - set(known):
            await self._drop(container_id, found[container_id])
        for container in known.values():
            async with container.lock:
                if container.removed:  # meanwhile, as one that did not run
                    if container.id in found:
                        await self._drop(container.id, found[container.id])
                    continue
                if container.id in self._ended:
                    continue  # who heard of it writes it down; it must not come to life again
                container.sandbox = sandboxes.get(container.id)
                note_networks(container)
                await self._agree(container, found.get(container.id))

    async def _agree(self, container: Container, report: dict[str, Any] | None) -> None:
        if report is None or not report["running"]:
            if report is not None or container.live:
                await self._lifecycle.record_end(container, report or {})
            return
        same = container.live and container.pid == report["pid"]
        if not same:  # its start was not written down any more
            container.current.manually_stopped = False
            self._lifecycle.running(container, report)
            await self._lifecycle.save(container)
        if container.state == "paused" and container.current.frozen_for_commit:
            container.current.frozen_for_commit = False
            await self._lifecycle.unpause(container)
        if container.id in self._logs.followed():
            await self._keeper.request("follow", container=container.id, on=True)
        if not container.health:
            self._monitors.begin(container)

    async def _drop(self, container_id: str, report: dict[str, Any]) -> None:
        """Its folder is gone, so nobody could ever name it."""
        with contextlib.suppress(KeeperError):
            if report["running"]:
                _log.warning(
                    "container %s runs but is not known here; ending it", container_id[:12]
                )
                await self._keeper.request("signal", container=container_id, signal=9)
            await self._keeper.request("forget", container=container_id)
