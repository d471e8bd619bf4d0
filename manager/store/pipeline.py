"""How the leader's transactions get into the log: many at once, in order, without waiting.

Transactions that are ready together share an entry (group commit). A few entries may be on
their way at the same time; meanwhile what is ready gathers in the open batch. The overlay is the
committed state with everything that is on its way applied to it; after an entry was committed it
is built anew for the next transaction, so that objects get the versions the log gave them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from common.errors import Invalid, NotLeader, ProposalUncertain, ShoalError, Unavailable
from manager.store.change import Change, apply_change, encode_entry
from manager.store.tables import Tables
from manager.store.view import ENTRY_BYTES_MAX, ENTRY_CHANGES_MAX, Tx

TRANSACTION_BYTES_MAX = 7_000_000  # one entry; the log takes no larger ones
IN_FLIGHT_MAX = 4
WAITING_BYTES_MAX = 64_000_000


class Proposer(Protocol):
    """What brings entries into the log, for one term."""

    async def propose(self, data: bytes) -> int:
        """The index of the entry, once it is committed and applied here.

        Calls get their places in the log in the order in which they are made. Once a call was
        refused, later ones are refused too. Raises NotLeader or ProposalUncertain.
        """
        ...

    async def confirm(self) -> None:
        """Returns once it is sure that the term had not ended when this was called.

        Raises NotLeader.
        """
        ...


class _Batch:
    """Transactions that share an entry."""

    def __init__(self) -> None:
        self.changes: list[msgspec.Raw] = []
        self.transactions: list[tuple[int, list[Change]]] = []  # provisional version, changes
        self.size = 0
        self.data = b""  # the entry, once it is proposed
        self._waiters: list[asyncio.Future[None]] = []

    def has_room(self, count: int, size: int) -> bool:
        changes = len(self.changes) + count
        return self.size + size <= ENTRY_BYTES_MAX and changes <= ENTRY_CHANGES_MAX

    def outcome(self) -> asyncio.Future[None]:
        """One for each caller, so that one who gives up does not take the others along."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def succeed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)


class Pipeline:
    """The writes of one term. Once stopped, for whatever reason, it never writes again."""

    def __init__(
        self,
        proposer: Proposer,
        committed: Callable[[], Tables],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        """`tasks` holds the proposals under way; their owner may cancel them and wait."""
        self._proposer = proposer
        self._committed = committed
        self._overlay = committed()
        self._stale = False  # an entry was committed since the overlay was built
        self._waiting: deque[_Batch] = deque()  # not yet proposed; the last one is open
        self._waiting_bytes = 0
        self._flying: deque[_Batch] = deque()  # proposed, oldest first
        self._tasks = tasks
        self._flush_soon = False
        self._ended = asyncio.Event()

    @property
    def stopped(self) -> bool:
        return self._ended.is_set()

    async def wait_stopped(self) -> None:
        await self._ended.wait()

    @staticmethod
    def not_leader() -> NotLeader:
        return NotLeader("this manager does not lead the cluster, so it cannot write")

    def newest(self) -> Tables:
        """The state that the next transaction should see."""
        if not (self._flying or self._waiting):
            return self._committed()
        if self._stale:
            self._overlay, self._stale = self._rebased(), False
        return self._overlay

    def changes_of(self, data: bytes) -> list[Change] | None:
        """What `data` says, if it is the oldest entry on its way: then nobody needs to read it.

        Reading gives back equal objects; those that were written share what is the same in them.
        """
        if not self._flying or self._flying[0].data != data:
            return None
        return [change for _, changes in self._flying[0].transactions for change in changes]

    async def commit(self, tx: Tx, tables: Tables, provisional: int) -> None:
        """Bring what `tx` did into the log; `tables` is the newest state with that done."""
        if tx.changes:
            await self._add(tx, tables, provisional).outcome()
        else:
            await self.settled()

    async def settled(self) -> None:
        """Until it is sure that what a transaction sees by now is so, and is the newest.

        For one that writes nothing, before it tells what it saw: what was on its way may never
        happen, and another manager may lead and have written what this one does not know. Raises
        NotLeader.
        """
        if batch := self._last():
            try:
                await batch.outcome()
            except ProposalUncertain as error:
                raise self.not_leader() from error
        await self._proposer.confirm()

    def stop(self) -> None:
        """Refuse what was not yet proposed."""
        self._stop(self.not_leader())

    def _last(self) -> _Batch | None:
        if self._waiting:
            return self._waiting[-1]
        return self._flying[-1] if self._flying else None

    def _add(self, tx: Tx, tables: Tables, provisional: int) -> _Batch:
        size = tx.size
        if size > TRANSACTION_BYTES_MAX:
            raise Invalid(f"this change takes {size} bytes, the most is {TRANSACTION_BYTES_MAX}")
        if self._waiting_bytes > WAITING_BYTES_MAX:
            raise Unavailable("too many writes wait for the log of the cluster; try again")
        batch = self._open_batch(len(tx.changes), size)
        batch.changes += tx.encoded
        batch.transactions.append((provisional, tx.changes))
        batch.size += size
        self._waiting_bytes += size
        self._overlay, self._stale = tables, False
        self._schedule()
        return batch

    def _open_batch(self, count: int, size: int) -> _Batch:
        if not self._waiting or not self._waiting[-1].has_room(count, size):
            self._waiting.append(_Batch())
        return self._waiting[-1]

    def _schedule(self) -> None:
        """Flush when everything that is ready in this turn of the loop has joined."""
        if not self._flush_soon:
            self._flush_soon = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_soon = False
        while self._waiting and len(self._flying) < IN_FLIGHT_MAX and not self.stopped:
            batch = self._waiting.popleft()
            self._waiting_bytes -= batch.size
            self._flying.append(batch)
            # Tasks start in the order in which they are made, which keeps that of the entries.
            task = asyncio.get_running_loop().create_task(self._propose(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _propose(self, batch: _Batch) -> None:
        if self.stopped:  # an entry before this one was refused: it must not get in without that
            self._fail(batch, self.not_leader())
            return
        try:
            batch.data = encode_entry(batch.changes)
            await self._proposer.propose(batch.data)
        except asyncio.CancelledError:
            self._fail(batch, ProposalUncertain("this manager stops; the write may have happened"))
            raise
        except Exception as error:  # noqa: BLE001 - handed to those who wait for the batch
            self._fail(batch, error)
        else:
            self._succeed(batch)

    def _succeed(self, batch: _Batch) -> None:
        self._flying.remove(batch)
        batch.succeed()
        self._stale = True
        self._flush()

    def _rebased(self) -> Tables:
        """The committed state with all that is on its way, which the log will only repeat."""
        tables = self._committed().fork()
        for batch in (*self._flying, *self._waiting):
            for provisional, changes in batch.transactions:
                for change in changes:
                    apply_change(tables, change, provisional)
        return tables

    def _fail(self, batch: _Batch, error: Exception) -> None:
        self._flying.remove(batch)
        batch.fail(error)
        # What waits was built upon a write that failed. What was proposed after it is the
        # proposer's to answer: it may be in the log by now.
        self._stop(self.not_leader())

    def _stop(self, error: ShoalError) -> None:
        self._ended.set()
        for batch in self._waiting:
            batch.fail(error)
        self._waiting.clear()
        self._waiting_bytes = 0
