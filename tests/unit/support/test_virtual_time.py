import asyncio
import time

import pytest

from tests.support.virtual_time import Deadlock, VirtualTimeLoop


async def test_an_hour_of_sleep_passes_at_once() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    began, real = loop.time(), time.perf_counter()
    await asyncio.sleep(3600)
    assert loop.time() - began == pytest.approx(3600)
    assert time.perf_counter() - real < 1


async def test_timers_run_in_order_of_their_moment() -> None:
    seen: list[float] = []

    async def note(delay: float) -> None:
        await asyncio.sleep(delay)
        seen.append(delay)

    async with asyncio.TaskGroup() as group:
        for delay in (3.0, 1.0, 2.0):
            group.create_task(note(delay))
    assert seen == [1.0, 2.0, 3.0]


async def test_to_thread_runs_inline_and_hands_on_errors() -> None:
    assert await asyncio.to_thread(sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(divmod, 1, 0)


def test_waiting_for_nothing_is_reported() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, pytest.raises(Deadlock):
        runner.run(asyncio.Event().wait())


@pytest.mark.real_time
async def test_a_marked_test_has_the_ordinary_loop() -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
