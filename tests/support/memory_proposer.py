"""A log without Raft, so that a store works alone: it commits at once, later, or not."""

import asyncio
import datetime as dt

from common.errors import NotLeader, ProposalUncertain
from manager.store.store import Store

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


class LoopClock:
    """Wall-clock time that moves with the event loop's, from a fixed start."""

    def __init__(self, start: dt.datetime = START) -> None:
        self._start = start

    def now(self) -> dt.datetime:
        try:
            seconds = asyncio.get_running_loop().time()
        except RuntimeError:
            seconds = 0.0
        return self._start + dt.timedelta(seconds=seconds)


class MemoryProposer:
    """Proposes to nobody and applies to `store` and to all `followers`.

    `delay_s`: how long each commit takes. `hold()` keeps all from committing until `release()`.
    `refuse()` makes this and later proposals raise NotLeader. `lose(written)` makes the next one
    raise ProposalUncertain, after it was written or not, and later ones NotLeader.
    """

    def __init__(self, store: Store, followers: tuple[Store, ...] = (), delay_s: float = 0) -> None:
        self.entries: list[tuple[int, bytes]] = []  # committed
        self.delay_s = delay_s
        self._stores = (store, *followers)
        self._index = store.version
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._losing: bool | None = None
        self._last: asyncio.Future[None] | None = None  # the turn of the proposal before

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def refuse(self) -> None:
        self._refusing = True

    def lose(self, *, written: bool) -> None:
        self._losing = written

    async def propose(self, data: bytes) -> int:
        self._index += 1
        index = self._index
        before, turn = self._last, asyncio.get_running_loop().create_future()
        self._last = turn
        try:
            await asyncio.sleep(self.delay_s)
            await self._open.wait()
            if before is not None:
                await before
            self._decide(index, data)
        finally:
            turn.set_result(None)
        return index

    async def confirm(self) -> None:
        if self._refusing:
            raise NotLeader("another manager leads")

    def _decide(self, index: int, data: bytes) -> None:
        if self._refusing:
            raise NotLeader("another manager leads")
        losing, self._losing = self._losing, None
        if losing is not None:
            self._refusing = True
        if losing is not False:
            self._commit(index, data)
        if losing is not None:
            raise ProposalUncertain("leadership was lost; the write may have happened")

    def _commit(self, index: int, data: bytes) -> None:
        self.entries.append((index, data))
        for store in self._stores:
            store.apply(index, data)


def memory_store(delay_s: float = 0) -> Store:
    """A store that leads alone, on the clock of the event loop."""
    store = Store(LoopClock())
    store.lead(MemoryProposer(store, delay_s=delay_s))
    return store
