"""Brings what nodes should be (spec.role) and what they are in Raft and by certificate together.

A worker that should manage gets the role at once: with it comes its certificate, and with that
the node asks to join Raft itself. A manager that should work leaves Raft first and gets its new
role only then (NOD 221), so that nobody with a vote ever has a worker's certificate.

`plan` decides; every step can fail and is planned again, so that a new leader goes on where the
last one stopped.
"""

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from common.clock import Clock
from common.errors import ShoalError
from common.model.cluster import Cluster
from common.model.node import ManagerStatus, Node, Role
from manager.raft.membership import Change, Promote, Remove
from manager.raft.message import Member
from manager.raft.status import RaftStatus
from manager.store.store import Resync, Store, Tx

log = logging.getLogger(__name__)

RETRY_S = 1.0  # between two looks at what Raft refused: a learner behind, a quorum too small
LEARNER_S = 0.1  # a joining manager is waited for, so look often


class SetRole(msgspec.Struct, frozen=True):
    """Let the next certificate of the node say `role`."""

    node_id: str
    role: Role


class SetManagerStatus(msgspec.Struct, frozen=True):
    """Record where the node's manager is, or that it has none."""

    node_id: str
    status: ManagerStatus | None


class HandOver(msgspec.Struct, frozen=True):
    """This manager itself is to go: let another lead, and do the rest."""


Step = SetRole | SetManagerStatus | Promote | Remove | HandOver


class Raft(Protocol):
    """What is needed of the Raft driver."""

    @property
    def member_id(self) -> str: ...
    @property
    def status(self) -> RaftStatus: ...
    async def change_members(self, change: Change) -> None: ...
    async def transfer(self) -> None: ...
    async def wait_change(self, seen: RaftStatus) -> RaftStatus: ...


def plan(
    nodes: Sequence[Node],
    members: Sequence[Member],
    own_id: str,
    behind: Collection[str] = (),
) -> list[Step]:
    """The next steps. At most one changes the membership, since each waits for the one before.

    `behind`: learners that lately had not caught up; they must not keep the others waiting.
    """
    by_node = {member.node_id: member for member in members}
    steps: list[Step] = [step for node in nodes for step in _recorded(node, by_node.get(node.id))]
    change = _membership(nodes, members, own_id, behind)
    return steps if change is None else [*steps, change]


def _recorded(node: Node, member: Member | None) -> list[Step]:
    steps: list[Step] = []
    if node.spec.role is Role.MANAGER and node.role is Role.WORKER:
        steps.append(SetRole(node.id, Role.MANAGER))
    if node.spec.role is Role.WORKER and node.role is Role.MANAGER and member is None:
        steps.append(SetRole(node.id, Role.WORKER))
    status = None if member is None else ManagerStatus(addr=member.address, raft_id=member.id)
    if node.manager_status != status:
        steps.append(SetManagerStatus(node.id, status))
    return steps


def _membership(
    nodes: Sequence[Node], members: Sequence[Member], own_id: str, behind: Collection[str]
) -> Promote | Remove | HandOver | None:
    wanted = {node.id for node in nodes if node.spec.role is Role.MANAGER}
    surplus = [member for member in members if member.node_id not in wanted]
    others = [member for member in members if not member.learner and member.id != own_id]
    for member in surplus:
        if member.id != own_id:
            return Remove(member.id)
    if surplus:
        return HandOver() if others else None  # the last manager cannot go
    learners = [member.id for member in members if member.learner]
    ready = [member_id for member_id in learners if member_id not in behind] or learners
    return Promote(ready[0]) if ready else None


class RoleManager:
    """Runs on the leader."""

    def __init__(self, store: Store, raft: Raft, clock: Clock) -> None:
        self._store = store
        self._raft = raft
        self._clock = clock
        self._behind: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; raises what the store raises when leadership is lost."""
        news = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_nodes(news), name="nodes")
            group.create_task(self._watch_members(news), name="members")
            while True:
                news.clear()
                pause_s = await self._round()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await news.wait()

    async def _watch_nodes(self, news: asyncio.Event) -> None:
        with self._store.watch() as watcher:
            while True:
                try:
                    events = await watcher.next()
                except Resync:
                    news.set()  # every round looks at the whole state anyway
                    continue
                if any(isinstance(event.object, Node) for event in events):
                    news.set()

    async def _watch_members(self, news: asyncio.Event) -> None:
        status = self._raft.status
        while True:
            status = await self._raft.wait_change(status)
            news.set()

    async def _round(self) -> float:
        """Take the steps there are to take. Returns how long to wait at most, seconds."""
        await self._forget_removed()
        members = self._raft.status.members
        if self._behind.issuperset(member.id for member in members if member.learner):
            self._behind.clear()  # each had its turn
        steps = plan(self._store.view().find(Node), members, self._raft.member_id, self._behind)
        if writes := [step for step in steps if isinstance(step, SetRole | SetManagerStatus)]:
            await self._store.update(lambda tx: _write(tx, writes))
        for step in steps:
            try:
                await self._change(step)
            except ShoalError as error:
                log.debug("membership not changed yet", extra={"reason": str(error)})
                if isinstance(step, Promote):
                    self._behind.add(step.id)
                return LEARNER_S if isinstance(step, Promote) else RETRY_S
        return RETRY_S

    async def _change(self, step: Step) -> None:
        match step:
            case Promote() | Remove():
                await self._raft.change_members(step)
                log.info("membership changed", extra={"change": step})
            case HandOver():
                log.info("this manager is demoted and hands over")
                await self._raft.transfer()
            case SetRole() | SetManagerStatus():
                pass  # written already

    async def _forget_removed(self) -> None:
        now = self._clock.now()
        if any(_outlived(cluster, now) for cluster in self._store.view().find(Cluster)):
            await self._store.update(lambda tx: _forget(tx, now))


def _write(tx: Tx, writes: Sequence[SetRole | SetManagerStatus]) -> None:
    for step in writes:
        node = tx.get(Node, step.node_id)
        if node is None:
            continue
        if isinstance(step, SetRole):
            # Checked again here: the operator may have changed his mind meanwhile.
            if node.spec.role is step.role:
                tx.put(msgspec.structs.replace(node, role=step.role))
        else:
            tx.put(msgspec.structs.replace(node, manager_status=step.status))


def _outlived(cluster: Cluster, now: dt.datetime) -> list[str]:
    """Removed nodes whose certificates have ended by themselves (SEC 218)."""
    return [
        node_id
        for node_id, until in cluster.removed_nodes.items()
        if dt.datetime.fromisoformat(until) < now
    ]


def _forget(tx: Tx, now: dt.datetime) -> None:
    for cluster in tx.find(Cluster):
        gone = _outlived(cluster, now)
        kept = {key: value for key, value in cluster.removed_nodes.items() if key not in gone}
        tx.put(msgspec.structs.replace(cluster, removed_nodes=kept))
