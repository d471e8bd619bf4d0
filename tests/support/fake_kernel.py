"""A kernel's network state in dicts, behind the product's own netlink messages; no root.

`FakeKernel.install` puts it in the place of netlink sockets, namespaces and bound ports; many
machines share one. It does what `worker/network` asks of a kernel, as far as that shows: links,
forwarding, neighbours, routes, rules, nf_tables' maps and the number of its rules. Packets it
knows not. It refuses what the kernel refuses; `trouble` makes it refuse more.
"""

import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import pytest

from worker.network import bridge, firewall, networks, nshelper, ports
from worker.network.netlink import rtnl
from worker.network.netlink.channel import Channel, NetlinkError
from worker.network.netlink.codec import (
    NLM_F_EXCL,
    Message,
    attributes,
    be32,
    parse,
    parse_list,
    u32,
)
from worker.network.nshelper import NamespaceHelper

R = TypeVar("R")
Data = bytes | str

_SELF, _MASTER = 0x02, 0x04
_NFTABLES = 10 << 8
_STATS = (1 << 8) | 5


@dataclass
class Link:
    index: int
    name: str
    kind: str
    mac: str = ""
    mtu: int = 1500
    master: int = 0
    alias: str = ""
    up: bool = False
    peer: "tuple[Namespace, int] | None" = None


@dataclass
class Namespace:
    """One network namespace."""

    links: dict[int, Link] = field(default_factory=dict)
    neighbours: dict[tuple[int, int, int, bytes], Message] = field(default_factory=dict)
    addresses: dict[tuple[int, str], Message] = field(default_factory=dict)
    routes: dict[tuple[int, str, int], Message] = field(default_factory=dict)
    rules: dict[bytes, Message] = field(default_factory=dict)
    tables: dict[str, "Table"] = field(default_factory=dict)
    generation: int = 1

    def named(self, name: str) -> Link:
        for link in self.links.values():
            if link.name == name:
                return link
        raise NetlinkError(errno.ENODEV)

    def remove(self, link: Link) -> None:
        """With its other end, and all that leads over it."""
        self.links.pop(link.index, None)
        for entries in (self.neighbours, self.addresses, self.routes):
            for key in [key for key in entries if key[0] == link.index]:
                del entries[key]  # type: ignore[attr-defined]
        if link.peer is not None:
            other, index = link.peer
            if index in other.links:
                other.remove(other.links[index])


@dataclass
class Table:
    """An nf_tables table: its maps, and how many rules each chain has."""

    maps: dict[str, dict[bytes, Data]] = field(default_factory=dict)
    chains: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "Table":
        return Table({name: dict(items) for name, items in self.maps.items()}, dict(self.chains))


class FakeKernel:
    """All namespaces of all machines. `current` is where the calling code is."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.trouble = 0.0  # how likely a request is refused for want of memory
        self.refused = 0
        self._by_descriptor: dict[int, Namespace] = {}
        self._kept: dict[Path, Namespace] = {}
        self.current = Namespace()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = self

        def open_channel(cls: object, family: int) -> "FakeChannel":
            return FakeChannel(kernel, kernel.current)

        monkeypatch.setattr(Channel, "open", classmethod(open_channel))
        monkeypatch.setattr(networks, "NamespaceHelper", lambda machine: FakeHelper(self, machine))
        for function in (self.persist, self.forget, self.reopen):
            monkeypatch.setattr(nshelper, function.__name__, function)
        monkeypatch.setattr(nshelper, "try_sysctl", lambda name, value: None)
        monkeypatch.setattr(nshelper, "write_sysctl", lambda name, value: None)
        monkeypatch.setattr(nshelper, "udp_and_tcp", lambda address: (_bound(1), _bound(0)))
        monkeypatch.setattr(ports, "_hold", lambda claim, force: None)
        monkeypatch.setattr(firewall, "_LEGACY_TABLES", Path("/nonexistent"))
        monkeypatch.setattr(bridge.NodeBridge, "_tune", lambda self, alone: None)

    def machine(self, address: str) -> int:
        """A descriptor of the namespace of a machine that has just booted."""
        home = Namespace()
        home.links[2] = Link(2, "eth0", "", "02:00:00:00:00:02", up=True)
        body = struct.pack("=BBBBI", 2, 24, 0, 0, 2) + attributes({2: IPv4Address(address).packed})
        home.addresses[2, f"{address}/24"] = Message(rtnl.NEWADDR, 0, body)
        return self.describe(home)

    def describe(self, namespace: Namespace) -> int:
        """A real descriptor, since the product closes what it was given."""
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._by_descriptor[descriptor] = namespace
        return descriptor

    def namespace(self, descriptor: int) -> Namespace:
        return self._by_descriptor[descriptor]

    def kept(self, path: Path) -> Namespace:
        return self._kept[path]

    def persist(self, descriptor: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._kept[path] = self._by_descriptor[descriptor]

    def forget(self, path: Path) -> None:
        """Nobody is left inside: the namespace goes, with its links."""
        path.unlink(missing_ok=True)
        gone = self._kept.pop(path, None)
        if gone is not None:
            for link in list(gone.links.values()):
                gone.remove(link)

    def reopen(self, path: Path) -> int | None:
        kept = self._kept.get(path)
        return None if kept is None else self.describe(kept)

    def power_off(self, folder: Path) -> None:
        """What was kept under `folder` is gone, as is the folder: it was in memory."""
        for path in [path for path in self._kept if folder in path.parents]:
            self.forget(path)

    def may_refuse(self) -> None:
        if self.trouble and self.rng.random() < self.trouble:
            self.refused += 1
            raise NetlinkError(errno.ENOBUFS, "trouble")


def _bound(is_udp: int) -> socket.socket:
    kind = socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    sock.bind(("127.0.0.1", 0))
    if not is_udp:
        sock.listen(1)
    return sock


class FakeHelper(NamespaceHelper):
    """What it runs, runs at once (on a loop with virtual time)."""

    def __init__(self, kernel: FakeKernel, machine: int | None) -> None:
        assert machine is not None
        self._kernel = kernel
        self._thread = None  # type: ignore[assignment]
        self._machine = machine
        self._home = kernel.describe(kernel.namespace(machine))

    async def run(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        with self.inside(self._machine):
            return function(*args, **kwargs)

    def close(self) -> None:
        os.close(self._home)

    @contextmanager
    def inside(self, namespace: int) -> Iterator[None]:
        before, self._kernel.current = self._kernel.current, self._kernel.namespace(namespace)
        try:
            yield
        finally:
            self._kernel.current = before

    def create(self, prepare: Callable[[], R]) -> tuple[int, R]:
        made = Namespace()
        made.links[1] = Link(1, "lo", "")
        descriptor = self._kernel.describe(made)
        with self.inside(descriptor):
            try:
                return descriptor, prepare()
            except BaseException:
                os.close(descriptor)
                raise


class FakeChannel:
    """Satisfies `worker.network.netlink.channel.Channel`."""

    def __init__(self, kernel: FakeKernel, namespace: Namespace) -> None:
        self._kernel = kernel
        self._in = namespace
        self.transactions = 0

    def close(self) -> None:
        pass

    def send(self, messages: Sequence[Message], ignore: Collection[int] = ()) -> None:
        first = None
        for message in messages:
            try:
                self._kernel.may_refuse()
                self._carry_out(message)
            except NetlinkError as error:
                if error.errno not in ignore and first is None:
                    first = error
        if first is not None:
            raise first

    def transact(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        if not messages:
            return
        self._kernel.may_refuse()
        tables = {name: table.copy() for name, table in self._in.tables.items()}
        for message in messages:
            _edit(tables, message)
        self._in.tables = tables
        self._in.generation += 1
        self.transactions += 1

    def dump(self, message: Message) -> list[Message]:
        found = self._in
        match message.kind:
            case rtnl.GETLINK:
                return [_link(link) for link in found.links.values()]
            case rtnl.GETADDR:
                return list(found.addresses.values())
            case rtnl.GETROUTE:
                return list(found.routes.values())
            case rtnl.GETRULE:
                return list(found.rules.values())
            case rtnl.GETNEIGH:
                family = message.body[0]
                return [entry for entry in found.neighbours.values() if entry.body[0] == family]
        return self._dump_table(message)

    def _dump_table(self, message: Message) -> list[Message]:
        if message.kind == _NFTABLES | 4:
            return []  # nobody else has chains here
        values = parse(message.body, 4)
        table = self._in.tables.get(_text(values[1]))
        if table is None:
            raise NetlinkError(errno.ENOENT)
        if message.kind == _NFTABLES | 7:
            return [Message(message.kind, 0, b"")] * sum(table.chains.values())
        assert message.kind == _NFTABLES | 13, message
        items = table.maps[_text(values[2])]
        parts = [(1, {1: {1: key}, 2: _encoded(data)}) for key, data in items.items()]
        return [Message(0, 0, bytes(4) + attributes({3: parts}))]

    def ask(self, message: Message) -> Message:
        if message.kind == rtnl.GETLINK:
            return _link(self._in.named(_text(parse(message.body, 16)[3])))
        if message.kind == _STATS:
            return Message(0, 0, bytes(4) + attributes({1: be32(1)}))
        assert message.kind == _NFTABLES | 16, message
        return Message(0, 0, bytes(4) + attributes({1: be32(self._in.generation)}))

    # Requests

    def _carry_out(self, message: Message) -> None:
        match message.kind:
            case rtnl.NEWLINK:
                self._new_link(message)
            case rtnl.SETLINK:
                pass  # flags of a bridge's port
            case rtnl.DELLINK:
                self._in.remove(self._in.named(_text(parse(message.body, 16)[3])))
            case rtnl.NEWADDR | rtnl.DELADDR:
                index, length = message.body[4], message.body[1]
                address = f"{IPv4Address(parse(message.body, 8)[2])}/{length}"
                _put(
                    self._in.addresses, (index, address), message, rtnl.DELADDR, errno.EADDRNOTAVAIL
                )
            case rtnl.NEWROUTE | rtnl.DELROUTE:
                values = parse(message.body, 12)
                destination = f"{IPv4Address(values.get(1, bytes(4)))}/{message.body[1]}"
                key = (_number(values[4]), destination, _number(values[15]))
                _put(self._in.routes, key, message, rtnl.DELROUTE, errno.ESRCH)
            case rtnl.NEWRULE | rtnl.DELRULE:
                if message.kind == rtnl.NEWRULE and message.body in self._in.rules:
                    raise NetlinkError(errno.EEXIST)
                _put(self._in.rules, message.body, message, rtnl.DELRULE, errno.ENOENT)
            case rtnl.NEWNEIGH | rtnl.DELNEIGH:
                self._neighbour(message)
            case kind:
                assert kind >> 8 == 1, message  # of conntrack: flows are not kept

    def _new_link(self, message: Message) -> None:
        _, _, index, flags, _ = struct.unpack_from("=BxHiII", message.body)
        values = parse(message.body, 16)
        name = _text(values.get(3, b""))
        if not message.flags & NLM_F_EXCL:
            self._change(index, name, flags, values)
            return
        target = self._in
        if 28 in values:
            target = self._kernel.namespace(_number(values[28]))
        if any(link.name == name for link in target.links.values()):
            raise NetlinkError(errno.EEXIST)
        info = parse(values[18])
        made = Link(index or _free(target), name, _text(info[1]), rtnl.mac_text(values.get(1, b"")))
        made.mtu, made.master = _number(values.get(4)) or 1500, _number(values.get(10))
        made.up = bool(flags & 1)
        target.links[made.index] = made
        if made.kind == "veth":
            far = parse(parse(info[2])[1], 16)
            there = self._kernel.namespace(_number(far[28]))
            other = Link(_free(there), _text(far[3]), "veth", peer=(target, made.index))
            there.links[other.index] = other
            made.peer = there, other.index

    def _change(self, index: int, name: str, flags: int, values: dict[int, bytes]) -> None:
        link = self._in.named(name) if name else self._in.links.get(index)
        if link is None:
            raise NetlinkError(errno.ENODEV)
        if 10 in values:
            link.master = _number(values[10])
        if 20 in values:
            link.alias = values[20].decode()
        link.up = link.up or bool(flags & 1)

    def _neighbour(self, message: Message) -> None:
        family, index, state, flags, _ = struct.unpack_from("=BxxxiHBB", message.body)
        values = parse(message.body, 12)
        if index not in self._in.links:
            raise NetlinkError(errno.ENODEV)
        if family == socket.AF_INET:
            key = (index, family, 0, values[1])
            _put(self._in.neighbours, key, message, rtnl.DELNEIGH, errno.ENOENT)
            return
        # The bridge first, and only then the device: that is the kernel's order.
        if flags & _MASTER:
            self._bridge_entry(index, state, values, message)
        if flags & _SELF:
            body = struct.pack("=BxxxiHBB", family, index, state, _SELF, 0) + message.body[12:]
            own = message._replace(body=body)
            _put(
                self._in.neighbours, (index, _SELF, 0, values[2]), own, rtnl.DELNEIGH, errno.ENOENT
            )

    def _bridge_entry(
        self, index: int, state: int, values: dict[int, bytes], message: Message
    ) -> None:
        """A bridge has one port for each MAC."""
        master, mac = self._in.links[index].master, values[2]
        others = [key for key in self._in.neighbours if key[1:] == (_MASTER, master, mac)]
        if message.kind == rtnl.DELNEIGH and (index, _MASTER, master, mac) not in others:
            raise NetlinkError(errno.ENOENT)
        for key in others:
            del self._in.neighbours[key]
        if message.kind == rtnl.NEWNEIGH:
            body = struct.pack("=BxxxiHBB", 7, index, 0x40, 0, 0) + attributes(
                {2: mac, 9: u32(master)}
            )
            self._in.neighbours[index, _MASTER, master, mac] = message._replace(body=body)


def _put(
    entries: dict[Any, Message], key: object, message: Message, delete: int, lack: int
) -> None:
    if message.kind != delete:
        entries[key] = message
    elif entries.pop(key, None) is None:
        raise NetlinkError(lack)


def _edit(tables: dict[str, Table], message: Message) -> None:
    """One message of a transaction."""
    values = parse(message.body, 4)
    name = _text(values[1])
    kind = message.kind & 0xFF
    if kind == 0:
        tables.setdefault(name, Table())
        return
    if name not in tables:
        raise NetlinkError(errno.ENOENT)
    table = tables[name]
    match kind:
        case 2:
            del tables[name]
        case 3:
            table.chains.setdefault(_text(values[3]), 0)
        case 6:
            if _text(values[2]) not in table.chains:
                raise NetlinkError(errno.ENOENT)
            table.chains[_text(values[2])] += 1
        case 9:
            table.maps.setdefault(_text(values[2]), {})
        case 12 | 14:
            for element in parse_list(values[3]):
                _edit_element(table, table.maps[_text(values[2])], element, add=kind == 12)
        case _:
            raise AssertionError(message)


def _edit_element(table: Table, items: dict[bytes, Data], element: bytes, add: bool) -> None:
    parts = parse(element)
    key = parse(parts[1])[1]
    if not add:
        if items.pop(key, None) is None:
            raise NetlinkError(errno.ENOENT)
        return
    found = parse(parts.get(2, attributes({1: b""})))  # a set's has none
    data: Data = found[1] if 1 in found else _text(parse(found[2])[2])
    if isinstance(data, str) and data not in table.chains:
        raise NetlinkError(errno.ENOENT)
    if items.setdefault(key, data) != data:
        raise NetlinkError(errno.EEXIST)


def _encoded(data: Data) -> Any:
    return {1: data} if isinstance(data, bytes) else {2: {2: data.encode() + b"\0"}}


def _link(link: Link) -> Message:
    values: dict[int, Any] = {3: link.name.encode() + b"\0", 4: u32(link.mtu)}
    if link.mac:
        values[1] = rtnl.mac_bytes(link.mac)
    if link.alias:
        values[20] = link.alias.encode()
    if link.kind:
        values[18] = {1: link.kind.encode() + b"\0"}
    head = struct.pack("=BxHiII", 0, 0, link.index, int(link.up), 0)
    return Message(rtnl.NEWLINK, 0, head + attributes(values))


def _free(namespace: Namespace) -> int:
    return max(namespace.links, default=99) + 100


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _number(data: bytes | None) -> int:
    return struct.unpack("=I", data)[0] if data else 0
