"""Power fails before every single write and sync of a member, one after the other.

A short scenario is played with the product's own files: elections, entries, snapshots, one for a
follower that is far behind, changes of membership. Then it is played again for each step of one
member's disk, which loses its power there; what was not synced is lost, sector by sector, in
any order. RAF 182, 186, 188, 190.
"""

import asyncio
import contextlib
import itertools
import os

import pytest

from common.errors import Unavailable
from manager.raft.membership import UpdateAddress
from tests.support.raft_file_disk import FaultyFileDisk
from tests.support.raft_runs import in_new_loop, real_files
from tests.support.raft_world import SIM_CONFIG, World, until

STRIDE = 1 if "SEEDS" in os.environ else 4  # `make sim` leaves no step out
VICTIMS = ("m1", "m2", "m3")  # the first leads, the last gets a snapshot


async def _play(victim: str, step: int) -> int:
    """Play the scenario; `victim` loses power before `step` (0: never). How many steps it took."""
    async with asyncio.TaskGroup() as group:
        with real_files() as files:
            world = World(f"{victim} {step}", group, files=files)
            try:
                return await _scenario(world, victim, step)
            finally:
                for process in world.alive:
                    process.crash()


async def _scenario(world: World, victim: str, step: int) -> int:
    await world.found(3)
    disk = world.processes[victim].disk
    assert isinstance(disk, FaultyFileDisk)
    begin = disk.folder.steps
    if step:
        disk.fail_at(begin + step)
    numbers = itertools.count()
    for _ in range(6):
        await _write(world, next(numbers))
    world.partition(["m3"])
    for _ in range(SIM_CONFIG.snapshot_entries + 5):
        await _write(world, next(numbers))
    world.heal()
    with contextlib.suppress(Unavailable):
        leader = await world.await_leader()
        await leader.driver.change_members(UpdateAddress("m2", "m2.example:4000"))
    for _ in range(6):
        await _write(world, next(numbers))
    await _all_agree(world, next(numbers))
    steps = disk.folder.steps - begin
    # And once more from what all disks hold: here a tail that was cut is read again.
    for name in world.processes:
        world.crash(name)
    await _all_agree(world, next(numbers))
    return steps


async def _write(world: World, number: int) -> None:
    """Write, by whoever leads; whoever has lost its power gets it back."""
    checker = world.checker
    async with asyncio.timeout(60):
        while True:
            _restart_the_dead(world)
            value = b"%d " % number * 60
            leader = world.leader()
            if leader is not None:
                with contextlib.suppress(Unavailable, TimeoutError):
                    async with asyncio.timeout(2):
                        checker.acknowledged[value] = await leader.driver.propose(value)
                        break
            await asyncio.sleep(0.05)
    if checker.violation:
        raise checker.violation


def _restart_the_dead(world: World) -> None:
    for name, process in list(world.processes.items()):
        if not process.alive:
            world.start(name)


async def _all_agree(world: World, number: int) -> None:
    await _write(world, number)
    index = max(world.checker.acknowledged.values())
    for name in world.processes:
        async with asyncio.timeout(60):
            await until(lambda name=name: _has_applied(world, name, index))
    world.compare(world.processes)
    if world.checker.violation:
        raise world.checker.violation


def _has_applied(world: World, name: str, index: int) -> bool:
    _restart_the_dead(world)
    return world.processes[name].has_applied(index)()


@pytest.mark.parametrize("victim", VICTIMS)
def test_power_fails_at_every_step(victim: str) -> None:
    steps = in_new_loop(lambda: _play(victim, 0))
    assert steps > 30
    for step in range(1, steps + 1, STRIDE):
        in_new_loop(lambda step=step: _play(victim, step))
