"""/metrics: counters for a monitoring system, in Prometheus's text format."""

from collections.abc import Iterator

from aiohttp import web

from common.errors import NotLeader
from node.api.daemon import Daemon
from node.api.routes import Route, json_response

_TYPE = "text/plain; version=0.0.4"
_PARTS = ("names", "overlay", "mesh", "ports", "sandbox", "firewall")


class MetricsRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/metrics", self.metrics),
            Route("POST", "/shoal/network/audit", self.audit),
        ]

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        text = "".join(f"{line}\n" for line in self._lines())
        return web.Response(body=text.encode(), headers={"Content-Type": _TYPE})

    async def audit(self, request: web.Request) -> web.StreamResponse:
        """Compare this node's kernel with its endpoint table now; what differed, and is mended."""
        return json_response([str(item) for item in await self._daemon.networks.audit()])

    def _lines(self) -> Iterator[str]:
        counts = self._daemon.networks.counts
        yield from _counter(
            "shoal_network_differences_total",
            "Facts in which the kernel differed from the endpoint table.",
            {f'{{part="{part}"}}': counts.differences[part] for part in _PARTS},
        )
        yield from _counter(
            "shoal_network_repairs_total",
            "Repairs of the kernel's network state, after a difference or a refusal.",
            {"": counts.repairs},
        )
        yield from _counter(
            "shoal_network_audits_total",
            "Comparisons of the kernel with the endpoint table.",
            {"": counts.audits},
        )
        manager = self._daemon.manager
        if manager is not None:
            try:
                dispatcher = manager.dispatcher
            except NotLeader:
                return
            yield from _counter(
                "shoal_dispatcher_table_mismatches_total",
                "Nodes whose endpoint table was not what they had been sent, in this term.",
                {"": dispatcher.mismatches},
            )
            yield from _counter(
                "shoal_dispatcher_stops_unanswered_total",
                "Nodes that did not say in time that they send a stopping task no requests.",
                {"": dispatcher.unanswered},
            )


def _counter(name: str, words: str, values: dict[str, int]) -> Iterator[str]:
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} counter"
    for labels, value in values.items():
        yield f"{name}{labels} {value}"
