"""What a name means in a sandbox: answers from the endpoint table, nothing else. Pure.

Names belong to networks: a sandbox sees those of the networks it is attached to, in the order of
its attachments, or of one when it writes NAME.NETWORK. A task answers only while it is active:
before and after, its name is known but has no address, and is not asked for in the outside world.
"""

import random
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from socket import inet_aton
from typing import NamedTuple, Protocol

from common.protocol.network import NetworkItem, OverlayEndpoint, OverlayNetwork, ServiceEntry
from worker.network import dnswire

_TASKS = "tasks."


class Scope(NamedTuple):
    """A network that a sandbox is attached to."""

    network_id: str
    network_name: str


class Directory(Protocol):
    """What is asked of an endpoint table."""

    def network(self, network_id: str) -> OverlayNetwork | None: ...
    def named(self, network_id: str, name: str) -> list[NetworkItem]: ...
    def at(self, network_id: str, address: str) -> list[NetworkItem]: ...
    def active(self, network_id: str, service_id: str) -> list[str]: ...


class Answer(NamedTuple):
    """What to say: a code, and the data of the records. None instead: not ours, ask elsewhere."""

    code: int
    records: tuple[bytes, ...] = ()


def resolve(
    table: Directory, scopes: Sequence[Scope], name: str, kind: int, rng: random.Random
) -> Answer | None:
    """The answer to a question of type `kind` for `name` (lower case)."""
    if kind == dnswire.PTR:
        return _pointer(table, scopes, dnswire.reverse_address(name))
    found = _anywhere(table, scopes, name)
    if found is None:
        return None
    if not found.exists:
        return Answer(dnswire.NXDOMAIN)
    if kind not in (dnswire.A, dnswire.ANY):
        return Answer(dnswire.NOERROR)
    packed = [inet_aton(address) for address in found.addresses]
    if len(packed) > 1:
        rng.shuffle(packed)
    return Answer(dnswire.NOERROR, tuple(packed))


class Found(NamedTuple):
    """What is behind a name of ours. Not `exists`: only tasks that are not active."""

    addresses: list[str]
    exists: bool = True


def _anywhere(table: Directory, scopes: Sequence[Scope], name: str) -> Found | None:
    """On the first network where the name exists, else where it is at least known."""
    known = None
    for scope in scopes:
        found = lookup(table, scope.network_id, name)
        if found is not None and found.exists:
            return found
        known = known or found
    for scope in scopes:
        suffix = "." + scope.network_name.lower()
        if name.endswith(suffix):
            return lookup(table, scope.network_id, name.removesuffix(suffix)) or known
    return known


def lookup(table: Directory, network_id: str, name: str) -> Found | None:
    """What is behind `name` on one network; None: it is not known there."""
    if name.startswith(_TASKS):
        services = [
            item
            for item in table.named(network_id, name.removeprefix(_TASKS))
            if isinstance(item, ServiceEntry)
        ]
        if services:
            return Found(
                [
                    address
                    for item in services
                    for address in table.active(network_id, item.service_id)
                ]
            )
    items = table.named(network_id, name)
    if not items:
        return None
    found = [address for item in items for address in _addresses(table, network_id, item)]
    exists = bool(found) or any(isinstance(item, ServiceEntry) for item in items)
    return Found(list(dict.fromkeys(found)), exists)


def _addresses(table: Directory, network_id: str, item: NetworkItem) -> list[str]:
    if isinstance(item, ServiceEntry):
        vip = item.vips.get(network_id)
        return [vip] if vip else table.active(network_id, item.service_id)
    if isinstance(item, OverlayEndpoint) and item.active:
        return [item.address]
    return []


def _pointer(table: Directory, scopes: Sequence[Scope], address: str) -> Answer | None:
    if not address:
        return None
    for scope in scopes:
        for item in table.at(scope.network_id, address):
            name = item.name if isinstance(item, ServiceEntry) else _active_name(item)
            try:
                whole = dnswire.encode_name(f"{name}.{scope.network_name}")
            except dnswire.Malformed:  # not active, or a network whose name is none in DNS
                continue
            return Answer(dnswire.NOERROR, (whole,))
    ours = any(_is_in(table, scope.network_id, address) for scope in scopes)
    return Answer(dnswire.NXDOMAIN) if ours else None


def _is_in(table: Directory, network_id: str, address: str) -> bool:
    """Whether the address is of the network: nobody else knows a name for it."""
    network = table.network(network_id)
    subnets = network.subnets if network is not None else ()
    return any(IPv4Address(address) in IPv4Network(item.subnet, strict=False) for item in subnets)


def _active_name(item: NetworkItem) -> str:
    return item.task_name if isinstance(item, OverlayEndpoint) and item.active else ""
