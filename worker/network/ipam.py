"""Addresses on the node's own bridge: a /22 of the node pool, given out in turn.

An address that was given back is not given again before all others have been, so that what is
still on its way to a dead sandbox does not reach a new one.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from common.errors import Invalid, Unavailable

NODE_PREFIX = 22


def node_subnet(pool: str, index: int) -> IPv4Network:
    """The `index`-th /22 of `pool`, counted from the end if negative. Raises Invalid."""
    try:
        network = IPv4Network(pool)
    except ValueError as error:
        raise Invalid(f"node_pool {pool!r} is not an IPv4 network: {error}") from error
    size = 1 << (32 - NODE_PREFIX)
    count = network.num_addresses // size
    if not -count <= index < count:
        raise Invalid(f"node_pool {pool} has room for {count} nodes, not for number {index}")
    start = int(network.network_address) + (index % count) * size
    return IPv4Network((start, NODE_PREFIX))


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The bridge's own address in `subnet`: the first."""
    return subnet.network_address + 1


class Ipam:
    """Gives out the addresses of one subnet."""

    def __init__(self, subnet: IPv4Network, taken: Collection[IPv4Address] = ()) -> None:
        self.subnet = subnet
        self.gateway = gateway(subnet)
        self._taken = {address for address in taken if address in subnet}
        self._next = max((int(address) for address in self._taken), default=0) + 1

    def take(self) -> IPv4Address:
        """A free address. Raises Unavailable when there is none."""
        first = int(self.gateway) + 1
        last = int(self.subnet.broadcast_address) - 1
        start = self._next if first <= self._next <= last else first
        for number in (*range(start, last + 1), *range(first, start)):
            address = IPv4Address(number)
            if address not in self._taken:
                self._taken.add(address)
                self._next = number + 1
                return address
        raise Unavailable(
            f"all {last - first + 1} addresses of this node ({self.subnet}) are in use"
        )

    def give_back(self, address: IPv4Address) -> None:
        self._taken.discard(address)

    @property
    def used(self) -> int:
        return len(self._taken)
