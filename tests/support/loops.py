"""Drives control loops by hand, without timers: what is left when nothing is dirty any more?"""

import datetime as dt
import functools

from manager.control import Loop
from manager.store.store import Store, Tx
from tests.support.memory_proposer import LoopClock

ROUNDS_MAX = 200


class Loops:
    """`loops` over `store`, restored at once; `settle` runs them until they have nothing to do."""

    def __init__(self, store: Store, *loops: Loop) -> None:
        self._store = store
        self.loops = loops
        self._clock = LoopClock()
        view, self._watcher = store.view_and_watch()
        for loop in loops:
            loop.restore(view)

    async def settle(self) -> None:
        """Raises AssertionError if the loops keep each other busy."""
        for _ in range(ROUNDS_MAX):
            events = self._watcher.take()
            for event in events:
                for loop in self.loops:
                    loop.observe(event)
            dirty = [loop for loop in self.loops if loop.dirty or self._due(loop)]
            if not events and not dirty:
                return
            for loop in dirty:
                await self._store.update(functools.partial(self._reconcile, loop))
        raise AssertionError(f"not settled after {ROUNDS_MAX} rounds: {dirty}")

    @property
    def now(self) -> dt.datetime:
        return self._clock.now()

    def _reconcile(self, loop: Loop, tx: Tx) -> None:
        loop.reconcile(tx, self.now)

    def _due(self, loop: Loop) -> bool:
        return loop.wake_at is not None and loop.wake_at <= self._clock.now()
