"""Checks the ranges from which a new cluster is to take its addresses. Pure."""

import ipaddress
import itertools
from collections.abc import Sequence

from common.errors import Invalid


def check_pools(pools: Sequence[str], subnet_size: int) -> None:
    """Raises Invalid naming the pool that is no IPv4 range, too small, or overlaps another."""
    networks = [_network(pool) for pool in pools]
    for network in networks:
        if not network.prefixlen <= subnet_size <= 29:
            raise Invalid(
                f"subnet size {subnet_size} does not fit the address pool {network}: "
                f"it must be between {network.prefixlen} and 29"
            )
    for one, other in itertools.combinations(networks, 2):
        if one.overlaps(other):
            raise Invalid(f"the address pools {one} and {other} overlap")


def _network(pool: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(pool)
    except ValueError as error:
        raise Invalid(f"default address pool {pool!r} is not an IPv4 range: {error}") from error
