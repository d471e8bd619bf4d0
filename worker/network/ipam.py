"""Addresses of one subnet of this node, given out in turn.

An address that was given back is not given again before all others have been, so that what is
still on its way to a dead sandbox does not reach a new one.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network
from itertools import chain

from common.errors import Forbidden, Invalid, Unavailable

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
    """Gives out the addresses of one subnet: those in `within` (default: all) but `reserved`."""

    def __init__(
        self,
        subnet: IPv4Network,
        taken: Collection[IPv4Address] = (),
        *,
        gateway_: IPv4Address | None = None,
        within: IPv4Network | None = None,
        reserved: Collection[IPv4Address] = (),
    ) -> None:
        self.subnet = subnet
        self.gateway = gateway_ or gateway(subnet)
        self._within = within or subnet
        self._reserved = {self.gateway, *reserved}
        self._taken = {address for address in taken if address in subnet}
        mine = [address for address in self._taken if address in self._within]
        self._next = max(map(int, mine), default=0) + 1

    def take(self) -> IPv4Address:
        """A free address. Raises Unavailable when there is none."""
        first = max(int(self.subnet.network_address) + 1, int(self._within.network_address))
        last = min(int(self.subnet.broadcast_address) - 1, int(self._within.broadcast_address))
        start = self._next if first <= self._next <= last else first
        for number in chain(range(start, last + 1), range(first, start)):
            address = IPv4Address(number)
            if address not in self._taken and address not in self._reserved:
                self._taken.add(address)
                self._next = number + 1
                return address
        kept = sum(first <= int(address) <= last for address in self._reserved)
        raise Unavailable(
            f"all {last - first + 1 - kept} addresses of this node ({self._within}) are in use"
        )

    def claim(self, address: IPv4Address) -> IPv4Address:
        """`address`, which somebody asks for. Raises Invalid, Forbidden (it is in use)."""
        edges = (self.subnet.network_address, self.subnet.broadcast_address)
        if address not in self.subnet or address in edges:
            raise Invalid(
                f"Invalid address {address}: it does not belong to any of this network's subnets "
                f"({self.subnet})"
            )
        if address in self._taken or address in self._reserved:
            raise Forbidden(f"Address already in use: {address}")
        self._taken.add(address)
        return address

    def note(self, address: IPv4Address) -> None:
        """Somebody has `address` already."""
        self._taken.add(address)
        if address in self._within:
            self._next = max(self._next, int(address) + 1)

    def give_back(self, address: IPv4Address) -> None:
        self._taken.discard(address)

    @property
    def used(self) -> int:
        return len(self._taken)
