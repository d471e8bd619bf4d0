"""The networks around this machine: those it is in, and those it has a route to. Pure.

They are told to the managers, which give overlays other subnets.
"""

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, collapse_addresses
from typing import NamedTuple

from worker.network.netlink.rtnl import Route

RANGES_MAX = 64  # of each kind: a router may know a million


class Surroundings(NamedTuple):
    networks: tuple[str, ...] = ()  # the machine has an address in them
    routes: tuple[str, ...] = ()  # by way of a gateway or a tunnel

    def overlapping(self, pool: str) -> str:
        """The first of `networks` that overlaps with `pool`, or ""."""
        taken = IPv4Network(pool)
        return next((text for text in self.networks if taken.overlaps(IPv4Network(text))), "")


def surroundings(routes: Iterable[Route], own: Collection[int]) -> Surroundings:
    """What `routes` tell. Those of the interfaces `own` are ours; default routes tell nothing."""
    told = [
        route
        for route in routes
        if route.unicast and route.destination.prefixlen and route.index not in own
    ]
    return Surroundings(
        _widest(route.destination for route in told if route.by_kernel),
        _widest(route.destination for route in told if not route.by_kernel),
    )


def _widest(found: Iterable[IPv4Network]) -> tuple[str, ...]:
    ranges = sorted(collapse_addresses(found), key=lambda item: (item.prefixlen, item))
    return tuple(map(str, ranges[:RANGES_MAX]))
