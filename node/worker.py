"""The worker of one daemon: images, networks, containers, and the agent that gets them work."""

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator

import msgspec

from common.clock import Clock
from common.config import DaemonConfig
from common.model.node import NodeDescription
from node.describe import boot_id, describe
from node.member import AgentSeams
from worker.agent.agent import Agent
from worker.agent.executor import EngineExecutor
from worker.agent.task_files import TaskFiles
from worker.engine.engine import Engine
from worker.images.images import Images
from worker.network.networks import Networks


class Worker:
    """Always there; in a cluster it gets an agent."""

    def __init__(
        self, config: DaemonConfig, version: str, clock: Clock, rng: random.Random
    ) -> None:
        self._config = config
        self._version = version
        self._clock = clock
        self._rng = rng
        self.networks = Networks(
            config, clock, rng, tell=lambda *event: self.engine.events.publish(*event)
        )
        self.images = Images(config, lambda *event: self.engine.events.publish(*event))
        self.engine = Engine(config, self.images, self.networks, clock, rng)
        self._boot_id = ""
        self._journal = config.state_dir / "agent"

    def make_agent(self, seams: AgentSeams) -> Agent:
        """The agent for a membership of a cluster."""

        def description() -> NodeDescription:
            networks, routes = self.networks.around
            return msgspec.structs.replace(
                describe(self._config, self._version, seams.tls_info),
                networks=networks,
                routes=routes,
                warnings=self.networks.warnings,
            )

        files = TaskFiles()
        return Agent(
            connect=seams.connect,
            managers=seams.state.manager_addresses,
            executor=EngineExecutor(
                self.engine,
                self.images,
                description,
                files,
                stop_grace_s=self._config.stop_grace_s,
            ),
            files=files,
            networks=self.networks,
            journal=self._journal / "journal.db",
            describe=description,
            clock=self._clock,
            rng=self._rng,
            on_role=seams.on_role,
            address=lambda: seams.state.data_address,
            boot_id=self._boot_id,
        )

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Opened in the order in which one needs the other, closed in the reverse."""
        self._boot_id = await asyncio.to_thread(boot_id, self._config.run_dir, self._rng)
        async with contextlib.AsyncExitStack() as stack:
            await self.images.open()
            stack.push_async_callback(self.images.close)
            await self.networks.open()
            stack.push_async_callback(self.networks.close)
            await self.engine.open()
            stack.push_async_callback(self.engine.close)
            yield

    async def forget_cluster(self) -> None:
        """Remove the cluster's containers, networks and journal from this machine (NOD 229)."""
        for container in self.engine.list(all=True):
            if container.owner:
                await self.engine.remove(container.id, force=True, volumes=True)
        await self.networks.leave()
        await asyncio.to_thread(shutil.rmtree, self._journal, ignore_errors=True)
