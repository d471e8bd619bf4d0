"""What Python 3.11's TaskGroup loses must not be lost here."""

import asyncio
import contextlib

from common.tasks import end, own


class Lost(Exception):
    pass


async def fails_in_a_group(after: asyncio.Event) -> None:
    async def fail() -> None:
        await after.wait()
        raise Lost

    with contextlib.suppress(Lost):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        except* Lost:
            raise Lost from None


async def test_a_cancellation_that_meets_a_failure_is_heard() -> None:
    after = asyncio.Event()

    async def again_and_again() -> None:
        while True:
            await own(fails_in_a_group(after))
            await asyncio.sleep(1)

    task = asyncio.get_running_loop().create_task(again_and_again())
    await asyncio.sleep(1)
    after.set()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=100)
    assert task.cancelled()


async def test_a_failure_leaves_no_mark_of_cancellation() -> None:
    after = asyncio.Event()
    after.set()
    await own(fails_in_a_group(after))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_end_insists() -> None:
    async def deaf() -> None:
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    task = asyncio.get_running_loop().create_task(deaf())
    await asyncio.sleep(0)
    await end(task)
    assert task.done()
