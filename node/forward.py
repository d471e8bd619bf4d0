"""Hands an HTTP API request to the leading manager and streams its answer back."""

import asyncio
import contextlib

import aiohttp
from aiohttp import web

from common import rpc
from common.tls import MANAGER

FORWARDED = "X-Shoal-Forwarded"  # so that a request goes one step only
_LOOK_S = 1.0  # how often to look whether the client of a quiet answer is still there
_HOP_BY_HOP = frozenset(
    "connection keep-alive te trailer transfer-encoding upgrade host content-length".split()
)


async def forward(client: rpc.Client, leader: str, request: web.Request) -> web.StreamResponse:
    """The leader's answer to `request`. `leader` is HOST:PORT of its cluster listener.

    Raises Unavailable or Forbidden if the leader does not answer; once the answer has begun, a
    break ends it short.
    """
    headers = {
        name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    }
    headers[FORWARDED] = "1"
    try:
        answer = await client.session.request(
            request.method,
            f"https://{leader}/forward{request.rel_url.raw_path_qs}",
            headers=headers,
            data=await request.read() if request.body_exists else None,
            server_hostname=MANAGER,
            allow_redirects=False,
        )
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise rpc.unreachable(leader, error) from error
    async with answer:
        return await _relay(request, answer)


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() not in _HOP_BY_HOP:
            response.headers[name] = value
    response.content_length = answer.content_length
    await response.prepare(request)
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        while part := await _next(request, answer.content):
            await response.write(part)
        await response.write_eof()
    return response


async def _next(request: web.Request, content: aiohttp.StreamReader) -> bytes:
    """The next part of the answer, b"" at its end. Raises ConnectionError once nobody listens."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                return await content.readany()
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has gone")
