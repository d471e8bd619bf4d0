"""Ending tasks."""

import asyncio

_AGAIN_S = 0.5


async def end(*tasks: "asyncio.Task[object]") -> None:
    """Cancel `tasks` and wait until they are done, whatever their outcome.

    Before Python 3.13 a TaskGroup loses a cancellation that arrives together with the failure of
    one of its tasks, and goes on; so a task that is not done soon is cancelled again.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)


def heed() -> None:
    """Raise CancelledError if this task was cancelled, even if that was lost on the way (`end`).

    For loops around what uses a TaskGroup: without it they would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
