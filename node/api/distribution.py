"""/distribution: what a registry says of an image."""

from aiohttp import web

from node.api.daemon import Daemon
from node.api.images import registry_auth
from node.api.routes import Route, json_response


class DistributionRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [Route("GET", "/distribution/{name:.+}/json", self.inspect)]

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        digest, platforms = await self._daemon.images.resolve(
            request.match_info["name"], registry_auth(request)
        )
        return json_response(
            {
                "Descriptor": {
                    "MediaType": "application/vnd.oci.image.manifest.v1+json",
                    "Digest": digest,
                    "Size": 0,
                },
                "Platforms": list(platforms),
            }
        )
