"""A leader that stands still for longer than an election. Behaviours 175 and 178."""

import asyncio

import pytest

from common.errors import NotLeader
from tests.support.raft_clients import Write, create_node, delete_node
from tests.support.raft_store_world import StoreWorld, store_of
from tests.support.raft_world import Process, World


async def test_a_leader_that_stood_still_is_replaced_and_answers_no_old_read() -> None:
    async with asyncio.TaskGroup() as group:
        world = World("a pause", group)
        old = await world.found(3)
        await old.driver.propose(b"one")
        old.pause()
        await asyncio.sleep(3)
        new = await world.await_leader()
        assert new is not old
        index = await new.driver.propose(b"two")
        assert old.driver.status.is_leader, "it knows nothing of what happened"
        read = group.create_task(_refused(old))
        await asyncio.sleep(0.5)
        assert not read.done()
        old.resume()
        await read
        await world.await_applied(["m1", "m2", "m3"], index)
        assert old.driver.status.leader_id == new.member.id
        for process in world.alive:
            process.crash()
    assert world.checker.violation is None


async def _refused(process: Process) -> None:
    with pytest.raises(NotLeader):
        await process.driver.read_barrier()


@pytest.mark.parametrize("there", [True, False])
async def test_a_leader_that_stood_still_refuses_nothing_by_what_it_knows(there: bool) -> None:
    """Found by simulation: a name was refused although its holder had been deleted elsewhere."""
    async with asyncio.TaskGroup() as group:
        world = StoreWorld("a pause of a store", group)
        old = await world.found(3)
        write = create_node("a", "old") if there else create_node("other", "old")
        await store_of(old).update(write)
        old.pause()
        await asyncio.sleep(3)
        new = await world.await_leader()
        await asyncio.sleep(1)
        await store_of(new).update(delete_node("a") if there else create_node("a", "new"))
        useless = create_node("a", "mine") if there else delete_node("a")
        told = group.create_task(_not_told(old, useless))
        await asyncio.sleep(0.5)
        assert not told.done()
        old.resume()
        await told
        for process in world.alive:
            process.crash()
    assert world.checker.violation is None


async def _not_told(process: Process, write: Write) -> None:
    with pytest.raises(NotLeader):
        await store_of(process).update(write)
