"""The torment of a cluster of stores: clients, watchers, and what must hold in the end."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from common.errors import Unavailable
from tests.support.linearizable import History
from tests.support.raft_chaos import Chaos
from tests.support.raft_clients import NAMES, NODES, Client, write_node
from tests.support.raft_store_world import StoreWorld, store_of
from tests.support.raft_world import Process

CLIENTS = 5
FINAL_KEY = NODES[0]


class StoreChaos(Chaos):
    """Torments a cluster whose clients use its stores."""

    def __init__(self, world: StoreWorld, seed: str, size: int, **rest: Any) -> None:
        super().__init__(world, seed, size, **rest)
        self.history = History()
        self.stores = world
        self._last = Client(world, self.history, CLIENTS)

    def _load(self) -> list[Coroutine[Any, Any, None]]:
        clients = [Client(self.stores, self.history, number) for number in range(CLIENTS)]
        return [*(client.run() for client in clients), self.stores.roam()]

    async def _final_write(self) -> tuple[Process, int]:
        while True:
            self._check()
            leader = await self.world.await_leader()
            store = store_of(leader)
            try:
                async with asyncio.timeout(3):
                    call = self.history.call(FINAL_KEY, CLIENTS + 1, "write", value="final")
                    await store.update(write_node(FINAL_KEY, "final"))
                    self.history.answered(FINAL_KEY, call)
                    return leader, store.version
            except (Unavailable, TimeoutError):
                await asyncio.sleep(0.05)

    async def _final_reads(self) -> None:
        for key in NODES + NAMES:
            while not await self._last.read(await self.world.await_leader(), key):  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.05)

    async def run(self) -> None:
        await super().run()
        why = self.history.explain()
        self.world.checker.require(not why, why)
        self._check()
