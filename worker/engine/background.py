"""Tasks that an owner starts now and ends in its `close`."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Background:
    """Keeps every task, tells of its failure, and cancels and awaits it at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def finish(
        self, work: Coroutine[Any, Any, T], name: str, enough: "asyncio.Future[T] | None" = None
    ) -> T:
        """Do `work` to its end, even when the caller is cancelled: its steps belong together. The
        caller waits for that, or until it knows `enough`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if enough is not None:
            await asyncio.wait((task, enough), return_when=asyncio.FIRST_COMPLETED)
            if enough.done():
                return enough.result()
        return await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
