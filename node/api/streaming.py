"""Answers that go on: log lines, multiplexed output, JSON objects one after another."""

import contextlib
import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

import msgspec
from aiohttp import web

T = TypeVar("T")

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def frame(stream: int, payload: bytes) -> bytes:
    """Docker's framing of output without a terminal: stream (1 or 2), three zeros, length."""
    return bytes((stream, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def timestamp(time_ns: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 with nanoseconds, as Docker writes log times."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


async def start(request: web.Request, content_type: str) -> web.StreamResponse:
    """An answer whose head is sent at once, since clients wait for it before they go on."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    return response


async def json_objects(
    request: web.Request, objects: AsyncIterator[dict[str, object]]
) -> web.StreamResponse:
    """One JSON object a line, each sent as soon as it is there."""
    response = await start(request, "application/json")
    async with contextlib.aclosing(closable(objects)) as source:
        async for item in source:
            await response.write(msgspec.json.encode(item) + b"\n")
    await response.write_eof()
    return response


async def closable(items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """`items` as a generator, so that a client that goes away ends it at once."""
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
