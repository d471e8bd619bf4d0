"""What a name means in a sandbox: answers from the endpoint table, nothing else. Pure.

Names belong to networks: a sandbox sees those of the networks it is attached to, in the order of
its attachments, or of one when it writes NAME.NETWORK. A task answers only while it is active.
"""

import random
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from common.protocol.network import NetworkItem, OverlayEndpoint, ServiceEntry
from worker.network import dnswire
from worker.network.table import Table

_TASKS = "tasks."


class Scope(NamedTuple):
    """A network that a sandbox is attached to."""

    network_id: str
    network_name: str


class Answer(NamedTuple):
    """What to say: a code, and the data of the records. None instead: not ours, ask elsewhere."""

    code: int
    records: tuple[bytes, ...] = ()


def resolve(
    table: Table, scopes: Sequence[Scope], name: str, kind: int, rng: random.Random
) -> Answer | None:
    """The answer to a question of type `kind` for `name` (lower case)."""
    if kind == dnswire.PTR:
        return _pointer(table, scopes, dnswire.reverse_address(name))
    addresses = _anywhere(table, scopes, name)
    if addresses is None:
        return None
    if kind not in (dnswire.A, dnswire.ANY):
        return Answer(dnswire.NOERROR)
    found = [IPv4Address(address).packed for address in addresses]
    rng.shuffle(found)
    return Answer(dnswire.NOERROR, tuple(found))


def _anywhere(table: Table, scopes: Sequence[Scope], name: str) -> list[str] | None:
    for scope in scopes:
        found = lookup(table, scope.network_id, name)
        if found is not None:
            return found
    for scope in scopes:
        suffix = "." + scope.network_name.lower()
        if name.endswith(suffix):
            return lookup(table, scope.network_id, name.removesuffix(suffix))
    return None


def lookup(table: Table, network_id: str, name: str) -> list[str] | None:
    """Addresses behind `name` on one network; None: no such name (or none that is active)."""
    if name.startswith(_TASKS):
        services = [
            item
            for item in table.named(network_id, name.removeprefix(_TASKS))
            if isinstance(item, ServiceEntry)
        ]
        if services:
            return [
                address
                for item in services
                for address in table.active(network_id, item.service_id)
            ]
    found: list[str] = []
    known = False
    for item in table.named(network_id, name):
        known = known or isinstance(item, ServiceEntry)
        found += _addresses(table, network_id, item)
    return list(dict.fromkeys(found)) if found or known else None


def _addresses(table: Table, network_id: str, item: NetworkItem) -> list[str]:
    if isinstance(item, ServiceEntry):
        vip = item.vips.get(network_id)
        return [vip] if vip else table.active(network_id, item.service_id)
    if isinstance(item, OverlayEndpoint) and item.active:
        return [item.address]
    return []


def _pointer(table: Table, scopes: Sequence[Scope], address: str) -> Answer | None:
    if not address:
        return None
    for scope in scopes:
        for item in table.at(scope.network_id, address):
            name = item.name if isinstance(item, ServiceEntry) else _active_name(item)
            if name:
                whole = f"{name}.{scope.network_name}"
                return Answer(dnswire.NOERROR, (dnswire.encode_name(whole),))
    return None


def _active_name(item: NetworkItem) -> str:
    return item.task_name if isinstance(item, OverlayEndpoint) and item.active else ""
