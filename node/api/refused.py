"""What Docker has and this version of Shoal has not: refused with one sentence, never ignored."""

from aiohttp import web

from common.errors import NotImplementedHere
from node.api.routes import Handler, Route

_REFUSED = {
    "/build": "building images",
    "/session": "BuildKit sessions",
    "/plugins{rest:(/.*)?}": "managing plugins",
    "/images/search": "searching registries",
    "/images/{name:.+}/push": "pushing images",
    "/networks/{id}/connect": "connecting running containers to networks",
    "/networks/{id}/disconnect": "disconnecting running containers from networks",
}


class RefusedRoutes:
    def routes(self) -> list[Route]:
        return [Route("*", path, _refuse(what)) for path, what in _REFUSED.items()]


def _refuse(what: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise NotImplementedHere(f"{what} is not supported by this version of Shoal")

    return handler
