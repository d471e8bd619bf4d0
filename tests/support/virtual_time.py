"""An event loop on which hours of timers pass in milliseconds, always in the same order.

When every task waits, the clock jumps to the next timer. Code under test needs no clock
parameter for timeouts: the loop is the clock (`asyncio.get_running_loop().time()`).

For in-memory tests. What waits for a socket, a process or a real thread needs the ordinary
loop: mark such a test `@pytest.mark.real_time`. Functions given to `asyncio.to_thread` are
run at once and inline, so code that calls a short blocking function works here as well,
and in a fixed order.
"""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from typing import Any

import pytest

REAL_TIME_MARKER = "real_time: runs on the ordinary event loop (sockets, processes, threads)"


class Deadlock(RuntimeError):
    """Every task waits and no timer is set: nothing could ever happen again."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose clock moves only when nothing else can."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_NeverWaits(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run `func` now, in this thread; the future is done on return."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            future.set_exception(error)
        return future


class _NeverWaits(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # One descriptor is the loop's own wake-up pipe; only others are worth a system call.
        ready = super().select(0) if len(self.get_map()) > 1 else []
        if ready:
            return ready
        if timeout is None:
            raise Deadlock("deadlock: every task waits and no timer is set")
        if timeout > 0:
            self._loop.now += timeout
        return ready


def loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What `pytest_asyncio_loop_factories` answers in a folder whose tests run in virtual time."""
    if item.get_closest_marker("real_time"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualTimeLoop}
