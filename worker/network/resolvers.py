"""The resolvers of the sandboxes that run, and the names of those on networks of this node."""

import asyncio
import random

from worker.network.local_networks import Directory, LocalNetworks, links, scopes
from worker.network.resolver import Resolver
from worker.network.sandbox import Namespace, SandboxRecord
from worker.network.table import Table
from worker.network.upstream import Upstream


class Resolvers:
    """`served` by container id. `bridge`: the id of the node's own bridge."""

    def __init__(
        self,
        table: Table,
        here: LocalNetworks,
        upstream: Upstream,
        bridge: str,
        rng: random.Random,
    ) -> None:
        self._table = table
        self._here = here
        self._upstream = upstream
        self._bridge = bridge
        self._rng = rng
        self.served: dict[str, Resolver] = {}

    def serve(self, record: SandboxRecord, namespace: Namespace | None) -> None:
        """Answer its questions, and others' for it; nothing to do without a network."""
        if namespace is None or namespace.udp is None or namespace.tcp is None:
            return
        self.show(record)
        resolver = Resolver(
            Directory(self._table, self._here, links(record)),
            scopes(record, self._bridge),
            self._upstream,
            record.spec.dns_servers,
            self._rng,
        )
        resolver.start(namespace.udp, namespace.tcp)
        self.served[record.spec.id] = resolver

    def show(self, record: SandboxRecord) -> None:
        """Others find it by the names that it has now."""
        self._here.show(record, self._bridge)

    async def stop(self, sandbox_id: str) -> None:
        """Its sockets may be closed afterwards; nobody finds it any more."""
        self._here.hide(sandbox_id)
        resolver = self.served.pop(sandbox_id, None)
        if resolver is not None:
            await resolver.stop()

    async def close(self) -> None:
        await asyncio.gather(*(item.stop() for item in self.served.values()))
        self.served.clear()
