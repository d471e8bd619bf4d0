"""The thread that the log is written in."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from manager.raft.lane import Lane

pytestmark = pytest.mark.real_time


def run(lane: Lane, function: Callable[[], object]) -> "asyncio.Future[object]":
    return asyncio.get_running_loop().run_in_executor(lane, function)


async def test_work_is_done_in_order_in_one_other_thread() -> None:
    lane = Lane("test")
    done: list[int] = []
    threads: list[str] = []

    def work(number: int) -> int:
        done.append(number)
        threads.append(threading.current_thread().name)
        return number * number

    results = await asyncio.gather(*(run(lane, lambda n=n: work(n)) for n in range(100)))
    assert done == list(range(100))
    assert results == [number * number for number in range(100)]
    assert set(threads) == {"test"}
    lane.shutdown()


async def test_an_error_reaches_who_waits_and_the_thread_goes_on() -> None:
    lane = Lane("test")
    with pytest.raises(ZeroDivisionError):
        await run(lane, lambda: 1 // 0)
    assert await run(lane, lambda: 7) == 7
    lane.shutdown()


async def test_what_was_handed_over_is_done_though_nobody_waits_and_it_is_shut_down() -> None:
    lane = Lane("test")
    go_on = threading.Event()
    done: list[str] = []
    first = run(lane, go_on.wait)
    second = run(lane, lambda: done.append("second"))
    second.cancel()
    go_on.set()
    await asyncio.to_thread(lane.shutdown)
    assert done == ["second"]
    assert await first
    assert second.cancelled()
    lane.shutdown()
