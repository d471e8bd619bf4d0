"""What befalls a simulated cluster: faults, membership changes, and clients, all from one seed."""

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any

from common.errors import Conflict, Unavailable
from manager.raft.errors import DiskFailed
from tests.support.raft_changes import Changes
from tests.support.raft_file_disk import FaultyFileDisk
from tests.support.raft_world import Process, World

CHAOS_S = 8.0
CLIENTS = 3
LEADER_S = 6.0  # after healing, a leader has written by then; five time-outs of an election
RECOVERY_S = 10.0  # and everything works, everywhere


class Chaos:
    """Torments `world` for a while, then heals it and demands progress."""

    def __init__(self, world: World, seed: str, size: int, *, pauses: bool = False) -> None:
        """With `pauses`, processes stand still, often longer than an election, and clocks jump."""
        self.world = world
        self._rng = random.Random(f"{seed}/chaos")
        self._seed = seed
        self._size = size
        self._pauses = pauses
        self._changes = Changes(world, seed, size)

    async def run(self) -> None:
        """Raises Violation as soon as a rule is broken, or if there is no progress at the end."""
        try:
            async with asyncio.timeout(60):
                await self.world.found(self._size)
        except TimeoutError:
            self.world.checker.require(False, "the cluster cannot be founded")
            self._check()
        async with asyncio.TaskGroup() as clients:
            tasks = [clients.create_task(load) for load in self._load()]
            tasks.append(clients.create_task(self._changes.run()))
            await self._torment()
            for task in tasks:
                task.cancel()
        await self._recover()

    async def _torment(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + CHAOS_S
        faults = [
            self._crash, self._blink, self._ambush, self._crash_leader, self._crash_all,
            self._restart, self._restart, self._restart, self._partition, self._one_way,
            self._heal, self._heal, self._noise, self._slow_disk, self._break_disk,
            self._transfer, self._strand_leader, self._rotate_key,
        ]  # fmt: skip
        if self._pauses:
            faults += [self._pause, self._pause_leader, self._resume, self._clock_jump]
        # A broken rule is told afterwards, not out of a group of tasks, which would wrap it.
        while loop.time() < end and not self.world.checker.violation:
            await asyncio.sleep(self._rng.uniform(0.02, 0.5))
            self._rng.choice(faults)()

    def _check(self) -> None:
        if self.world.checker.violation:
            raise self.world.checker.violation

    # Faults

    def _some(self) -> Process | None:
        alive = self.world.alive
        return self._rng.choice(alive) if alive else None

    def _crash(self) -> None:
        if process := self._some():
            self.world.crash(process.member.id)

    def _blink(self, process: Process | None = None) -> None:
        """A crash, and a start so soon after it that its peers may not have noticed."""
        process = process or self._some()
        if process and process.alive:
            name, soon = process.member.id, self._rng.uniform(0.001, 0.1)
            self.world.crash(name)
            asyncio.get_running_loop().call_later(soon, self._start_if_down, name)

    def _ambush(self) -> None:
        """An election in which all are slow, and who was asked for its vote blinks."""
        if leader := self.world.leader():
            self._blink(leader)
        self.world.delay_s = (0.001, 0.1)
        self.world.heard_vote = self._heard_vote
        asyncio.get_running_loop().call_later(1.5, self._end_ambush)

    def _heard_vote(self, process: Process) -> None:
        if self._rng.random() < 0.5:
            later = self._rng.uniform(0.001, 0.03)
            asyncio.get_running_loop().call_later(later, self._blink, process)

    def _end_ambush(self) -> None:
        self.world.heard_vote = None

    def _start_if_down(self, name: str) -> None:
        process = self.world.processes.get(name)
        if process and not process.alive:
            self.world.start(name)

    def _crash_leader(self) -> None:
        if leader := self.world.leader():
            self.world.crash(leader.member.id)

    def _crash_all(self) -> None:
        if self._rng.random() < 0.3:
            for process in self.world.alive:
                self.world.crash(process.member.id)

    def _restart(self) -> None:
        down = [m for m, process in self.world.processes.items() if not process.alive]
        if down:
            self.world.start(self._rng.choice(down))

    def _partition(self) -> None:
        ids = list(self.world.processes)
        side = self._rng.sample(ids, self._rng.randint(1, max(len(ids) // 2, 1)))
        self.world.checker.note(f"cut off {side}")
        self.world.partition(side)

    def _strand_leader(self) -> None:
        """The leader is alone with its clients, whose writes nobody else gets."""
        if leader := self.world.leader():
            self.world.checker.note(f"the leader {leader.member.id} is alone")
            self.world.partition([leader.member.id])

    def _one_way(self) -> None:
        if process := self._some():
            self.world.checker.note(f"{process.member.id} hears nothing")
            self.world.partition([process.member.id], one_way=True)

    def _heal(self) -> None:
        self.world.checker.note("heal")
        self.world.heal()

    def _noise(self) -> None:
        self.world.loss = self._rng.choice([0.0, 0.05, 0.3])
        self.world.duplication = self._rng.choice([0.0, 0.2])
        self.world.delay_s = self._rng.choice([(0.0005, 0.003), (0.001, 0.1), (0.05, 0.6)])

    def _slow_disk(self) -> None:
        if process := self._some():
            process.disk.slowness_s = self._rng.choice([0.0, 0.05, 0.8])

    def _break_disk(self) -> None:
        """The next write fails, and ends the process."""
        if process := self._some():
            self.world.checker.note(f"the disk of {process.member.id} is full")
            process.disk.broken = True

    def _rotate_key(self) -> None:
        """The log goes on under another key."""
        process = self._some()
        if process and isinstance(process.disk, FaultyFileDisk):
            self.world.checker.note(f"{process.member.id} rotates its key")
            rotating = self.world.group.create_task(_quietly(process.disk.rotate_key()))
            process.around.append(rotating)

    def _transfer(self) -> None:
        if leader := self.world.leader():
            with contextlib.suppress(Conflict, Unavailable):
                leader.driver.raft.transfer()

    def _pause(self, process: Process | None = None) -> None:
        """The whole machine, suspended: no clock ticks, nothing is read, nothing synced."""
        process = process or self._some()
        if process is None or process.paused:
            return
        self.world.checker.note(f"{process.member.id} is paused")
        process.pause()
        loop = asyncio.get_running_loop()
        loop.call_later(self._rng.uniform(0.1, 4.0), self._wake, process)

    def _pause_leader(self) -> None:
        if leader := self.world.leader():
            self._pause(leader)

    def _resume(self) -> None:
        if paused := [process for process in self.world.alive if process.paused]:
            self._wake(self._rng.choice(paused))

    def _wake(self, process: Process) -> None:
        if process.alive and process.paused:
            self.world.checker.note(f"{process.member.id} goes on")
            process.resume()

    def _clock_jump(self) -> None:
        """Up to two seconds pass at once for one member, and for nobody else."""
        process = self._some()
        if process and not process.paused:
            self.world.checker.note(f"the clock of {process.member.id} jumps")
            for _ in range(self._rng.randint(1, 40)):
                process.driver.raft.tick()

    # Load

    def _load(self) -> list[Coroutine[Any, Any, None]]:
        return [self._client(number) for number in range(CLIENTS)]

    async def _client(self, number: int) -> None:
        """Writes values that nobody else writes, and reads, one after the other."""
        rng = random.Random(f"{self._seed}/client {number}")
        count = 0
        while True:
            await asyncio.sleep(rng.uniform(0, 0.04))
            leaders = [p for p in self.world.alive if p.driver.status.is_leader and not p.paused]
            if not leaders:
                continue
            process = rng.choice(leaders)
            count += 1
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(3):
                    if rng.random() < 0.2:
                        await self._read(process)
                    else:
                        await self._write(process, b"%d:%d" % (number, count))

    async def _write(self, process: Process, value: bytes) -> None:
        checker = self.world.checker
        index = await process.driver.propose(value)
        checker.acknowledged[value] = index
        known = checker.committed.get(index)
        checker.require(known is not None and known[0] == value, f"{value!r} is not at {index}")

    async def _read(self, process: Process) -> None:
        acknowledged = max(self.world.checker.acknowledged.values(), default=0)
        index = await process.driver.read_barrier()
        self.world.checker.require(
            index >= acknowledged, f"stale read: {index}, but {acknowledged} was acknowledged"
        )

    # Afterwards

    async def _recover(self) -> None:
        """Heal the world; then all members must agree, and new writes must get through."""
        world = self.world
        self._check()
        self._end_ambush()
        world.heal()
        world.checker.note("the world is healed")
        healed_at = asyncio.get_running_loop().time()
        await asyncio.sleep(0.05)  # whose disk has just failed ends now
        for name, process in list(world.processes.items()):
            if not process.alive:
                world.start(name)
        try:
            async with asyncio.timeout(RECOVERY_S):
                await self._changes.finish()
                async with asyncio.timeout(LEADER_S):
                    leader, index = await self._final_write()
                ids = [m.id for m in leader.driver.status.members]
                await world.await_applied(ids, index)
                await self._final_reads()
        except TimeoutError:
            world.checker.require(False, "no progress after healing")
        world.checker.recovery_s = asyncio.get_running_loop().time() - healed_at
        self._check()
        world.compare(ids)
        for gone in self._changes.removed:
            world.checker.require(gone not in ids, f"removed member {gone} is back")
        self._check()

    async def _final_reads(self) -> None:
        """What else must work once all is well."""

    async def _final_write(self) -> tuple[Process, int]:
        while True:
            self._check()
            leader = await self.world.await_leader()
            try:
                async with asyncio.timeout(3):
                    return leader, await leader.driver.propose(b"final")
            except (Unavailable, TimeoutError):
                await asyncio.sleep(0.05)


async def _quietly(rotating: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(DiskFailed):
        await rotating
