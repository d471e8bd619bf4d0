"""Starts a container while its network is still being connected.

The child makes its mounts meanwhile and waits at a pipe, the gate, before it goes on. A byte opens
it; if this daemon fails or dies, the pipe closes without one, and the child gives up.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from worker.network.model import Sandbox

Connect = Callable[[Callable[[Sandbox], None]], Awaitable[Sandbox]]
Begin = Callable[[Sandbox, int], Awaitable[dict[str, Any]]]


class Gate:
    """`waiting` is the end for the child."""

    def __init__(self) -> None:
        self.waiting, self._key = os.pipe()

    def open(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the child has failed already
            os.write(self._key, b"\1")

    def lock(self) -> None:
        """From now on it stays as it is. Safe to repeat."""
        if self._key >= 0:
            os.close(self._key)
            self._key = -1

    def close(self) -> None:
        self.lock()
        os.close(self.waiting)


async def start(connect: Connect, begin: Begin) -> dict[str, Any]:
    """What `begin` gives. `connect` may call its argument early: then `begin` runs beside it.

    Raises the network's error if there is one, otherwise the start's.
    """
    entered: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
    gate = Gate()
    try:
        connected, started = await asyncio.gather(
            _connect(connect, entered, gate),
            _begin(begin, entered, gate.waiting),
            return_exceptions=True,
        )
    finally:
        gate.close()
    if isinstance(connected, BaseException):
        raise connected
    if isinstance(started, BaseException):
        raise started
    answer: dict[str, Any] = started
    return answer


async def _connect(connect: Connect, entered: "asyncio.Future[Sandbox]", gate: Gate) -> None:
    def enter(sandbox: Sandbox) -> None:
        if not entered.done():
            entered.set_result(sandbox)

    try:
        enter(await connect(enter))
        gate.open()
    finally:
        gate.lock()
        entered.cancel()  # without effect once it has a result


async def _begin(begin: Begin, entered: "asyncio.Future[Sandbox]", gate: int) -> dict[str, Any]:
    return await begin(await entered, gate)
