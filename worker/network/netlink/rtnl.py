"""The rtnetlink requests we make, as messages. Each is one `ip` or `bridge` command, named beside.

Numbers are those of linux/rtnetlink.h, if_link.h, neighbour.h and fib_rules.h.
"""

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from worker.network.netlink.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Message,
    Value,
    attributes,
    be16,
    parse,
    text,
    u8,
    u16,
    u32,
)

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34

_CREATE = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
_REPLACE = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_PAIR = struct.Struct("=BxxxiHBB HH6s2x HH4s")
_RULE = struct.Struct("=BBBBBBBBI")

_UP = 0x1
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_MASTER = 1, 3, 4, 10
_LINK_INFO, _LINK_ALIAS, _LINK_NS_FD, _LINK_PROTINFO = 18, 20, 28, 12
_LINK_OF_FAMILY, _LINK_TX_QUEUES, _LINK_RX_QUEUES = 26, 31, 32
_INET6_ADDRESSES, _NO_ADDRESSES = 8, 1
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER = 1
_LINK_PARENT, _CHILD_MODE = 5, 1
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PROXY, _VXLAN_PORT = 1, 4, 7, 11, 15
_PORT_LEARNING, _PORT_ISOLATED = 8, 33
AF_BRIDGE = 7

_NUD_REACHABLE, _NUD_NOARP, _NUD_PERMANENT = 0x02, 0x40, 0x80
_NTF_SELF, _NTF_MASTER = 0x02, 0x04
_NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 7, 15
_RTPROT_KERNEL, _RTPROT_STATIC, _RTN_UNICAST = 2, 4, 1
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTNH_ONLINK = 4
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 3, 6, 10, 15, 16
_TO_TABLE = 1


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mac: str
    mtu: int
    alias: str
    up: bool
    kind: str  # bridge, vxlan, veth; "" for hardware and lo


@dataclass(frozen=True, slots=True)
class Address:
    index: int
    interface: IPv4Interface


def mac_bytes(mac: str) -> bytes:
    """Raises ValueError unless `mac` is six colon-separated octets."""
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return octets


def mac_text(octets: bytes) -> str:
    return octets.hex(":")


def add_bridge(name: str, index: int = 0, mtu: int = 0, mac: str = "") -> Message:
    """ip link add NAME [index INDEX] [mtu MTU] [address MAC] up type bridge"""
    values: dict[int, Value] = {_LINK_NAME: text(name), _LINK_INFO: {_INFO_KIND: text("bridge")}}
    if mtu:
        values[_LINK_MTU] = u32(mtu)
    if mac:
        values[_LINK_ADDRESS] = mac_bytes(mac)
    return Message(NEWLINK, _CREATE, _IFINFO.pack(0, 0, index, _UP, _UP) + attributes(values))


def add_vxlan(
    name: str,
    vni: int,
    local: IPv4Address,
    port: int,
    *,
    index: int = 0,
    mtu: int = 0,
    mac: str = "",
    master: int = 0,
    proxy: bool = True,
    namespace: int = -1,
) -> Message:
    """ip link add NAME … up type vxlan id VNI local LOCAL dstport PORT nolearning [proxy]

    With `namespace` (a descriptor) the device is born there while its UDP socket stays in the
    channel's own namespace, as if it had been moved. `master` is an index over there.
    """
    data: dict[int, Value] = {
        _VXLAN_ID: u32(vni),
        _VXLAN_LOCAL: local.packed,
        _VXLAN_PORT: be16(port),
        _VXLAN_LEARNING: u8(0),
        _VXLAN_PROXY: u8(proxy),
    }
    values: dict[int, Value] = {
        _LINK_NAME: text(name),
        _LINK_INFO: {_INFO_KIND: text("vxlan"), _INFO_DATA: data},
    }
    if mtu:
        values[_LINK_MTU] = u32(mtu)
    if mac:
        values[_LINK_ADDRESS] = mac_bytes(mac)
    if master:
        values[_LINK_MASTER] = u32(master)
    if namespace >= 0:
        values[_LINK_NS_FD] = u32(namespace)
    return Message(NEWLINK, _CREATE, _IFINFO.pack(0, 0, index, _UP, _UP) + attributes(values))


def add_veth(name: str, index: int, peer: str, *, mac: str, mtu: int, namespace: int) -> Message:
    """ip link add NAME index INDEX address MAC mtu MTU up type veth peer name PEER netns … mtu MTU

    To be sent from inside the sandbox: so the number of its end can be chosen, and what follows
    can name it without asking. PEER is born in `namespace` (a descriptor), down and alone.

    Each end has one queue: only XDP uses more of a veth's, and the kernel would make as many as the
    machine has processors, each with folders in sysfs and events to udev.
    """
    single: dict[int, Value] = {_LINK_TX_QUEUES: u32(1), _LINK_RX_QUEUES: u32(1)}
    far = _IFINFO.pack(0, 0, 0, 0, 0) + attributes(
        {_LINK_NAME: text(peer), _LINK_MTU: u32(mtu), _LINK_NS_FD: u32(namespace), **single}
    )
    near: dict[int, Value] = {
        **single,
        _LINK_NAME: text(name),
        _LINK_ADDRESS: mac_bytes(mac),
        _LINK_MTU: u32(mtu),
        _LINK_INFO: {_INFO_KIND: text("veth"), _INFO_DATA: {_VETH_PEER: far}},
    }
    return Message(NEWLINK, _CREATE, _IFINFO.pack(0, 0, index, _UP, _UP) + attributes(near))


def add_macvlan(
    name: str, parent: int, mode: str, *, index: int = 0, mac: str = "", namespace: int = -1
) -> Message:
    """ip link add NAME link PARENT [index INDEX] [netns …] up type macvlan mode MODE"""
    return _child("macvlan", name, parent, u32(_MACVLAN_MODES[mode]), index, mac, namespace)


def add_ipvlan(
    name: str, parent: int, mode: str, *, index: int = 0, mac: str = "", namespace: int = -1
) -> Message:
    """ip link add NAME link PARENT … up type ipvlan mode MODE; it has its parent's MAC."""
    return _child("ipvlan", name, parent, u16(_IPVLAN_MODES[mode]), index, "", namespace)


def _child(
    kind: str, name: str, parent: int, mode: bytes, index: int, mac: str, namespace: int
) -> Message:
    values: dict[int, Value] = {
        _LINK_NAME: text(name),
        _LINK_PARENT: u32(parent),
        _LINK_INFO: {_INFO_KIND: text(kind), _INFO_DATA: {_CHILD_MODE: mode}},
    }
    if mac:
        values[_LINK_ADDRESS] = mac_bytes(mac)
    if namespace >= 0:
        values[_LINK_NS_FD] = u32(namespace)
    return Message(NEWLINK, _CREATE, _IFINFO.pack(0, 0, index, _UP, _UP) + attributes(values))


def enslave(name: str, master: int) -> Message:
    """ip link set NAME master MASTER up"""
    values: dict[int, Value] = {_LINK_NAME: text(name), _LINK_MASTER: u32(master)}
    return Message(NEWLINK, NLM_F_REQUEST, _IFINFO.pack(0, 0, 0, _UP, _UP) + attributes(values))


def without_ipv6(name: str) -> Message:
    """ip link set NAME addrgenmode none: it gives itself no address when it comes up.

    The kernel refuses it (EAFNOSUPPORT) for a link without IPv6.
    """
    family: dict[int, Value] = {_INET6_ADDRESSES: u8(_NO_ADDRESSES)}
    values: dict[int, Value] = {_LINK_NAME: text(name), _LINK_OF_FAMILY: {socket.AF_INET6: family}}
    return Message(NEWLINK, NLM_F_REQUEST, _IFINFO.pack(0, 0, 0, 0, 0) + attributes(values))


def set_up(index: int, up: bool = True) -> Message:
    """ip link set INDEX up|down"""
    return Message(NEWLINK, NLM_F_REQUEST, _IFINFO.pack(0, 0, index, _UP if up else 0, _UP))


def set_alias(index: int, alias: str) -> Message:
    """ip link set INDEX alias ALIAS"""
    body = _IFINFO.pack(0, 0, index, 0, 0)
    return Message(NEWLINK, NLM_F_REQUEST, body + attributes({_LINK_ALIAS: alias.encode()[:255]}))


def set_name(index: int, name: str) -> Message:
    """ip link set INDEX name NAME; it must be down."""
    body = _IFINFO.pack(0, 0, index, 0, 0)
    return Message(NEWLINK, NLM_F_REQUEST, body + attributes({_LINK_NAME: text(name)}))


def set_isolated(index: int, on: bool) -> Message:
    """bridge link set dev INDEX isolated on|off: isolated ports do not reach each other"""
    body = _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0)
    return Message(
        SETLINK, NLM_F_REQUEST, body + attributes({_LINK_PROTINFO: {_PORT_ISOLATED: u8(on)}})
    )


def set_learning(index: int, on: bool) -> Message:
    """bridge link set dev INDEX learning on|off"""
    body = _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0)
    return Message(
        SETLINK, NLM_F_REQUEST, body + attributes({_LINK_PROTINFO: {_PORT_LEARNING: u8(on)}})
    )


def del_link(name: str) -> Message:
    """ip link del NAME"""
    return Message(
        DELLINK, NLM_F_REQUEST, _IFINFO.pack(0, 0, 0, 0, 0) + attributes({_LINK_NAME: text(name)})
    )


def get_link(name: str) -> Message:
    """ip link show NAME"""
    return Message(
        GETLINK, NLM_F_REQUEST, _IFINFO.pack(0, 0, 0, 0, 0) + attributes({_LINK_NAME: text(name)})
    )


def get_links() -> Message:
    """ip link show (dump)"""
    return Message(GETLINK, NLM_F_REQUEST, _IFINFO.pack(0, 0, 0, 0, 0))


def get_addresses() -> Message:
    """ip -4 address show (dump)"""
    return Message(GETADDR, NLM_F_REQUEST, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0))


def get_routes() -> Message:
    """ip -4 route show table all (dump)"""
    return Message(GETROUTE, NLM_F_REQUEST, _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def _address(kind: int, flags: int, index: int, interface: IPv4Interface) -> Message:
    packed = interface.ip.packed
    values: dict[int, Value] = {2: packed, 1: packed}
    length = interface.network.prefixlen
    if length < 31:
        values[4] = interface.network.broadcast_address.packed
    body = _IFADDR.pack(socket.AF_INET, length, 0, 0, index)
    return Message(kind, NLM_F_REQUEST | flags, body + attributes(values))


def add_address(index: int, interface: IPv4Interface) -> Message:
    """ip address replace INTERFACE broadcast + dev INDEX"""
    return _address(NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, interface)


def del_address(index: int, interface: IPv4Interface) -> Message:
    """ip address del INTERFACE dev INDEX"""
    return _address(DELADDR, 0, index, interface)


def route(
    destination: IPv4Network,
    index: int,
    gateway: IPv4Address | None = None,
    *,
    source: IPv4Address | None = None,
    table: int = 254,
    delete: bool = False,
) -> Message:
    """ip route replace|del DESTINATION [via GATEWAY onlink] dev INDEX [src SOURCE] table TABLE"""
    values: dict[int, Value] = {_RTA_OIF: u32(index), _RTA_TABLE: u32(table)}
    if destination.prefixlen:
        values[_RTA_DST] = destination.network_address.packed
    if gateway is not None:
        values[_RTA_GATEWAY] = gateway.packed
    if source is not None:
        values[_RTA_PREFSRC] = source.packed
    body = _ROUTE.pack(
        socket.AF_INET,
        destination.prefixlen,
        0,
        0,
        min(table, 252) if table != 254 else 254,
        _RTPROT_STATIC,
        _SCOPE_LINK if gateway is None else _SCOPE_UNIVERSE,
        _RTN_UNICAST,
        _RTNH_ONLINK if gateway is not None else 0,
    )
    if delete:
        return Message(DELROUTE, NLM_F_REQUEST, body + attributes(values))
    return Message(NEWROUTE, _REPLACE, body + attributes(values))


def mark_rule(priority: int, incoming: str, mark: int, table: int, delete: bool = False) -> Message:
    """ip rule add|del pref PRIORITY iif INCOMING fwmark MARK/0xffffffff lookup TABLE"""
    values: dict[int, Value] = {
        _FRA_PRIORITY: u32(priority),
        _FRA_IIFNAME: text(incoming),
        _FRA_FWMARK: u32(mark),
        _FRA_FWMASK: u32(0xFFFFFFFF),
        _FRA_TABLE: u32(table),
    }
    body = _RULE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0) + attributes(values)
    if delete:
        return Message(DELRULE, NLM_F_REQUEST, body)
    return Message(NEWRULE, _CREATE, body)


@dataclass(frozen=True, slots=True)
class Rule:
    priority: int
    incoming: str
    mark: int
    table: int


def get_rules() -> Message:
    """ip -4 rule show (dump)"""
    return Message(GETRULE, NLM_F_REQUEST, _RULE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def parse_rule(message: Message) -> Rule:
    found = parse(message.body, _RULE.size)
    return Rule(
        _number(found.get(_FRA_PRIORITY)),
        found.get(_FRA_IIFNAME, b"").rstrip(b"\0").decode(),
        _number(found.get(_FRA_FWMARK)),
        _number(found.get(_FRA_TABLE)),
    )


def _neighbour(
    delete: bool, family: int, index: int, state: int, flags: int, values: dict[int, Value]
) -> Message:
    body = _NEIGHBOUR.pack(family, index, state, flags, 0) + attributes(values)
    if delete:
        return Message(DELNEIGH, NLM_F_REQUEST, body)
    return Message(NEWNEIGH, _REPLACE, body)


def neighbour(index: int, address: str, mac: str, delete: bool = False) -> Message:
    """ip neigh replace|del ADDRESS lladdr MAC dev INDEX nud permanent"""
    return _pair(delete, socket.AF_INET, index, _NUD_PERMANENT, 0, address, mac)


def vtep(index: int, mac: str, address: str, *, bridged: bool, delete: bool = False) -> Message:
    """bridge fdb replace|del MAC dev INDEX self [master] static dst ADDRESS

    `bridged`: the vxlan is a bridge's port, and the bridge is to know the way as well. The state
    is the one that means "does not age" to both: permanent would mean "here" to a bridge.
    """
    flags = _NTF_SELF | (_NTF_MASTER if bridged else 0)
    return _pair(delete, AF_BRIDGE, index, _NUD_REACHABLE | _NUD_NOARP, flags, address, mac)


def _pair(
    delete: bool, family: int, index: int, state: int, flags: int, address: str, mac: str
) -> Message:
    """`_neighbour` with an address and a MAC, packed at once: there are ten thousands of them."""
    body = _PAIR.pack(
        family, index, state, flags, 0,
        10, _NDA_LLADDR, mac_bytes(mac),
        8, _NDA_DST, socket.inet_pton(socket.AF_INET, address),
    )  # fmt: skip
    return Message(DELNEIGH, NLM_F_REQUEST, body) if delete else Message(NEWNEIGH, _REPLACE, body)


def local_port(index: int, mac: str, delete: bool = False) -> Message:
    """bridge fdb replace|del MAC dev INDEX master static"""
    values: dict[int, Value] = {_NDA_LLADDR: mac_bytes(mac)}
    return _neighbour(delete, AF_BRIDGE, index, _NUD_NOARP | _NUD_REACHABLE, _NTF_MASTER, values)


def get_neighbours(family: int) -> Message:
    """ip neigh show (AF_INET) or bridge fdb show (AF_BRIDGE), dump"""
    return Message(GETNEIGH, NLM_F_REQUEST, _NEIGHBOUR.pack(family, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class Neighbour:
    index: int
    state: int
    flags: int
    mac: str
    address: str
    master: int


def parse_neighbour(message: Message) -> Neighbour:
    _, index, state, flags, _ = _NEIGHBOUR.unpack_from(message.body)
    found = parse(message.body, _NEIGHBOUR.size)
    destination = found.get(_NDA_DST, b"")
    address = str(IPv4Address(destination)) if len(destination) == 4 else ""
    mac = mac_text(found.get(_NDA_LLADDR, b""))
    return Neighbour(index, state, flags, mac, address, _number(found.get(_NDA_MASTER)))


def parse_link(message: Message) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(message.body)
    found = parse(message.body, _IFINFO.size)
    return Link(
        index,
        found.get(_LINK_NAME, b"").rstrip(b"\0").decode(),
        mac_text(found.get(_LINK_ADDRESS, b"")),
        _number(found.get(_LINK_MTU)),
        found.get(_LINK_ALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        bool(flags & _UP),
        parse(found.get(_LINK_INFO, b"")).get(_INFO_KIND, b"").rstrip(b"\0").decode(),
    )


def parse_address(message: Message) -> Address:
    _, length, _, _, index = _IFADDR.unpack_from(message.body)
    found = parse(message.body, _IFADDR.size)
    local = found.get(2) or found.get(1) or bytes(4)
    return Address(index, IPv4Interface((local, length)))


@dataclass(frozen=True)
class Route:
    destination: IPv4Network
    index: int  # of the outgoing interface; 0: none, or several
    unicast: bool  # leads somewhere
    by_kernel: bool  # follows from an address of the interface
    static: bool = False  # made as `route` makes them


def parse_route(message: Message) -> Route:
    _, length, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(message.body)
    found = parse(message.body, _ROUTE.size)
    destination = IPv4Network((found.get(_RTA_DST, bytes(4)), length))
    index = _number(found.get(_RTA_OIF))
    by_kernel, static = protocol == _RTPROT_KERNEL, protocol == _RTPROT_STATIC
    return Route(destination, index, kind == _RTN_UNICAST, by_kernel, static)


def _number(data: bytes | None) -> int:
    return struct.unpack_from("=I", data)[0] if data and len(data) >= 4 else 0
