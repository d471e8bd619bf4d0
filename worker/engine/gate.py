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

Connect = Callable[[Callable[[Sandbox], Awaitable[None]]], Awaitable[Sandbox]]
Begin = Callable[[Sandbox, int, Callable[[], None]], Awaitable[dict[str, Any]]]


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
    """What `begin` gives. `connect` may call its argument early: then `begin` runs beside it, but
    has the processor to itself until it calls its last argument, when others work for it.

    Raises the network's error if there is one, otherwise the start's.
    """
    entered: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
    gate, asked = Gate(), asyncio.Event()
    try:
        connected, started = await asyncio.gather(
            _connect(connect, entered, gate, asked),
            _begin(begin, entered, gate.waiting, asked),
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


async def _connect(
    connect: Connect, entered: "asyncio.Future[Sandbox]", gate: Gate, asked: asyncio.Event
) -> None:
    async def enter(sandbox: Sandbox) -> None:
        entered.set_result(sandbox)
        await asked.wait()

    try:
        sandbox = await connect(enter)
        if not entered.done():
            entered.set_result(sandbox)
        gate.open()
    finally:
        gate.lock()
        entered.cancel()  # without effect once it has a result


async def _begin(
    begin: Begin, entered: "asyncio.Future[Sandbox]", gate: int, asked: asyncio.Event
) -> dict[str, Any]:
    try:
        return await begin(await entered, gate, asked.set)
    finally:
        asked.set()
