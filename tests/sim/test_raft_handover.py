"""A hand-over that fails, while clients write. Behaviours 178 and 179."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from common.errors import Conflict, NotLeader
from tests.support.raft_clients import content, create_node, write_node
from tests.support.raft_store_world import StoreWorld, store_of


async def test_after_a_hand_over_that_failed_the_old_leader_writes_again() -> None:
    """Found by reading: it led on, and refused every write for the rest of its term."""
    async with asyncio.TaskGroup() as group:
        world = StoreWorld("a failed hand-over", group)
        leader = await world.found(3)
        store, term = store_of(leader), leader.driver.status.term
        await store.update(create_node("a", "before"))
        world.cut = {("m1", "m2"): None}
        handing_over = group.create_task(_fails(leader.driver.transfer("m2")))
        await asyncio.sleep(0.01)
        for _ in range(2):
            with pytest.raises(NotLeader):
                await store.update(write_node("a", "meanwhile"))
        await handing_over
        world.heal()
        assert (leader.driver.status.is_leader, leader.driver.status.term) == (True, term)
        await asyncio.sleep(1)
        await store.update(write_node("a", "after"))
        assert content(store.view(), "a")[0] == "after"
        for process in world.alive:
            process.crash()
    assert world.checker.violation is None


async def _fails(handing_over: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(Conflict, match="did not take over"):
        await handing_over
