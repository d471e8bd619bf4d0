"""The manager's API on a store of its own."""

import random
from collections.abc import AsyncIterator

import pytest

from common.ids import Ids
from common.model.base import Object
from manager.api.api import Api
from manager.api.managers import ManagerInfo
from manager.raft.keyring import new_unlock_key
from manager.store.store import Store
from tests.support import build
from tests.support.memory_proposer import LoopClock, memory_store


class World:
    """An API with a cluster, and what a test says of the managers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.managers: list[ManagerInfo] = []
        rng = random.Random(1)
        self.api = Api(
            store,
            Ids(rng),
            LoopClock(),
            lambda: self.managers,
            lambda root: f"token-of-{root}-{rng.random()}",
            lambda: new_unlock_key(rng),
        )

    async def put(self, *objects: Object) -> None:
        await self.store.update(lambda tx: [tx.put(object) for object in objects])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    store = memory_store()
    world = World(store)
    await world.put(build.cluster())
    yield world
    await store.close()
