"""Where the subnets of networks of this node come from: Docker's own ranges. Pure."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network

from common.errors import Forbidden

_POOLS = ((IPv4Network("172.16.0.0/12"), 16), (IPv4Network("192.168.0.0/16"), 20))


def candidates() -> Iterator[IPv4Network]:
    """172.17.0.0/16 … 172.31.0.0/16, then 192.168.0.0/20 …"""
    for pool, size in _POOLS:
        for subnet in pool.subnets(new_prefix=size):
            if subnet.network_address != IPv4Network("172.16.0.0/16").network_address:
                yield subnet


def choose(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first candidate that overlaps with none of `taken`. Raises Forbidden."""
    busy = list(taken)
    for subnet in candidates():
        if not any(subnet.overlaps(other) for other in busy):
            return subnet
    raise Forbidden(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to "
        "assign to the network: choose one with --subnet"
    )
