"""Hands an HTTP API request to the leading manager and streams its answer back.

While leadership moves, the request waits and is sent again to whoever leads then, if it surely
had no effect: it was not sent yet, only reads, or was refused for want of the lead. It goes one
step only, and whoever takes it has `ANSWER_S` to begin an answer.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from common import rpc
from common.errors import ProposalUncertain, ShoalError, Unavailable
from common.tasks import end
from common.tls import MANAGER

if TYPE_CHECKING:
    from manager.manager import Manager

FORWARDED = "X-Shoal-Forwarded"  # so that a request goes one step only
NOT_LEADER = "Shoal-Not-Leader"  # in a refusal: nothing was written, another may lead
LEADER_WAIT_S = 5.0
ANSWER_S = 30.0
_CHUNK_LOOK_S = 1.0  # how often to look whether the client of a quiet answer is still there
_PAUSE_S = 0.05
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_HOP_BY_HOP |= {"host", "content-length"}


class _Lost(Exception):
    """The leader went away while we waited for its answer."""


class _Refused(Exception):
    """It was not the leader any more, and did nothing."""


async def forward(
    client: rpc.Client,
    manager: "Manager",
    request: web.Request,
    wait_s: float = LEADER_WAIT_S,
) -> web.StreamResponse:
    """The leader's answer to `request`.

    Raises Unavailable if nobody leads within `wait_s`, ProposalUncertain if the leader was lost
    with the request in its hands. Once the answer has begun, a break ends it short.
    """
    body = await request.read()  # specs: small, and bounded by the application
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        left_s = deadline - asyncio.get_running_loop().time()
        await manager.wait_leader(max(left_s, 0.0))
        # It may be this very manager by now: its listener serves it as well.
        leader = manager.leader_address or manager.address
        attempt = rpc.Attempt()
        try:
            answer = await _ask(client, manager, leader, request, body, attempt)
        except (_Lost, _Refused, ShoalError) as error:
            done = attempt.sent and not isinstance(error, _Refused)
            if done and request.method not in ("GET", "HEAD"):
                raise ProposalUncertain(
                    f"the leader {leader} was lost while it worked on the request, which may have "
                    "happened: look before you repeat it"
                ) from error
            if left_s <= 0 and isinstance(error, ShoalError):
                raise
            if left_s <= 0:
                raise Unavailable(f"the leader {leader} does not answer; try again") from error
            await asyncio.sleep(_PAUSE_S)
            continue
        async with answer:
            return await _relay(request, answer)


async def _ask(
    client: rpc.Client,
    manager: "Manager",
    leader: str,
    request: web.Request,
    body: bytes,
    attempt: rpc.Attempt,
) -> aiohttp.ClientResponse:
    """The head of the leader's answer. Raises _Lost as soon as another leads."""
    headers = {
        name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    }
    headers[FORWARDED] = "1"
    asking = asyncio.get_running_loop().create_task(
        client.request(
            leader,
            request.method,
            f"/forward{request.rel_url.raw_path_qs}",
            body,
            headers=headers,
            host=MANAGER,
            attempt=attempt,
        )
    )
    losing = asyncio.get_running_loop().create_task(manager.wait_other_leader(leader))
    try:
        await asyncio.wait([asking, losing], return_when=asyncio.FIRST_COMPLETED, timeout=ANSWER_S)
        if not asking.done():
            raise _Lost
        answer = asking.result()
        if NOT_LEADER in answer.headers:
            answer.close()
            raise _Refused
        return answer
    finally:
        await end(asking, losing)


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
            async with asyncio.timeout(_CHUNK_LOOK_S):
                return await content.readany()
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has gone")
