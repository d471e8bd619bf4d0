"""The worker of one daemon: images, networks, containers, and the agent that gets them work."""

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator

from common.clock import Clock
from common.config import DaemonConfig
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
        self.networks = Networks(config, clock, rng)
        self.images = Images(config, lambda *event: self.engine.events.publish(*event))
        self.engine = Engine(config, self.images, self.networks, clock, rng)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Opened in the order in which one needs the other, closed in the reverse."""
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
