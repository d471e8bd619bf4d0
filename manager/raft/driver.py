"""Gives `core.Raft` its clock, disk and network, and its callers something to await.

Inputs (messages, proposals, ticks) go into the core at once; one task then takes out the
work of all that came together: messages are sent, committed entries applied, and what must be
on disk is handed to a second task, so that the loop goes on while the disk syncs and
everything that comes meanwhile shares the next sync.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from common.errors import Conflict, NotLeader, ProposalUncertain, Unavailable
from manager.raft.config import RaftConfig
from manager.raft.contacts import Contacts, check_sender
from manager.raft.core import Raft
from manager.raft.disk import Disk, Stored
from manager.raft.errors import DiskFailed
from manager.raft.log import Log
from manager.raft.machine import StateMachine
from manager.raft.membership import Change, UpdateAddress
from manager.raft.message import (
    AnyMessage,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    ProtocolError,
    decode,
    encode,
    encode_configuration,
)
from manager.raft.network import Network
from manager.raft.snapshots import SnapshotWork
from manager.raft.status import RaftStatus, identity, status_of
from manager.raft.work import Role, Write

_LOG = logging.getLogger(__name__)

ANNOUNCE_S = 0.002  # a commit waits so long for an append that tells the followers of it, too


async def bootstrap(disk: Disk, member: Member) -> None:
    """Make an empty disk that of a cluster's first and only member, which then may `run`.

    Raises Conflict if the disk holds a log already.
    """
    stored = await disk.load()
    if not stored.is_empty:
        raise Conflict("there is a Raft log already; leave the cluster before making another")
    configuration = Configuration((msgspec.structs.replace(member, learner=False),))
    data = encode_configuration(configuration)
    first = Entry(1, 1, EntryKind.CONFIGURATION, data)
    await disk.write(HardState(1, member.id, 1), [first])


class Driver:
    """One member of the cluster, running.

    With an empty disk it is a joiner: it knows nobody and waits for a leader that has been
    told to add it.
    """

    def __init__(
        self,
        *,
        member_id: str,
        config: RaftConfig,
        disk: Disk,
        network: Network,
        machine: StateMachine,
        rng: random.Random,
        stored: Stored | None = None,
    ) -> None:
        """`stored`: what `disk.load` has returned, if it was called already."""
        self.member_id = member_id
        self._config = config
        self._disk = disk
        self._network = network
        self._machine = machine
        self._rng = rng
        self._stored = stored
        self._wake = asyncio.Event()
        self._take_part(Raft(member_id, config, rng, Log(), HardState()))
        self._running = False
        self._stopping = False
        self._snapshot_asked = False  # perhaps before the start
        self._changed = asyncio.Event()  # replaced at each change of status
        self._seen = identity(self._raft)
        self._writes: asyncio.Queue[Write] = asyncio.Queue(1)
        self._proposals: dict[int, tuple[int, asyncio.Future[int]]] = {}  # by index; with term
        self._reads: dict[int, asyncio.Future[int]] = {}
        self._applying: list[tuple[int, asyncio.Future[int]]] = []  # reads waiting for an index
        self._tokens = 0
        self._contacts = Contacts()
        self.address = ""  # where this member is reached, for the others; "": as the log says
        self._changing = asyncio.Lock()
        self._announce = False  # at the next occasion
        self._announcing: asyncio.TimerHandle | None = None
        self._leader_heard: float | None = None  # when, on the loop's clock

    # What callers use

    @property
    def raft(self) -> Raft:
        """The core, for inspection only."""
        return self._raft

    @property
    def status(self) -> RaftStatus:
        return status_of(self._raft, self._snapshots.applied)

    @property
    def silence_s(self) -> float | None:
        """Seconds since a leader's last word, 0 where we lead; None: none since the start."""
        if self._raft.role is Role.LEADER:
            return 0.0
        if self._leader_heard is None:
            return None
        return asyncio.get_running_loop().time() - self._leader_heard

    async def wait_change(self, seen: RaftStatus) -> RaftStatus:
        """The status, as soon as role, term, leader, members or removal differ from `seen`."""
        before = (seen.role, seen.term, seen.leader_id, seen.members, seen.removed)
        while identity(self._raft) == before:
            await self._changed.wait()
        return self.status

    async def run(self) -> None:
        """Take part until cancelled or stopped.

        Raises LogDamaged or DiskFailed, after which this member must not go on.
        """
        try:
            await self._start()
            with contextlib.suppress(_Stopped):
                await self._work_together()
        finally:
            self._running = False
            if self._announcing is not None:
                self._announcing.cancel()
            self._fail_waiters()
            await self._disk.close()

    async def stop(self) -> None:
        """Hand over if we lead and somebody can take over, then end `run`."""
        if self._running and self._raft.role is Role.LEADER:
            with contextlib.suppress(Conflict, Unavailable):
                await self.transfer()
        self._stopping = True
        self._wake.set()

    def receive(self, data: bytes, node_id: str = "") -> None:
        """Take in a message from a peer. What no correct peer sends is dropped.

        `node_id`: by the certificate of whoever sent it, who speaks for no other member.
        """
        if not self._running:
            return
        try:
            envelope = decode(data)
            check_sender(self._raft.log.configuration, envelope, node_id)
            self._contacts.learn(self._raft.log.configuration, envelope)
            self._raft.step(envelope.message)
            if envelope.message.source == self._raft.leader_id:
                self._leader_heard = asyncio.get_running_loop().time()
        except ProtocolError as error:
            _LOG.warning("dropped a Raft message: %s", error)
        self._wake.set()

    async def propose(self, data: bytes, *, term: int | None = None) -> int:
        """Write `data`; its index, once it is committed and applied here.

        With `term`, only if this member still leads in that term. Raises NotLeader, Invalid
        or Unavailable if it was surely not written, ProposalUncertain if it may have been.
        """
        self._check_running()
        self._check_term(term)
        return await self._committed(self._raft.propose(data))

    async def change_members(self, change: Change) -> None:
        """Make one change of the membership; returns once it is committed and in force.

        Waits for its turn. Raises NotLeader, Conflict, NotFound or Invalid if it is refused,
        ProposalUncertain if it may have happened.
        """
        async with self._changing:
            self._check_running()
            while self._raft.leadership and not self._raft.can_change:
                await self._next_change()
            if index := self._raft.propose_change(change):
                await self._committed(index)

    async def update_address(self, address: str) -> None:
        """Tell the cluster that this member, which must lead, is reached at `address`."""
        await self.change_members(UpdateAddress(self.member_id, address))

    async def read_barrier(self, *, term: int | None = None) -> int:
        """An index such that the state now applied here holds every write acknowledged before.

        Asks a majority whether this member still leads, and with `term`, in that term. Raises
        NotLeader.
        """
        self._check_running()
        self._check_term(term)
        self._tokens += 1
        token = self._tokens
        self._raft.read_index(token)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reads[token] = future
        self._wake.set()
        try:
            return await future
        finally:
            self._reads.pop(token, None)

    async def wait_applied(self, index: int) -> None:
        """Until what stands at `index` is applied here. Raises NotLeader when this member stops."""
        self._check_running()
        if self._snapshots.applied < index:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._applying.append((index, future))
            await future

    def snapshot_soon(self) -> None:
        """Take a snapshot once all is applied that the log holds now, whether one is due or not.

        After it no file is left that was sealed with an older data key (RAF 189).
        """
        self._snapshot_asked = True
        if self._running:
            self._snapshots.want(self._raft.log.last_index)

    async def transfer(self, to: str | None = None) -> None:
        """Hand leadership to member `to`, or to the best; returns once we do not lead.

        Raises NotLeader, or Conflict if nobody could take over in time.
        """
        self._check_running()
        term = self._raft.term
        target = self._raft.transfer(to or "")
        self._wake.set()
        while self._running and self._raft.leadership and self._raft.term == term:
            if self._raft.leadership.transfer is None:
                raise Conflict(f"manager {target} did not take over in time; this one still leads")
            await self._next_change()

    # Starting and ending

    async def _start(self) -> None:
        stored = self._stored or await self._disk.load()
        self._stored = None
        meta = stored.snapshot
        if meta:
            log = Log(meta.index, meta.term, meta.configuration, stored.entries)
        else:
            log = Log(entries=stored.entries)
        self._take_part(Raft(self.member_id, self._config, self._rng, log, stored.hard_state, meta))
        if meta:
            await self._snapshots.become(meta)
        self._running = True
        if self._snapshot_asked:
            self.snapshot_soon()
        self._wake.set()

    def _take_part(self, raft: Raft) -> None:
        self._raft = raft
        self._snapshots = SnapshotWork(
            raft, self._config, self._disk, self._machine, self._send_one, self._wake
        )

    async def _work_together(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tick())
                group.create_task(self._on_disk(self._write()))
                group.create_task(self._on_disk(self._snapshots.send()))
                group.create_task(self._on_disk(self._snapshots.save()))
                group.create_task(self._on_disk(self._snapshots.restore()))
                group.create_task(self._work())
        except BaseExceptionGroup as errors:
            # The first cause to the caller, rather than a group of one.
            raise _first(errors) from None

    def _check_running(self) -> None:
        if not self._running:
            raise NotLeader("this manager is starting or stopping; try another or try again")

    def _check_term(self, term: int | None) -> None:
        if term is not None and (self._raft.term != term or self._raft.leadership is None):
            raise NotLeader(f"this manager no longer leads in term {term}", self._leader_address())

    def _leader_address(self) -> str:
        leader = self._raft.leader
        return leader.address if leader and leader.id != self.member_id else ""

    # Tasks

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        period = self._config.tick_ms / 1000
        due = loop.time() + period
        while True:
            await asyncio.sleep(due - loop.time())
            due += period
            if due < loop.time():
                # After a pause, one tick only: messages that waited come before a time-out.
                due = loop.time() + period
            self._raft.tick()
            self._wake.set()

    async def _write(self) -> None:
        while True:
            write = await self._writes.get()
            await self._receive(write)
            if write.hard_state or write.entries:
                await self._disk.write(write.hard_state, write.entries)
            self._raft.written(write)
            if write.install:
                self._snapshots.installed()
            self._send(write.messages)
            self._wake.set()

    async def _on_disk(self, task: Coroutine[Any, Any, None]) -> None:
        """Run `task`; if the disk fails, let another lead before this member ends.

        To hand over takes no disk. Of what could not be written nothing was promised.
        """
        try:
            await task
        except DiskFailed as error:
            led = self._raft.role is Role.LEADER
            _LOG.error("the disk has failed", extra={"reason": str(error), "led": led})
            if led:
                with contextlib.suppress(Conflict, Unavailable):
                    await self.transfer()
            raise

    async def _receive(self, write: Write) -> None:
        if write.discard:
            await self._disk.discard_received()
        for part in write.parts:
            await self._disk.receive(part.meta, part.offset, part.data)
        if write.install:
            await self._disk.install(write.install)

    async def _work(self) -> None:
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            self._take_work()
            if self._raft.has_committed:
                self._wake.set()
                await asyncio.sleep(0)
        raise _Stopped

    def _take_work(self) -> None:
        ready = self._raft.ready(announce=self._announce)
        self._announce = False
        self._note_change()
        self._send(ready.messages)
        for request in ready.chunks:
            self._snapshots.request(request)
        for token, index in ready.reads:
            if future := self._reads.pop(token, None):
                self._applying.append((index, future))
        for entry in ready.committed:
            self._apply(entry)
        if ready.write:
            self._writes.put_nowait(ready.write)
        self._release_reads()
        self._snapshots.consider()
        if self._announcing is None and self._raft.has_news:
            loop = asyncio.get_running_loop()
            self._announcing = loop.call_later(ANNOUNCE_S, self._announce_now)

    def _announce_now(self) -> None:
        self._announcing = None
        if self._raft.has_news:
            self._announce = True
            self._wake.set()

    def _apply(self, entry: Entry) -> None:
        if entry.kind is EntryKind.DATA:
            self._machine.apply(entry.index, entry.data)
        self._snapshots.applied_entry(entry)
        term, future = self._proposals.pop(entry.index, (0, None))
        if future is None or future.done():
            return
        if term == entry.term:
            future.set_result(entry.index)
        else:
            future.set_exception(
                NotLeader("another manager leads, and this was not written", self._leader_address())
            )

    def _release_reads(self) -> None:
        if not self._applying:
            return
        applied = self._snapshots.applied
        for index, future in self._applying:
            if index <= applied and not future.done():
                future.set_result(applied)
        self._applying = [one for one in self._applying if one[0] > applied and not one[1].done()]

    # Sending

    def _send(self, messages: tuple[AnyMessage, ...]) -> None:
        for message in messages:
            self._send_one(message)

    def _send_one(self, message: AnyMessage) -> None:
        target = self._contacts.find(self._raft.log.configuration, message.target)
        if target is None:
            return
        own = self._raft.log.configuration.find(self.member_id)
        address = self.address or (own.address if own else "")
        self._network.send(target, encode(own.node_id if own else "", address, message))

    # Waiting

    async def _committed(self, index: int) -> int:
        """Wait until the entry we just appended at `index` is committed and applied."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._proposals[index] = (self._raft.term, future)
        self._wake.set()
        return await future

    async def _next_change(self) -> None:
        """Wait for the status to change, or a tick."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.tick_ms / 1000):
                await self._changed.wait()

    def _note_change(self) -> None:
        """Wake those who wait for a change, and let go those who waited for a lost leadership."""
        seen = identity(self._raft)
        if seen == self._seen:
            return
        was_leader = self._seen[0] == Role.LEADER.value
        if was_leader and seen[:2] != self._seen[:2]:
            self._leader_heard = asyncio.get_running_loop().time()
            self._fail_waiters()
        self._seen = seen
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _fail_waiters(self) -> None:
        uncertain = "leadership was lost while writing; the write may have happened"
        for _, future in self._proposals.values():
            _fail(future, lambda: ProposalUncertain(uncertain))
        self._proposals.clear()
        address = self._leader_address()
        lost = "leadership was lost while reading; try again"
        for future in (*self._reads.values(), *(waiting for _, waiting in self._applying)):
            _fail(future, lambda: NotLeader(lost, address))
        self._reads.clear()
        self._applying.clear()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Stopped(Exception):
    """`stop` was called; not an error."""


def _fail(future: "asyncio.Future[int]", error: Callable[[], Exception]) -> None:
    if not future.done():
        future.set_exception(error())


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in `group` that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
