"""How every control loop of the leader runs.

A loop keeps a little memory of what is dirty and decides what to write. It never awaits: `run`
does the waiting, so a loop is tested by calling it.
"""

import asyncio
import datetime as dt
import functools
from typing import Protocol

from common.clock import Clock
from manager.store.store import Event, Resync, Store, Tx, View, Watcher

QUIET_S = 0.005  # how long commits must pause before we look
PATIENCE_S = 0.1  # how long we let them keep us waiting
RECHECK_S = 10.0  # wall clocks jump: look at them at least this often while waiting for a moment
PAUSE_S = 0.001  # after a pass that wrote nothing, if the loop wants another all the same


class Loop(Protocol):
    """What one control loop is made of."""

    def restore(self, view: View) -> None:
        """Learn everything again from `view`, as after an election."""

    def observe(self, event: Event) -> None:
        """Note what `event` may have put out of order. It may repeat what is known."""

    @property
    def dirty(self) -> bool:
        """Whether `reconcile` has anything to do."""
        ...

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        """Write what brings a bounded part of the dirty things to their specs."""

    @property
    def wake_at(self) -> dt.datetime | None:
        """When `reconcile` is next wanted although nothing happened."""
        ...


async def run(loop: Loop, store: Store, clock: Clock) -> None:
    """Run `loop` until cancelled. What `reconcile` or the store raises ends it."""
    # Most commits are of tasks, and some loops have nothing to do with tasks: they say what they
    # look at (`kinds`), and sleep on.
    with store.watch(kinds=getattr(loop, "kinds", None)) as watcher:
        loop.restore(store.view())  # after watch: an event may repeat, none is missed
        while True:
            if _wanted(loop, clock):
                wrote = await store.update(functools.partial(_reconcile, loop, clock))
                await asyncio.sleep(0 if wrote or not _wanted(loop, clock) else PAUSE_S)
            else:
                await _wait(watcher, loop, clock)
            _observe(loop, store, watcher)


def _reconcile(loop: Loop, clock: Clock, tx: Tx) -> bool:
    loop.reconcile(tx, clock.now())
    return bool(tx.changes)


def _wanted(loop: Loop, clock: Clock) -> bool:
    return loop.dirty or (loop.wake_at is not None and loop.wake_at <= clock.now())


def _observe(loop: Loop, store: Store, watcher: Watcher) -> None:
    try:
        events = watcher.take()
    except Resync:
        loop.restore(store.view())
        return
    for event in events:
        loop.observe(event)


async def _wait(watcher: Watcher, loop: Loop, clock: Clock) -> None:
    """Until commits that come close together have come, so that one pass serves them all."""
    seconds: float | None = None
    if loop.wake_at is not None:
        seconds = min(max((loop.wake_at - clock.now()).total_seconds(), 0.0), RECHECK_S)
    if not await watcher.wait(seconds):
        return
    try:
        async with asyncio.timeout(PATIENCE_S):
            while await watcher.wait(QUIET_S):
                pass
    except TimeoutError:
        return
