"""What runs only while this manager leads."""

import asyncio
from collections.abc import Iterable

from common.clock import Clock
from manager import control
from manager.store.store import Store


async def lead(store: Store, loops: Iterable[control.Loop], clock: Clock) -> None:
    """Run the leader's loops until cancelled. One that fails ends the term.

    Raises what failed, as an exception group; the caller gives up leadership then.
    """
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(control.run(loop, store, clock), name=type(loop).__name__)
