"""The daemon of one machine: a worker always, a manager while the node is one, the HTTP API.

start   lock, worker (adopts running containers), cluster membership, API sockets
stop    API, membership (a leader hands over), worker; containers go on
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from aiohttp import web

from common.clock import Clock
from common.config import DaemonConfig
from common.errors import Conflict, Invalid, NotManager
from common.ids import Ids
from common.streams import Stream
from manager.manager import Manager
from manager.term import MakeParts
from node.forward import LEADER_WAIT_S, forward
from node.identity import IdentityFiles
from node.member import Surroundings
from node.sockets import open_sockets
from node.swarm import Swarm
from node.worker import Worker
from worker.engine.engine import Engine
from worker.images.images import Images
from worker.network.networks import Networks

log = logging.getLogger(__name__)

GOODBYE_S = 1.0  # for answers on their way when the daemon stops


class Daemon:
    """What the HTTP API is given. `run` is its whole life."""

    def __init__(
        self,
        config: DaemonConfig,
        version: str,
        clock: Clock,
        rng: random.Random,
        make_app: "Callable[[Daemon], web.Application]",
        make_parts: MakeParts,
    ) -> None:
        self.config = config
        self.version = version
        self.clock = clock
        self.ids = Ids(rng)
        self._worker = Worker(config, version, clock, rng)
        self._make_app = make_app
        around = Surroundings(
            config=config,
            files=IdentityFiles(config.state_dir),
            clock=clock,
            ids=self.ids,
            rng=rng,
            make_agent=self._worker.make_agent,
            make_api=lambda: make_app(self),
            make_parts=make_parts,
        )
        self.swarm = Swarm(around, self._worker.forget_cluster)

    @property
    def engine(self) -> Engine:
        return self._worker.engine

    @property
    def images(self) -> Images:
        return self._worker.images

    @property
    def networks(self) -> Networks:
        return self._worker.networks

    @property
    def manager(self) -> Manager | None:
        return self.swarm.member.manager if self.swarm.member else None

    async def forward(
        self, request: web.Request, wait_s: float = LEADER_WAIT_S
    ) -> web.StreamResponse:
        """Hand `request` to the leading manager and stream its answer back."""
        member = self.swarm.member
        if member is None or member.manager is None:
            raise NotManager("this node stopped being a manager; ask another one")
        return await forward(member.trust.client, member.manager, request, wait_s)

    async def stream_to_leader(self, path: str) -> Stream:
        """A stream to `path` of the leading manager's API."""
        member = self.swarm.member
        if member is None or member.manager is None:
            raise NotManager("this node stopped being a manager; ask another one")
        address = member.manager.leader_address or member.manager.address
        return await member.trust.client.stream(address, f"/forward{path}")

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping`. Raises ShoalError for what keeps it from starting."""
        _make_folders(self.config)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_only_daemon(self.config.state_dir))
            sockets = open_sockets(self.config.api_hosts, self.config.socket_group)
            stack.callback(_remove_sockets, self.config.api_hosts)
            for listening in sockets:
                stack.callback(listening.close)
            await stack.enter_async_context(self._worker.opened())
            await self.swarm.start()
            stack.push_async_callback(self.swarm.close)
            runner = web.AppRunner(
                self._make_app(self),
                access_log=None,
                handle_signals=False,
                shutdown_timeout=GOODBYE_S,
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            for listening in sockets:
                await web.SockSite(runner, listening).start()
            log.info("started", extra={"hosts": ",".join(self.config.api_hosts)})
            await stopping.wait()
            log.info("stopping")


def _make_folders(config: DaemonConfig) -> None:
    for folder in (config.state_dir, config.run_dir):
        try:
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise Invalid(f"cannot make the folder {folder}: {error.strerror}") from error


@contextlib.contextmanager
def _only_daemon(state_dir: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises Conflict if another daemon does."""
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"another daemon uses {state_dir}; stop it or choose another --state-dir"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _remove_sockets(hosts: tuple[str, ...]) -> None:
    for host in hosts:
        if host.startswith("unix://"):
            Path(host.removeprefix("unix://")).unlink(missing_ok=True)
