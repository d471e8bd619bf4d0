"""Changes of a simulated cluster's membership, one after the other, for as long as it runs."""

import asyncio
import contextlib
import random

import msgspec

from common.errors import Conflict, NotFound, ProposalUncertain, ShoalError, Unavailable
from manager.raft.membership import AddLearner, Promote, Remove, UpdateAddress
from manager.raft.message import Member
from tests.support.raft_world import Process, World, member

PATIENCE_S = 3.0


class Changes:
    """Adds, promotes, removes and moves members, the leader too, and replaces wiped ones."""

    def __init__(self, world: World, seed: str, size: int) -> None:
        self.removed: dict[str, None] = {}  # for sure, so they must not come back
        self._world = world
        self._rng = random.Random(f"{seed}/members")
        self._size = size
        self._newest = size
        self._wiped: Member | None = None  # still in the configuration; it will never answer

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))
            if leader := self._world.leader():
                await self._try(leader)

    async def finish(self) -> None:
        """See to it that no member is left that can never come back."""
        while self._wiped:
            await self._try(await self._world.await_leader())
            await asyncio.sleep(0.1)

    async def _try(self, leader: Process) -> None:
        with contextlib.suppress(Unavailable, Conflict, NotFound, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                if self._wiped:
                    await self._replace(leader, self._wiped)
                else:
                    await self._one_change(leader)

    async def _one_change(self, leader: Process) -> None:
        members = leader.driver.status.members
        other = self._rng.choice(members)
        match self._rng.randrange(7):
            case 0 if len(members) < self._size + 2:
                await self._add(leader, None)
            case 1 | 2 if learners := [m for m in members if m.learner]:
                await leader.driver.change_members(Promote(self._rng.choice(learners).id))
            case 3 if len(members) > 2:
                await self._remove(leader, other.id)
            case 4 | 5:
                await self._wipe(leader, other)
            case _:
                address = f"{other.id}.example:{self._rng.randrange(2000, 3000)}"
                await leader.driver.change_members(UpdateAddress(other.id, address))

    async def _add(self, leader: Process, node: Member | None) -> None:
        """Start a new member and let it in; it may be on the node of one that is gone."""
        self._newest += 1
        new = member(f"m{self._newest}")
        if node:
            new = msgspec.structs.replace(new, node_id=node.node_id)
        self._world.start(new.id)
        await leader.driver.change_members(AddLearner(new))

    async def _remove(self, leader: Process, member_id: str) -> None:
        if member_id == leader.member.id:
            await leader.driver.transfer()
            leader = await self._world.await_leader()
        try:
            await leader.driver.change_members(Remove(member_id))
        except ProposalUncertain:
            raise
        except ShoalError:
            return
        self.removed[member_id] = None

    # A machine that loses its disk

    async def _wipe(self, leader: Process, victim: Member) -> None:
        """Take a voter's disk away if the others can do without, now and when it is removed.

        With it go its promises, so it must never come back as the member that it was.
        """
        await leader.driver.read_barrier()
        raft = leader.driver.raft
        everybody = self._world.processes.values()
        agreed = all(p.driver.raft.log.configuration == raft.log.configuration for p in everybody)
        healthy = agreed and all(p.alive and not p.paused for p in everybody)
        voters = raft.log.configuration.voters
        if not healthy or not raft.can_change or len(voters) < 3 or victim.id not in voters:
            return
        self._world.checker.note(f"the disk of {victim.id} is lost")
        self._wiped = victim
        self._world.wipe(victim.id)

    async def _replace(self, leader: Process, wiped: Member) -> None:
        await leader.driver.change_members(Remove(wiped.id))
        self._wiped = None
        self.removed[wiped.id] = None
        await self._add(leader, wiped)
