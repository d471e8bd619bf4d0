"""How a resource module says what it serves."""

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

API_VERSION_ASKED: web.RequestKey[tuple[int, ...]] = web.RequestKey("api_version", tuple)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True):
    """One method and path. `on_leader` requests are served by the leading manager only: others
    hand them over; with `stale` they read the store and are answered without a leader too."""

    method: str
    path: str
    handler: Handler
    on_leader: bool = False
    stale: bool = False


def json_response(value: object, status: int = 200) -> web.Response:
    """`value`, a model or plain data, as Docker's JSON."""
    return web.Response(body=_encoder.encode(value), status=status, content_type="application/json")


_encoder = msgspec.json.Encoder(order="deterministic")
