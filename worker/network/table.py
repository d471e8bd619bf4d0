"""The endpoint table of this node, and the questions that kernel and resolver state answer.

Pure. `Table.apply` takes a change and says what it touched; whoever keeps kernel state asks the
table how the touched things should be now. Whole answers, no edits: repeating one is harmless.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from socket import inet_aton
from typing import Any, NamedTuple

from common.protocol.network import (
    Digest,
    IngressBackend,
    NetworkChange,
    NetworkItem,
    OverlayEndpoint,
    OverlayNetwork,
    Peer,
    ServiceEntry,
    key,
)
from worker.network.audit import Difference, Fact, compare

Key = tuple[str, ...]

EVERYWHERE = ""  # instead of a network id: the index of service names whatever their networks


@dataclass
class Touched:
    """What a change may have altered."""

    peers: bool = False
    networks: set[str] = field(default_factory=set)  # network ids whose remote endpoints changed
    groups: set[tuple[str, str]] = field(default_factory=set)  # (network id, service id)
    published: set[str] = field(default_factory=set)  # service ids whose ports or backends changed
    moved: set[tuple[str, str]] = field(default_factory=set)  # (network id, address): new MAC
    gone: set[tuple[str, str]] = field(default_factory=set)  # (network id, address): removed
    idle: set[tuple[str, str]] = field(default_factory=set)  # (network id, address): deactivated
    idle_ingress: set[str] = field(default_factory=set)  # addresses deactivated or removed
    vips_gone: set[tuple[str, str]] = field(default_factory=set)  # (network id, old VIP)
    ports_gone: set[tuple[str, int]] = field(default_factory=set)  # (protocol, published)


class Remote(NamedTuple):
    """Where a MAC of another node is."""

    mac: str
    vtep: str


class Table:
    """All items, by key, with the indexes that the questions need."""

    def __init__(self) -> None:
        self._items: dict[Key, NetworkItem] = {}
        self._begin()

    def _begin(self) -> None:
        self._digest = Digest()
        self._endpoints: dict[str, dict[str, OverlayEndpoint]] = defaultdict(dict)
        self._members: dict[tuple[str, str], dict[str, OverlayEndpoint]] = defaultdict(dict)
        self._backends: dict[str, dict[str, IngressBackend]] = defaultdict(dict)
        self._peers: dict[str, Peer] = {}
        self._services: dict[str, ServiceEntry] = {}
        self._names: dict[tuple[str, str], set[Key]] = defaultdict(set)
        self._addresses: dict[tuple[str, str], set[Key]] = defaultdict(set)

    def items(self) -> Iterable[NetworkItem]:
        return self._items.values()

    def digest(self) -> str:
        """Equal to the dispatcher's if both have the same items."""
        return self._digest.text

    def index(self) -> None:
        """Make all indexes anew from the items."""
        items, self._items = self._items, {}
        self._begin()
        self.apply(NetworkChange(complete=True, puts=tuple(items.values())))

    def differences(self) -> list[Difference]:
        """Where the indexes say otherwise than the items. There is none, or names are stale."""
        if self._is_sound():
            return []
        fresh = Table()
        fresh.apply(NetworkChange(complete=True, puts=tuple(self._items.values())))
        return compare("names", "", fresh._facts(), self._facts())

    def _is_sound(self) -> bool:
        """Whether the indexes have all that the items ask for, and no more: quickly told."""
        counts = dict.fromkeys(("endpoints", "backends", "peers", "services", "names", "at"), 0)
        for place, item in self._items.items():
            match item:
                case OverlayEndpoint():
                    counts["endpoints"] += 1
                    group = self._members.get((item.network_id, item.service_id), {})
                    network = self._endpoints.get(item.network_id, {})
                    there = network.get(item.task_id) == item == group.get(item.task_id)
                case IngressBackend():
                    counts["backends"] += 1
                    there = self._backends.get(item.service_id, {}).get(item.task_id) == item
                case Peer():
                    counts["peers"] += 1
                    there = self._peers.get(item.node_id) == item
                case ServiceEntry():
                    counts["services"] += 1
                    there = self._services.get(item.service_id) == item
                case _:
                    there = True
            names, addresses = set(_names(item)), set(_addresses(item))
            counts["names"] += len(names)
            counts["at"] += len(addresses)
            there = there and all(place in self._names.get(name, ()) for name in names)
            if not there or not all(place in self._addresses.get(at, ()) for at in addresses):
                return False
        return counts == {
            "endpoints": sum(map(len, self._endpoints.values())),
            "backends": sum(map(len, self._backends.values())),
            "peers": len(self._peers),
            "services": len(self._services),
            "names": sum(map(len, self._names.values())),
            "at": sum(map(len, self._addresses.values())),
        } and counts["endpoints"] == sum(map(len, self._members.values()))

    def _facts(self) -> set[Fact]:
        indexes: tuple[Mapping[Any, Any], ...] = (
            self._endpoints,
            self._members,
            self._backends,
            self._peers,
            self._services,
            self._names,
            self._addresses,
        )
        found: set[Fact] = {("digest", self.digest())}
        for number, index in enumerate(indexes):
            for place, items in index.items():
                inside = items if isinstance(items, dict | set) else (items,)
                values = inside.values() if isinstance(inside, dict) else inside
                found |= {("index", number, place, str(item)) for item in values}
        return found

    def apply(self, change: NetworkChange) -> Touched:
        """Take in `change`; what it touched."""
        touched = Touched()
        removes = {tuple(gone) for gone in change.removes}
        if change.complete:
            removes |= self._items.keys() - {key(item) for item in change.puts}
        for gone in removes:
            self._set(gone, None, touched)
        for item in change.puts:
            self._set(key(item), item, touched)
        return touched

    def _set(self, place: Key, new: NetworkItem | None, touched: Touched) -> None:
        old = self._items.pop(place, None)
        if new is not None:
            self._items[place] = new
        if old == new:
            return
        if old is not None:
            self._digest.take(old)
            self._unindex(place, old)
        if new is not None:
            self._digest.add(new)
            self._index(place, new)
        _note(old, new, touched)

    def _index(self, place: Key, item: NetworkItem) -> None:
        match item:
            case OverlayEndpoint():
                self._endpoints[item.network_id][item.task_id] = item
                self._members[item.network_id, item.service_id][item.task_id] = item
            case IngressBackend():
                self._backends[item.service_id][item.task_id] = item
            case Peer():
                self._peers[item.node_id] = item
            case ServiceEntry():
                self._services[item.service_id] = item
        for network_id, name in _names(item):
            self._names[network_id, name].add(place)
        for network_id, address in _addresses(item):
            self._addresses[network_id, address].add(place)

    def _unindex(self, place: Key, item: NetworkItem) -> None:
        match item:
            case OverlayEndpoint():
                _discard(self._endpoints, item.network_id, item.task_id)
                _discard(self._members, (item.network_id, item.service_id), item.task_id)
            case IngressBackend():
                _discard(self._backends, item.service_id, item.task_id)
            case Peer():
                self._peers.pop(item.node_id)
            case ServiceEntry():
                self._services.pop(item.service_id)
        for found in _names(item):
            self._names[found].discard(place)
            if not self._names[found]:
                del self._names[found]
        for found in _addresses(item):
            self._addresses[found].discard(place)
            if not self._addresses[found]:
                del self._addresses[found]

    def network(self, network_id: str) -> OverlayNetwork | None:
        item = self._items.get(("network", network_id))
        return item if isinstance(item, OverlayNetwork) else None

    def networks(self) -> Iterator[OverlayNetwork]:
        return (item for item in self._items.values() if isinstance(item, OverlayNetwork))

    def service(self, service_id: str) -> ServiceEntry | None:
        return self._services.get(service_id)

    def services(self) -> Iterable[ServiceEntry]:
        return self._services.values()

    def peers(self) -> Iterable[Peer]:
        return self._peers.values()

    def remotes(self, network_id: str, node_id: str) -> dict[str, Remote]:
        """Address -> where it is, of the network's endpoints on nodes other than `node_id`."""
        found: dict[str, Remote] = {}
        for endpoint in sorted(
            self._endpoints.get(network_id, {}).values(), key=lambda item: item.active
        ):
            peer = self._peers.get(endpoint.node_id)
            if endpoint.node_id != node_id and peer is not None and endpoint.mac:
                found[endpoint.address] = Remote(endpoint.mac, peer.address)
        return found

    def mac(self, network_id: str, address: str) -> str:
        """Of the endpoint that has `address`; "" if none has."""
        for item in self.at(network_id, address):
            if isinstance(item, OverlayEndpoint):
                return item.mac
        return ""

    def active(self, network_id: str, service_id: str) -> list[str]:
        """Addresses of the service's active tasks on the network, in a stable order."""
        members = self._members.get((network_id, service_id), {}).values()
        return sorted({item.address for item in members if item.active}, key=inet_aton)

    def vips(self, network_id: str) -> dict[str, str]:
        """VIP -> service id, of the services that have one on the network."""
        return {
            item.vips[network_id]: item.service_id
            for item in self.services()
            if item.vips.get(network_id)
        }

    def published(self, service_id: str) -> dict[tuple[str, int], set[tuple[str, int]]]:
        """(protocol, published port) -> active (address, target port) of one service."""
        service = self.service(service_id)
        if service is None:
            return {}
        addresses = [
            item.address
            for item in self._backends.get(service_id, {}).values()
            if item.active and item.address
        ]
        return {
            (port.protocol, port.published): {(address, port.target) for address in addresses}
            for port in service.ports
        }

    def named(self, network_id: str, name: str) -> list[NetworkItem]:
        """The services and endpoints that answer to `name` (lower case) on the network.

        A service without a VIP there (dnsrr) is found through its tasks that are on the network.
        """
        places = set(self._names.get((network_id, name), ()))
        for place in self._names.get((EVERYWHERE, name), ()):
            if (network_id, place[1]) in self._members:
                places.add(place)
        return [self._items[place] for place in sorted(places)]

    def at(self, network_id: str, address: str) -> list[NetworkItem]:
        """The services and endpoints that have `address` on the network."""
        places = self._addresses.get((network_id, address), ())
        return [self._items[place] for place in sorted(places)]


def _discard(index: dict, outer: object, inner: str) -> None:  # type: ignore[type-arg]
    inside = index.get(outer)
    if inside is not None:
        inside.pop(inner, None)
        if not inside:
            del index[outer]


def _names(item: NetworkItem) -> Iterator[tuple[str, str]]:
    match item:
        case ServiceEntry():
            yield EVERYWHERE, item.name.lower()
            for network_id in {*item.vips, *item.aliases}:
                for name in {item.name, *item.aliases.get(network_id, ())}:
                    yield network_id, name.lower()
        case OverlayEndpoint():
            for name in {item.task_name, *item.aliases} - {""}:
                yield item.network_id, name.lower()


def _addresses(item: NetworkItem) -> Iterator[tuple[str, str]]:
    match item:
        case ServiceEntry():
            yield from ((network_id, vip) for network_id, vip in item.vips.items() if vip)
        case OverlayEndpoint():
            yield item.network_id, item.address


def _note(old: NetworkItem | None, new: NetworkItem | None, touched: Touched) -> None:
    match old or new:
        case Peer():
            touched.peers = True
        case OverlayNetwork():
            touched.networks.add((new or old).id)  # type: ignore[union-attr]
        case OverlayEndpoint():
            _note_endpoint(old, new, touched)  # type: ignore[arg-type]
        case ServiceEntry():
            _note_service(old, new, touched)  # type: ignore[arg-type]
        case IngressBackend():
            _note_backend(old, new, touched)  # type: ignore[arg-type]


def _note_endpoint(
    old: OverlayEndpoint | None, new: OverlayEndpoint | None, touched: Touched
) -> None:
    for item in (old, new):
        if item is not None:
            touched.groups.add((item.network_id, item.service_id))
    either = new or old
    assert either is not None
    network_id = either.network_id
    if old is None or new is None or _place(old) != _place(new):
        touched.networks.add(network_id)
    if old is not None and (new is None or new.address != old.address):
        touched.gone.add((network_id, old.address))
    elif old is not None and new is not None and old.active and not new.active:
        touched.idle.add((network_id, old.address))
    if new is not None and (old is None or old.mac != new.mac):
        touched.moved.add((network_id, new.address))


def _place(item: OverlayEndpoint) -> tuple[str, str, str]:
    return item.address, item.mac, item.node_id


def _note_service(old: ServiceEntry | None, new: ServiceEntry | None, touched: Touched) -> None:
    for item in (old, new):
        if item is not None:
            touched.groups.update((network_id, item.service_id) for network_id in item.vips)
            if item.ports:
                touched.published.add(item.service_id)
    if old is not None:
        now = set(new.vips.items()) if new is not None else set()
        touched.vips_gone |= set(old.vips.items()) - now
        ports = {(port.protocol, port.published) for port in new.ports} if new else set()
        touched.ports_gone |= {(port.protocol, port.published) for port in old.ports} - ports


def _note_backend(old: IngressBackend | None, new: IngressBackend | None, touched: Touched) -> None:
    for item in (old, new):
        if item is not None:
            touched.published.add(item.service_id)
    if old is not None and old.active and (new is None or not new.active):
        touched.idle_ingress.add(old.address)
