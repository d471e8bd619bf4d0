"""What a node must know to build its share of the overlays: the endpoint table.

The dispatcher derives the table from the store and sends it as assignments; the worker turns it
into links, forwarding entries, neighbours, balancer maps and DNS answers. Nothing else spreads
names or addresses, so they cannot disagree.
"""

import hashlib
from collections.abc import Iterable

import msgspec


class Peer(msgspec.Struct, frozen=True, kw_only=True, tag="peer"):
    """A node: its VTEP address, and the index that gives it its subnet of the node pool."""

    node_id: str
    index: int
    address: str


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    subnet: str  # "10.0.1.0/24"
    gateway: str  # "10.0.1.1"; reserved, nobody answers on it


class OverlayNetwork(msgspec.Struct, frozen=True, kw_only=True, tag="network"):
    id: str
    name: str
    vni: int
    subnets: tuple[Subnet, ...]
    internal: bool = False
    mtu: int = 0  # 0: underlay's less 50


class OverlayEndpoint(msgspec.Struct, frozen=True, kw_only=True, tag="endpoint"):
    """A task's attachment to a network.

    Forwarding and neighbour entries exist as long as the endpoint does. Only an `active` one
    (task running, healthy and wanted) is a backend of its service's VIP and answers in DNS.
    """

    task_id: str
    network_id: str
    node_id: str
    address: str  # without prefix length
    mac: str
    task_name: str = ""
    service_id: str = ""
    aliases: tuple[str, ...] = ()
    active: bool = False


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    protocol: str  # tcp, udp
    published: int
    target: int


class ServiceEntry(msgspec.Struct, frozen=True, kw_only=True, tag="service"):
    """A service as the balancer and the resolver see it."""

    service_id: str
    name: str
    vips: dict[str, str] = {}  # network id -> address; empty for dnsrr
    aliases: dict[str, tuple[str, ...]] = {}  # network id -> further names
    ports: tuple[PublishedPort, ...] = ()  # mode ingress only


class IngressBackend(msgspec.Struct, frozen=True, kw_only=True, tag="ingress"):
    """A task that can serve its service's published ports, at its address in its node's subnet."""

    task_id: str
    service_id: str
    node_id: str
    address: str
    active: bool = False


NetworkItem = Peer | OverlayNetwork | OverlayEndpoint | ServiceEntry | IngressBackend


def key(item: NetworkItem) -> tuple[str, ...]:
    """What identifies `item` in the table; putting an item replaces the one of its key."""
    match item:
        case Peer():
            return ("peer", item.node_id)
        case OverlayNetwork():
            return ("network", item.id)
        case OverlayEndpoint():
            return ("endpoint", item.network_id, item.task_id)
        case ServiceEntry():
            return ("service", item.service_id)
        case IngressBackend():
            return ("ingress", item.task_id)


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_MODULUS = 1 << 128


class Digest:
    """A fingerprint of a set of messages, whatever their order, kept up to date one by one.

    The sum of the items' hashes: adding or taking one costs one hash, not a walk of the table.
    It guards against mistakes, not against an adversary: both ends are our own nodes.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, item: object) -> None:
        self._sum = (self._sum + _fingerprint(item)) % _MODULUS

    def take(self, item: object) -> None:
        """Undo `add` of an equal item."""
        self._sum = (self._sum - _fingerprint(item)) % _MODULUS

    @property
    def text(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"


def digest(items: Iterable[NetworkItem]) -> str:
    """The fingerprint of a whole table."""
    total = Digest()
    for item in items:
        total.add(item)
    return total.text


def _fingerprint(item: object) -> int:
    return int.from_bytes(hashlib.blake2b(_encoder.encode(item), digest_size=16).digest(), "big")


class NetworkChange(msgspec.Struct, frozen=True, kw_only=True):
    """A step of the table. A `complete` one replaces all that was known."""

    complete: bool = False
    puts: tuple[NetworkItem, ...] = ()
    removes: tuple[tuple[str, ...], ...] = ()  # keys
