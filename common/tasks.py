"""Ending tasks."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_AGAIN_S = 2.0  # more than it takes to close a file on a slow disk


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel `tasks` and wait until they are done, whatever their outcome.

    Before Python 3.13 a TaskGroup loses a cancellation that arrives together with the failure of
    one of its tasks, and goes on; so a task that is not done soon is cancelled again.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain that nobody did


async def own(doing: Coroutine[Any, Any, T]) -> T:
    """Do `doing` in a task of its own; cancelled with the caller, who hears of it for sure.

    For loops around what fails inside a TaskGroup: before Python 3.13 such a failure can swallow
    a cancellation of the task it happens in, or leave that task marked as cancelled.
    """
    task = asyncio.get_running_loop().create_task(doing)
    try:
        await asyncio.wait([task])
        return task.result()
    finally:
        await end(task)
