"""Load balancing by nf_tables maps: groups of backends, changed element by element.

A group has a key (a VIP; or protocol and port) and an ordered list of backends. Each backend is one
element of the map `be` (key . index), each group one element of `vips` (how many backends it has)
or, without backends, of the set `dead`. The map `by` leads from a number of backends to the chain
that draws one below it. There is one chain for each *number*, not for each group, so that ten
thousand groups cost ten thousand elements and no rules. An edit of one group is one transaction of
a few elements, none of which holds a verdict: the kernel walks a whole map with verdicts at each
change of one of them, to look for loops.
"""

import errno
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from socket import AF_INET, inet_pton
from typing import NamedTuple

from worker.network import audit
from worker.network.audit import Fact
from worker.network.netlink import nft
from worker.network.netlink.channel import Channel, NetlinkError
from worker.network.netlink.codec import Message

Backends = tuple[bytes, ...]

_TCP = b"\x06"
_MAPS = ("be", "vips", "dead", "by")


class Edit(NamedTuple):
    """One element of one map to delete, then to add. None: nothing to delete, nothing to add."""

    map: str  # be, vips, dead
    key: bytes
    delete: bool
    add: bytes | int | None  # bytes: a backend; int: the number of backends to choose from


def plan(
    key: bytes, old: Backends | None, new: Collection[bytes] | None
) -> tuple[Backends, list[Edit]]:
    """The order of the backends of group `key`, and the edits from `old` to it.

    None is a group that is not there, an empty one is there and rejects. Backends that stay keep
    their places; a hole is filled by a new one or else by the last.
    """
    after = _arrange(old or (), new or ())
    return after, difference(key, old, None if new is None else after)


def difference(key: bytes, old: Backends | None, new: Backends | None) -> list[Edit]:
    """The edits that turn one order into another."""
    before, after = old or (), new or ()
    edits = [
        Edit(
            "be",
            key + struct.pack("=I", place),
            place < len(before),
            after[place] if place < len(after) else None,
        )
        for place in range(max(len(before), len(after)))
        if before[place : place + 1] != after[place : place + 1]
    ]
    was = None if old is None else len(old)
    now = None if new is None else len(new)
    if was != now:
        edits += _verdicts(key, was, now)
    return edits


def _arrange(before: Backends, wanted: Collection[bytes]) -> Backends:
    kept: list[bytes | None] = [item if item in wanted else None for item in before]
    fresh = sorted(set(wanted).difference(before))
    for place, item in enumerate(kept):
        if item is None and fresh:
            kept[place] = fresh.pop(0)
    while None in kept:
        last = kept.pop()
        if last is not None:
            kept[kept.index(None)] = last
    return tuple(item for item in kept if item is not None) + tuple(fresh)


def _verdicts(key: bytes, was: int | None, now: int | None) -> list[Edit]:
    if was is not None and now is not None and bool(was) == bool(now):
        return [Edit("vips" if now else "dead", key, True, now)]
    edits = []
    if was is not None:
        edits.append(Edit("vips" if was else "dead", key, True, None))
    if now is not None:
        edits.append(Edit("vips" if now else "dead", key, False, now))
    return edits


@dataclass
class Groups:
    """The groups of one table, as the kernel has them."""

    members: dict[bytes, Backends] = field(default_factory=dict)

    def put(self, key: bytes, backends: Collection[bytes] | None) -> list[Edit]:
        """Give group `key` these backends (None: no such group); the edits that make it so."""
        order, edits = plan(key, self.members.get(key), backends)
        if backends is None:
            self.members.pop(key, None)
        else:
            self.members[key] = order
        return edits

    def everything(self) -> list[Edit]:
        """The edits that make an empty table into this."""
        edits = []
        for key, backends in self.members.items():
            edits += difference(key, None, backends)
        return edits


class Shape(NamedTuple):
    """What a table balances by: a key's fields, the code that loads them, those of a backend."""

    key: tuple[tuple[int, int], ...]
    load: bytes
    backend: tuple[tuple[int, int], ...]


BY_ADDRESS = Shape(((nft.IPV4_ADDR, 4),), nft.ip_destination(0), ((nft.IPV4_ADDR, 4),))
BY_PORT = Shape(
    ((nft.PROTOCOL, 1), (nft.SERVICE, 2)),
    nft.protocol(0) + nft.port(1),
    ((nft.IPV4_ADDR, 4), (nft.SERVICE, 2)),
)


def chain(count: int) -> str:
    return f"n{count}"


def maps(table: str, shape: Shape) -> list[Message]:
    """The maps and the reject chain."""
    return [
        nft.add_chain(table, "rej"),
        nft.add_rule(table, "rej", nft.protocol(0), nft.compare(0, _TCP), nft.reset()),
        nft.add_rule(table, "rej", nft.unreachable()),
        nft.add_map(table, "vips", shape.key, [(nft.MARK, 4)]),
        nft.add_set(table, "dead", shape.key),
        nft.add_map(table, "be", (*shape.key, (nft.MARK, 4)), shape.backend),
        nft.add_map(table, "by", [(nft.MARK, 4)], [(nft.VERDICT, 16)]),
    ]


def choose(shape: Shape) -> list[bytes]:
    """meta priority set KEY map @vips meta priority vmap @by: go where one of the group's backends
    is drawn, if there is one.

    The number of backends goes by way of the packet's priority, which `_draw` sets back to what
    packets have: nft(8) up to 1.0.6 dies of a ruleset that looks a map's answer up in another map,
    and firewalld with it.
    """
    number = len(shape.key)
    return [
        shape.load,
        nft.lookup("vips", 0, number),
        nft.set_priority(number),
        nft.meta(nft.PRIORITY, number),
        nft.lookup_verdict("by", number),
    ]


def reject(shape: Shape) -> list[bytes]:
    """KEY @dead goto rej"""
    return [shape.load, nft.lookup_set("dead", 0), nft.goto("rej")]


def _draw(table: str, shape: Shape, count: int) -> list[Message]:
    """chain nCOUNT { dnat to KEY . numgen random mod COUNT map @be }, and the way there"""
    number = nft.random_number(len(shape.key), count)
    target = nft.dnat(0, 1 if len(shape.backend) > 1 else None)
    plain = nft.load(0, bytes(4)) + nft.set_priority(0)
    draw = [shape.load, number, nft.lookup("be", 0, 0), target]
    rule = nft.add_rule(table, chain(count), plain, *draw)
    way = nft.Element(_count(count), chain(count))
    return [nft.add_chain(table, chain(count)), rule, *nft.add_elements(table, "by", [way])]


def _count(number: int) -> bytes:
    return struct.pack("=I", number)


def counts(edits: Iterable[Edit]) -> set[int]:
    """Numbers of backends in `edits`, each of which needs its chain."""
    return {edit.add for edit in edits if edit.map == "vips" and isinstance(edit.add, int)}


def chains(table: str, shape: Shape, wanted: Iterable[int]) -> list[Message]:
    messages = []
    for count in sorted(wanted):
        messages += _draw(table, shape, count)
    return messages


def messages(table: str, edits: Sequence[Edit]) -> list[Message]:
    """`edits` as one transaction's requests; chains for their counts must be there or before it."""
    found: list[Message] = []
    for name in ("vips", "dead", "be"):
        gone = [edit.key for edit in edits if edit.map == name and edit.delete]
        found += nft.delete_elements(table, name, gone)
    for name in ("be", "vips", "dead"):
        fresh = [
            nft.Element(edit.key, _data(edit))
            for edit in edits
            if edit.map == name and edit.add is not None
        ]
        found += nft.add_elements(table, name, fresh)
    return found


def rules(requests: Iterable[Message]) -> int:
    """How many rules `requests` add."""
    return sum(map(nft.is_rule, requests))


def facts(channel: Channel, table: str, *, maps: bool = True) -> set[Fact]:
    """What the kernel's maps of `table` make (if it has any), and its number of rules; nothing
    without a table."""
    try:
        found = [
            nft.parse_elements(channel.dump(nft.get_elements(table, name)))
            for name in (_MAPS if maps else ())
        ]
        count = len(channel.dump(nft.get_rules(table)))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return set()
    return (audit.maps(*found) if found else set()) | {("rules", count)}


def _data(edit: Edit) -> bytes | None:
    if isinstance(edit.add, bytes):
        return edit.add
    return _count(edit.add) if edit.add else None


def port_key(protocol: str, port: int) -> bytes:
    """A BY_PORT key: each field in registers of its own."""
    number = {"tcp": 6, "udp": 17}[protocol]
    return bytes([number, 0, 0, 0]) + struct.pack("!H2x", port)


def port_of(key: bytes) -> tuple[str, int]:
    """The protocol and the port of a BY_PORT key."""
    return {6: "tcp", 17: "udp"}[key[0]], int(struct.unpack_from("!H", key, 4)[0])


def port_backend(address: str, port: int) -> bytes:
    return address_key(address) + struct.pack("!H2x", port)


def address_key(address: str) -> bytes:
    """A BY_ADDRESS key or backend. Raises OSError unless it is an IPv4 address."""
    return inet_pton(AF_INET, address)  # a tenth of what IPv4Address costs
