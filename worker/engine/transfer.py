"""Tars between blocking code and the event loop, through a pipe: bounded, and ended by either side.

Each transfer has a thread of its own, as it lasts for as long as a client likes, and may change
its mount namespace.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import IO, TypeVar

from worker.engine.streams import ready

T = TypeVar("T")
_CHUNK = 256 * 1024
_F_SETPIPE_SZ = 1031


async def apart(work: Callable[[], T]) -> T:
    """Do blocking `work` in a new thread, to its end even when the caller is cancelled."""
    running = _begin(work)
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.gather(running, return_exceptions=True)


def _begin(work: Callable[[], T]) -> "asyncio.Future[T]":
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  handed to who waits
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name="transfer", daemon=True).start()
    return future


async def produced(work: Callable[[IO[bytes]], None]) -> AsyncGenerator[bytes, None]:
    """What `work` writes, as it comes; raises what it raised. Closing this ends the work."""
    reading, writing = _pipe()
    os.set_blocking(reading, False)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(writing, "wb", buffering=_CHUNK) as out:
            work(out)

    running = _begin(write)
    try:
        while data := await _read(reading):
            yield data
        await asyncio.shield(running)
    finally:
        os.close(reading)  # a writer that goes on hears of it
        await asyncio.gather(running, return_exceptions=True)


async def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            await ready(fd)


async def consumed(chunks: AsyncIterator[bytes], work: Callable[[IO[bytes]], T]) -> T:
    """What `work` makes of `chunks`. If these fail, it sees a short end and that is raised."""
    reading, writing = _pipe()
    os.set_blocking(writing, False)

    def read() -> T:
        with open(reading, "rb", buffering=_CHUNK) as source:
            result = work(source)
            while source.read(_CHUNK):  # what follows the end, so that the sender can finish
                pass
            return result

    running = _begin(read)
    try:
        try:
            async for chunk in chunks:
                if not await _write(writing, chunk):
                    break  # it has ended early: it says why
        finally:
            os.close(writing)
        return await asyncio.shield(running)
    finally:
        await asyncio.gather(running, return_exceptions=True)


async def _write(fd: int, data: bytes) -> bool:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await ready(fd, write=True)
        except BrokenPipeError:
            return False
    return True


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # the user's share of pipe memory is used up
        fcntl.fcntl(writing, _F_SETPIPE_SZ, 1 << 20)
    return reading, writing
