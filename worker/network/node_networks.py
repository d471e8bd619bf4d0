"""The networks of this node as users see them: rows, what may be made and removed, events.

Decides and tells; `Networks` does.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network
from typing import Any

from common.errors import Forbidden, Invalid
from common.model.network import NetworkSpec
from worker.network import local, local_pool, local_spec
from worker.network.local_networks import LocalNetworks, check_wish
from worker.network.local_spec import LocalNetwork
from worker.network.sandbox import SandboxRecord
from worker.network.surroundings import Surroundings
from worker.network.table import Table

Tell = Callable[[str, str, str, dict[str, str]], None]


class NodeNetworks:
    """`tell` takes events: kind, action, id, attributes."""

    def __init__(
        self, owner: str, created: dt.datetime, here: LocalNetworks, table: Table, tell: Tell
    ) -> None:
        self._owner = owner
        self._created = created
        self._here = here
        self._table = table
        self._tell = tell
        self.bridge_id = local.network_id(owner, local.BRIDGE)

    # Rows

    def rows(self, link: str, subnet: IPv4Network) -> list[dict[str, Any]]:
        """Docker's JSON of all of them, but for who is on them. `link`, `subnet`: of the node's
        own bridge."""
        return [
            *(
                local.predefined(self._owner, name, self._created, subnet, link)
                for name in local.NAMES
            ),
            *(local.describe(network) for network in self._here.all()),
        ]

    def check_address(self, network_id: str, address: str) -> None:
        """Raises Invalid unless a container may ask for `address` on a network of this node."""
        if network_id == self.bridge_id:
            raise Invalid("user specified IP address is supported on user defined networks only")
        check_wish(self._here.get(network_id), address)

    # Making and removing

    def plan(
        self, spec: NetworkSpec, network_id: str, now: dt.datetime, pool: str, around: Surroundings
    ) -> LocalNetwork:
        """The network that `spec` asks for. `pool`: the nodes' own. Raises Invalid, Forbidden,
        Conflict, NotImplementedHere."""
        taken = list(self._taken(pool, around))
        network = local_spec.plan(
            spec, network_id, now, lambda: local_pool.choose(subnet for subnet, _ in taken)
        )
        self._here.check(network)
        if network.driver == local_spec.BRIDGE:
            _check_subnet(network.subnet.network, taken)
        return network

    def _taken(self, pool: str, around: Surroundings) -> Iterator[tuple[IPv4Network, str]]:
        yield IPv4Network(pool), "the nodes' own pool"
        for network in self._here.all():
            yield network.subnet.network, f"network {network.name}"
        for overlay in self._table.networks():
            for one in overlay.subnets:
                yield IPv4Network(one.subnet, strict=False), f"network {overlay.name}"
        for text in (*around.networks, *around.routes):
            yield IPv4Network(text), "this machine"

    def check_removable(self, row: dict[str, Any], records: Iterable[SandboxRecord]) -> None:
        """Raises Forbidden: it is predefined, or running containers are on it."""
        name, network_id = row["Name"], row["Id"]
        if name in local.NAMES:
            raise Forbidden(f"{name} is a pre-defined network and cannot be removed")
        users = [record.spec for record in records if network_id in network_ids(record)]
        if users:
            listed = ", ".join(
                f'name:"{spec.name or spec.id}" id:"{local.endpoint_id(spec.id, network_id)[:12]}"'
                for spec in users
            )
            raise Forbidden(
                f"error while removing network: network {name} has active endpoints ({listed})"
            )

    # Events

    def tell(self, action: str, network_id: str, name: str, driver: str) -> None:
        """A network was made or removed."""
        self._tell("network", action, network_id, {"name": name, "type": driver})

    def tell_all(
        self, action: str, record: SandboxRecord, besides: SandboxRecord | None = None
    ) -> None:
        """An event for each network of `record` that `besides` is not on."""
        others = {one.network_id for one in besides.sandbox.interfaces} if besides else ()
        for one in record.sandbox.interfaces:
            if one.network_id not in others:
                attributes = {"container": record.spec.id, "name": one.network_name}
                kind = self._driver(one.network_id)
                self._tell("network", action, one.network_id, attributes | {"type": kind})

    def _driver(self, network_id: str) -> str:
        if network_id in self._here:
            return self._here.get(network_id).driver
        return local.BRIDGE if network_id == self.bridge_id else "overlay"


def network_ids(record: SandboxRecord) -> set[str]:
    """The networks that a sandbox has a leg on; "" is the node's bridge."""
    return {leg.network_id for leg in record.legs}


def _check_subnet(subnet: IPv4Network, taken: Iterable[tuple[IPv4Network, str]]) -> None:
    for other, whose in taken:
        if subnet.overlaps(other):
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space: "
                f"{subnet} with {other} of {whose}; choose another --subnet"
            )
