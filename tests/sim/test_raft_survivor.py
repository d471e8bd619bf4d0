"""Two of three members are lost for good, and the survivor goes on alone. RAF 184, 192.

Power fails before every write and sync of the step that makes the new cluster: what is found is
the old cluster or the new one.
"""

import asyncio
import contextlib
import random

import pytest

from common.errors import Conflict, Unavailable
from manager.raft.errors import DiskFailed
from manager.raft.log import Log
from manager.raft.message import Configuration, Entry, EntryKind, Member
from manager.raft.survivor import force, forced, survey
from tests.support.raft_file_disk import FaultyFileDisk
from tests.support.raft_runs import in_new_loop, real_files
from tests.support.raft_world import SIM_CONFIG, World, member, until

TAIL = [b"tail %d" % number for number in range(3)]


async def _play(step: int, writes: int) -> int:
    """Power fails before `step` of the survivor's disk (0: never). How many steps it takes."""
    async with asyncio.TaskGroup() as group:
        with real_files() as files:
            world = World(f"survivor {step}", group, files=files)
            try:
                return await _scenario(world, step, writes)
            finally:
                for process in world.alive:
                    process.crash()


async def _scenario(world: World, step: int, writes: int) -> int:
    survivor = await world.found(3)
    for number in range(writes):
        await _write(world, b"before %d" % number)
    world.crash("m2")
    world.crash("m3")
    await _leave_a_tail(survivor.driver.propose)
    world.crash("m1")

    steps = await _force(world, step)
    disk = world.make_disk("m1", random.Random(1))
    stored = await disk.load()
    disk.crash()
    alone = stored.snapshot is not None and len(stored.snapshot.configuration.members) == 1
    if not alone:
        assert step, "nothing had failed"
        assert _tail(stored.entries) == TAIL
        await _force(world, 0)

    world.start("m1")
    first = await world.await_leader()
    for value in TAIL:
        world.checker.acknowledged[value] = next(
            index for index, data in first.machine.values if data == value
        )
    await _write(world, b"alone")
    await world.add("m4")
    await world.add("m5")
    term = first.driver.status.term
    for lost in ("m2", "m3"):
        process = world.start(lost)
        async with asyncio.timeout(60):
            await until(lambda process=process: process.driver.status.removed)
    await _write(world, b"together")
    assert first.driver.status.term == term, "they disturb nobody"
    await world.await_applied(("m1", "m4", "m5"), max(world.checker.acknowledged.values()))
    world.compare(("m1", "m4", "m5"))
    if world.checker.violation:
        raise world.checker.violation
    return steps


async def _leave_a_tail(propose) -> None:  # type: ignore[no-untyped-def]
    """Entries that nobody else has: the leader does not know yet that it is alone."""
    async with asyncio.TaskGroup() as group:
        for value in TAIL:
            group.create_task(_uncertain(propose, value))


async def _uncertain(propose, value: bytes) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(Unavailable):
        await propose(value)


async def _force(world: World, step: int) -> int:
    disk = world.make_disk("m1", random.Random(f"{step}"))
    assert isinstance(disk, FaultyFileDisk)
    if step:
        disk.fail_at(step)
    with contextlib.suppress(DiskFailed):
        await force(disk, member("m1"), world.make_machine("m1"), lambda: b"forced")
    steps = disk.folder.steps
    disk.crash()
    return steps


def _tail(entries) -> list[bytes]:  # type: ignore[no-untyped-def]
    return [entry.data for entry in entries if entry.data.startswith(b"tail")]


async def _write(world: World, value: bytes) -> None:
    leader = await world.await_leader()
    world.checker.acknowledged[value] = await leader.driver.propose(value)


@pytest.mark.parametrize("writes", [5, SIM_CONFIG.snapshot_entries + 10])
def test_the_survivor_goes_on_whenever_the_power_fails(writes: int) -> None:
    steps = in_new_loop(lambda: _play(0, writes))
    assert steps > 5
    for step in range(1, steps + 1):
        in_new_loop(lambda step=step: _play(step, writes))


def test_who_is_alone_and_who_is_removed() -> None:
    old = Configuration((member("m1"), member("m2", learner=True), member("m3")), ("m0",))
    moved = Member("m2", "node-m2", "m2.example:99", learner=True)
    assert forced(old, moved) == Configuration(
        (Member("m2", "node-m2", "m2.example:99"),), ("m0", "m1", "m3")
    )
    with pytest.raises(Conflict, match="no member"):
        forced(old, member("m4"))


def test_a_survey_tells_what_is_committed_from_what_may_be() -> None:
    texts = enumerate((b"a", b"b", b"c"), 1)
    log = Log(entries=[Entry(index, 1, EntryKind.DATA, data) for index, data in texts])
    log.commit = 1
    found = survey(log, 4)
    assert (found.term, found.last_index, found.last_term, found.commit) == (4, 3, 1, 1)
    assert [entry.data for entry in found.tail] == [b"b", b"c"]
