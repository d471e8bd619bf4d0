"""Which address of this machine the other nodes should use.

`advertised` and `listening` decide, from what `machine_addresses` found.
"""

import errno
import ipaddress
import socket
from collections.abc import Sequence

import msgspec

from common.errors import Invalid


class Interface(msgspec.Struct, frozen=True):
    """A link of this machine that is no one's bridge of ours, and its IPv4 addresses."""

    name: str
    addresses: tuple[str, ...]
    has_default_route: bool = False


def split_port(text: str, default_port: int, field: str) -> tuple[str, int]:
    """HOST[:PORT] taken apart. Raises Invalid naming `field`."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, default_port
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise Invalid(f"{field} = {text!r}: the port must be between 1 and 65535")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"{host}:{port}"


def advertised(
    given: str, port: int, interfaces: Sequence[Interface], field: str = "advertise address"
) -> tuple[str, int]:
    """The address and port for others to use.

    `given` is an IPv4 address or an interface's name, with or without a port, or "": then it is the
    address of the interface with the default route, or else of the only interface, if that has
    just one. Raises Invalid saying what there is to choose from.
    """
    if not given:
        return _only_address(interfaces), port
    host, port = split_port(given, port, field)
    named = next((interface for interface in interfaces if interface.name == host), None)
    if named is not None:
        return _address_of(named, field), port
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError as error:
        raise Invalid(
            f"{field} = {given!r} is neither an IPv4 address nor an interface of this machine "
            f"({_choices(interfaces)})"
        ) from error
    if address.is_unspecified or address.is_multicast:
        raise Invalid(f"{field} = {given!r}: other nodes cannot reach that; give one of theirs")
    return str(address), port


def data_address(given: str, host: str, interfaces: Sequence[Interface]) -> str:
    """The address that overlays run between; the advertised `host` if none is `given`.

    Unlike that one it must be on this machine: the tunnels end there. Raises Invalid.
    """
    address = advertised(given, 1, interfaces, "data path address")[0] if given else host
    # All of 127.0.0.0/8 is this machine's, whatever its interfaces list.
    loopback = ipaddress.ip_address(address).is_loopback
    if loopback or any(address in one.addresses for one in interfaces):
        return address
    raise Invalid(
        f"{address} is not an address of this machine ({_choices(interfaces)}), so overlay "
        "networks cannot run over it; advertise one that is, or name one with --data-path-addr"
    )


def listening(given: str, default_port: int, interfaces: Sequence[Interface]) -> tuple[str, int]:
    """The address and port to bind; "" is every address. Raises Invalid."""
    host, port = split_port(given or "0.0.0.0", default_port, "listen address")
    if host in ("", "0.0.0.0"):
        return "0.0.0.0", port
    return advertised(host, port, interfaces, "listen address")


def _only_address(interfaces: Sequence[Interface]) -> str:
    usable = [interface for interface in interfaces if interface.name != "lo"]
    default = [interface for interface in usable if interface.has_default_route]
    found = [address for interface in default or usable for address in interface.addresses]
    if len(found) == 1:
        return found[0]
    trouble = "could not choose an IP address to advertise: this system has "
    trouble += "several addresses" if found else "no address but its own loopback"
    raise Invalid(f"{trouble} ({_choices(usable)}); specify one with --advertise-addr")


def _address_of(interface: Interface, field: str) -> str:
    if len(interface.addresses) != 1:
        raise Invalid(
            f"{field} = {interface.name!r}: the interface has "
            f"{len(interface.addresses) or 'no'} IPv4 addresses; give one address instead"
        )
    return interface.addresses[0]


def _choices(interfaces: Sequence[Interface]) -> str:
    return ", ".join(
        f"{interface.name} {address}" for interface in interfaces for address in interface.addresses
    )


def machine_interfaces() -> list[Interface]:
    """The links of this network namespace that lead out of it. Blocking."""
    from worker.network.netlink import channel, rtnl

    netlink = channel.Channel.open(channel.ROUTE)
    try:
        links = [rtnl.parse_link(message) for message in netlink.dump(rtnl.get_links())]
        addresses = [rtnl.parse_address(found) for found in netlink.dump(rtnl.get_addresses())]
        routes = [rtnl.parse_route(found) for found in netlink.dump(rtnl.get_routes())]
    finally:
        netlink.close()
    default = {route.index for route in routes if route.destination.prefixlen == 0}
    return [
        Interface(
            link.name,
            tuple(str(found.interface.ip) for found in addresses if found.index == link.index),
            link.index in default,
        )
        for link in links
        if link.up and link.kind not in ("bridge", "vxlan")
    ]


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises Invalid saying why not."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise Invalid(_bind_trouble(error, host, port)) from error
    return listener


def _bind_trouble(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use on {host}; stop what uses it or choose another port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; give one that is"
        case _:
            return f"cannot listen on {host}:{port}: {error.strerror}"


def source_address(remote: str) -> str:
    """The address of this machine from which the kernel would reach `remote`, HOST:PORT.

    Sends nothing, but may ask a name server; blocking. Raises Invalid.
    """
    host, port = split_port(remote, 1, "remote address")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((host, port))
        except OSError as error:
            raise Invalid(f"there is no way to {remote}: {error.strerror}") from error
        return str(probe.getsockname()[0])
