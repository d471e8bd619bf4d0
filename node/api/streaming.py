"""Answers that go on: log lines, multiplexed output, JSON objects one after another."""

import asyncio
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


class Sink:
    """An answer whose end says that it is whole: one that fails is cut off, never ended well."""

    def __init__(
        self, request: web.Request, content_type: str, headers: dict[str, str], idle_s: float
    ) -> None:
        """`idle_s`: how long the client may leave one piece lying."""
        self._request = request
        self._idle_s = idle_s
        self.response = web.StreamResponse(headers={"Content-Type": content_type, **headers})

    async def __aenter__(self) -> "Sink":
        await self.response.prepare(self._request)
        return self

    async def write(self, data: bytes) -> None:
        """Raises ConnectionResetError for a client that has gone or fallen asleep."""
        try:
            async with asyncio.timeout(self._idle_s):
                await self.response.write(data)
        except TimeoutError:
            raise ConnectionResetError(f"the client took nothing for {self._idle_s:g} s") from None

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            await self.response.write_eof()
        elif self._request.transport is not None:
            self._request.transport.abort()


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
