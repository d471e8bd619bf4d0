"""Subnets of the overlay networks, and the addresses inside them. IPv4."""

import ipaddress
from collections.abc import Iterable

import msgspec

from common.model.network import IPAM, IPAMConfig, Network
from manager.allocator.rotation import Rotation

DEFAULT_POOL = ("10.0.0.0/8",)
PREFIX_MAX = 29  # a smaller subnet has no room for a gateway, a VIP and tasks

IPv4 = ipaddress.IPv4Network


class BadSubnet(ValueError):
    """The wish cannot be met; the text says what is wrong with it."""


def parse(subnet: str) -> IPv4:
    """The subnet written as "10.1.0.0/16". Raises BadSubnet."""
    try:
        network = ipaddress.ip_network(subnet, strict=False)
    except ValueError as error:
        raise BadSubnet(f"subnet {subnet!r} is not an address range: {error}") from error
    if not isinstance(network, ipaddress.IPv4Network):
        raise BadSubnet(f"subnet {subnet} is IPv6, which overlay networks do not support")
    if network.prefixlen > PREFIX_MAX:
        raise BadSubnet(f"subnet {subnet} is too small; use /{PREFIX_MAX} or larger")
    return network


def _address(text: str, subnet: IPv4, what: str) -> int:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise BadSubnet(f"{what} {text!r} is not an IPv4 address") from error
    if address not in subnet:
        raise BadSubnet(f"{what} {text} is not in subnet {subnet}")
    return int(address)


class SubnetPool:
    """What ranges are in use in the cluster, and where the next subnet comes from.

    `pools` are cut into subnets with a prefix of `size` bits, which are counted through all the
    pools. `reserved` ranges are never given out.
    """

    def __init__(self, pools: Iterable[str], size: int, reserved: Iterable[str] = ()) -> None:
        self._pools = [IPv4(pool) for pool in pools] or [IPv4(pool) for pool in DEFAULT_POOL]
        self.size = size
        self._bits = 32 - size
        self._counts = [self._places(pool) for pool in self._pools]
        self._reserved = [IPv4(range) for range in reserved]
        self._used: dict[IPv4, str] = {}  # subnet -> what its network is called in an error
        self._next = 0

    def _places(self, pool: IPv4) -> int:
        return 1 << (self.size - pool.prefixlen) if self.size >= pool.prefixlen else 0

    def conflict(self, subnet: IPv4) -> str:
        """What `subnet` overlaps with, in words; "" if it is free."""
        for range in self._reserved:
            if subnet.overlaps(range):
                return f"{range}, which the cluster itself uses"
        # The lowest one, so that every leader words it alike.
        found = min((used for used in self._used if subnet.overlaps(used)), default=None)
        return "" if found is None else f"{found} of network {self._used[found]}"

    def claim(self, subnet: IPv4, owner: str) -> None:
        self._used[subnet] = owner

    def release(self, subnet: IPv4) -> None:
        self._used.pop(subnet, None)

    def adopt(self, other: "SubnetPool") -> None:
        """Take over what `other` knows to be in use."""
        self._used |= other._used

    def take(self, owner: str, avoid: Iterable[str] = ()) -> IPv4:
        """A free subnet, in turn; none that overlaps with one of the ranges `avoid`.

        Raises BadSubnet if the pools have none left.
        """
        avoided = [IPv4(range) for range in avoid]
        tried, total = 0, sum(self._counts)
        while tried < total:
            subnet, left = self._at(self._next)
            blocker = self._blocker(subnet, avoided)
            if blocker is None:
                self._next = (self._next + 1) % total
                self.claim(subnet, owner)
                return subnet
            behind = int(blocker.broadcast_address) - int(subnet.network_address)
            steps = min((behind >> self._bits) + 1, left)
            tried += steps
            self._next = (self._next + steps) % total
        pools = ", ".join(map(str, self._pools))
        raise BadSubnet(
            f"the default address pool {pools} has no free /{self.size} subnet left beside the"
            " nodes' own networks; remove unused networks or give this one a subnet of its own"
        )

    def resume(self) -> None:
        """Go on after the highest subnet in use."""
        first = 0
        for pool, count in zip(self._pools, self._counts, strict=True):
            for used in self._used:
                if count and used.subnet_of(pool):
                    behind = int(used.broadcast_address) - int(pool.network_address)
                    self._next = max(self._next, first + (behind >> self._bits) + 1)
            first += count
        self._next %= max(first, 1)

    def _at(self, place: int) -> tuple[IPv4, int]:
        """The subnet of that number, and how many its pool has from there on."""
        for pool, count in zip(self._pools, self._counts, strict=True):
            if place < count:
                base = int(pool.network_address) + (place << self._bits)
                return IPv4((base, self.size)), count - place
            place -= count
        raise IndexError(place)

    def _blocker(self, subnet: IPv4, avoided: Iterable[IPv4]) -> IPv4 | None:
        for range in (*self._reserved, *self._used, *avoided):
            if subnet.overlaps(range):
                return range
        return None


def plan_ipam(network: Network, pool: SubnetPool, avoid: Iterable[str] = ()) -> IPAM:
    """The subnets of `network`, its wishes first; they are claimed in `pool`.

    Raises BadSubnet, with nothing claimed, if they cannot be had.
    """
    wish = network.spec.ipam or IPAM()
    claimed: list[IPv4] = []
    configs: list[IPAMConfig] = []
    try:
        for config in wish.config or (IPAMConfig(),):
            subnet = _claim(config, network.spec.name, pool, avoid)
            claimed.append(subnet)
            configs.append(_complete(config, subnet))
    except BadSubnet:
        for subnet in claimed:
            pool.release(subnet)
        raise
    return msgspec.structs.replace(wish, config=tuple(configs))


def _claim(config: IPAMConfig, owner: str, pool: SubnetPool, avoid: Iterable[str]) -> IPv4:
    if not config.subnet:
        if config.gateway or config.ip_range:
            raise BadSubnet("a gateway or an address range needs the subnet that it is in")
        return pool.take(owner, avoid)
    subnet = parse(config.subnet)
    conflict = pool.conflict(subnet)
    if conflict:
        raise BadSubnet(f"subnet {subnet} overlaps with {conflict}")
    Subnet(_complete(config, subnet))  # raises if gateway, range or reserved addresses are wrong
    pool.claim(subnet, owner)
    return subnet


def _complete(config: IPAMConfig, subnet: IPv4) -> IPAMConfig:
    gateway = config.gateway or str(subnet.network_address + 1)
    return msgspec.structs.replace(config, subnet=str(subnet), gateway=gateway)


class Subnet:
    """The addresses of one subnet. Network, broadcast, gateway and auxiliary ones are taken."""

    def __init__(self, config: IPAMConfig) -> None:
        self.network = parse(config.subnet)
        first, last = self._range(config)
        self._addresses = Rotation(first, last)
        self._addresses.claim(_address(config.gateway, self.network, "gateway"))
        for address in config.aux_address.values():
            self._addresses.claim(_address(address, self.network, "auxiliary address"))

    def _range(self, config: IPAMConfig) -> tuple[int, int]:
        lowest = int(self.network.network_address) + 1
        highest = int(self.network.broadcast_address) - 1
        if not config.ip_range:
            return lowest, highest
        try:
            range = IPv4(config.ip_range, strict=False)
        except ValueError as error:
            raise BadSubnet(f"address range {config.ip_range!r} is not one: {error}") from error
        if not range.subnet_of(self.network):
            raise BadSubnet(f"address range {range} is not in subnet {self.network}")
        return (
            max(lowest, int(range.network_address)),
            min(highest, int(range.broadcast_address)),
        )

    @property
    def addresses(self) -> Rotation:
        return self._addresses

    def cidr(self, address: int) -> str:
        return f"{ipaddress.IPv4Address(address)}/{self.network.prefixlen}"


class Addresses:
    """The addresses of one network, and who has them. An owner has one at most."""

    def __init__(self, config: Iterable[IPAMConfig]) -> None:
        self._subnets = [Subnet(each) for each in config]
        self._owners: dict[str, tuple[Subnet, int]] = {}

    @property
    def ranges(self) -> list[IPv4]:
        return [subnet.network for subnet in self._subnets]

    def claim(self, owner: str, cidr: str) -> None:
        """Note that `owner` has the address already. One of another subnet is left alone."""
        address = ipaddress.IPv4Interface(cidr).ip
        for subnet in self._subnets:
            if address in subnet.network and owner not in self._owners:
                subnet.addresses.claim(int(address))
                self._owners[owner] = (subnet, int(address))

    def take(self, owner: str) -> str | None:
        """An address for `owner`, as CIDR: the one it has, or the next. None: all are taken."""
        if owner in self._owners:
            subnet, address = self._owners[owner]
            return subnet.cidr(address)
        for subnet in self._subnets:
            number = subnet.addresses.take()
            if number is not None:
                self._owners[owner] = (subnet, number)
                return subnet.cidr(number)
        return None

    def release(self, owner: str) -> bool:
        """Whether `owner` had an address, which is free from now on."""
        had = self._owners.pop(owner, None)
        if had is None:
            return False
        subnet, address = had
        subnet.addresses.release(address)
        return True

    def resume(self) -> None:
        for subnet in self._subnets:
            subnet.addresses.resume()

    @property
    def usage(self) -> str:
        """How full it is: "253/254"."""
        used = sum(subnet.addresses.used for subnet in self._subnets)
        return f"{used}/{sum(subnet.addresses.total for subnet in self._subnets)}"


def mac(cidr: str) -> str:
    """The MAC address that goes with an address: locally administered, and as unique as it."""
    octets = ipaddress.IPv4Interface(cidr).ip.packed
    return ":".join(f"{octet:02x}" for octet in b"\x02\x42" + octets)
