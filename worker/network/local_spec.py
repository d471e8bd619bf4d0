"""From a request for a network of this node to what it shall be. Pure.

What Docker would honour and this node does not is refused here, by name.
"""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, ip_network

import msgspec

from common.errors import Forbidden, Invalid, NotImplementedHere
from common.model.network import IPAM, IPAMConfig, NetworkSpec

BRIDGE, MACVLAN, IPVLAN = "bridge", "macvlan", "ipvlan"
DRIVERS = (BRIDGE, MACVLAN, IPVLAN)
PREDEFINED = ("bridge", "host", "none", "default")

LINK_NAME = "com.docker.network.bridge.name"
ICC = "com.docker.network.bridge.enable_icc"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
HOST_ADDRESS = "com.docker.network.bridge.host_binding_ipv4"
MTU = "com.docker.network.driver.mtu"
PARENT = "parent"
MODES = {
    MACVLAN: ("macvlan_mode", ("bridge", "vepa", "passthru", "private")),
    IPVLAN: ("ipvlan_mode", ("l2", "l3", "l3s")),
}

_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$")
_LINK = re.compile(r"^[^\s/:]{1,15}$")
_BRIDGE_OPTIONS = {LINK_NAME, ICC, MASQUERADE, HOST_ADDRESS, MTU}
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
_SMALLEST = 30  # bits of the longest prefix: a gateway and one container


class LocalSubnet(msgspec.Struct, frozen=True, kw_only=True):
    """`given`: the user chose the subnet, and so may choose addresses in it."""

    subnet: str
    gateway: str
    ip_range: str = ""
    aux: dict[str, str] = {}
    given: bool = False

    @property
    def network(self) -> IPv4Network:
        return IPv4Network(self.subnet)


class LocalNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network that a user made on this node. `link`: its bridge, or the parent interface."""

    id: str
    name: str
    driver: str
    created: dt.datetime
    subnet: LocalSubnet
    link: str
    internal: bool = False
    attachable: bool = False
    labels: dict[str, str] = {}
    options: dict[str, str] = {}  # as they were given

    @property
    def talk(self) -> bool:
        """Whether its containers may reach each other."""
        return truth(self.options, ICC, default=True)

    @property
    def masquerade(self) -> bool:
        return not self.internal and truth(self.options, MASQUERADE, default=True)

    @property
    def mtu(self) -> int:
        """0: the machine's."""
        return int(self.options.get(MTU, "0"))

    @property
    def mode(self) -> str:
        """Of a macvlan or ipvlan."""
        name, known = MODES[self.driver]
        return self.options.get(name) or known[0]


def plan(
    spec: NetworkSpec, network_id: str, now: dt.datetime, choose: Callable[[], IPv4Network]
) -> LocalNetwork:
    """The network that `spec` asks for; `choose` gives a free subnet, if it names none.

    Raises Invalid, Forbidden (a name that is ours), NotImplementedHere.
    """
    driver = spec.driver or BRIDGE
    _check(spec, driver)
    options = dict(spec.options or {})
    link = options.get(LINK_NAME, f"br-{network_id[:12]}")
    if driver != BRIDGE:
        link = options.get(PARENT, "")
    return LocalNetwork(
        id=network_id,
        name=spec.name,
        driver=driver,
        created=now,
        subnet=subnet_of(spec.ipam or IPAM(), choose),
        link=link,
        internal=spec.internal,
        attachable=spec.attachable,
        labels=spec.labels,
        options=options,
    )


def _check(spec: NetworkSpec, driver: str) -> None:
    if spec.name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {spec.name} network")
    if not _NAME.match(spec.name):
        raise Invalid(
            f"Name = {spec.name[:80]!r} is not the name of a network: use letters, digits and _.-"
        )
    if driver in ("host", "null", "none"):
        kind = "null" if driver == "none" else driver
        raise Forbidden(f'only one instance of "{kind}" network is allowed')
    if driver not in DRIVERS:
        raise NotImplementedHere(f"network driver {driver!r} is not here: there are no plugins")
    if spec.scope not in ("", "local"):
        raise Invalid(f"Scope = {spec.scope!r} is not for driver {driver}: use local, or overlay")
    refused = {
        "Ingress": spec.ingress,
        "ConfigOnly": spec.config_only,
        "ConfigFrom": bool((spec.config_from or {}).get("Network")),
        "EnableIPv6": bool(spec.enable_ipv6),
        "EnableIPv4 = false": spec.enable_ipv4 is False,
    }
    for field, asked in refused.items():
        if asked:
            raise NotImplementedHere(f"{field} is not supported for networks of this node")
    _check_options(driver, spec.options or {}, spec.internal)


def _check_options(driver: str, options: Mapping[str, str], internal: bool) -> None:
    known = _BRIDGE_OPTIONS if driver == BRIDGE else {PARENT, MODES[driver][0]}
    if unknown := sorted(set(options) - known):
        raise NotImplementedHere(f"network option {unknown[0]!r} is not supported by {driver}")
    for name in (ICC, MASQUERADE):
        truth(options, name, default=True)
    mtu = options.get(MTU, "0")
    if not mtu.isdecimal() or not (mtu == "0" or 68 <= int(mtu) <= 65535):
        raise Invalid(f"{MTU} = {mtu!r} is not an MTU: use 68 to 65535")
    link = options.get(LINK_NAME, "br")
    if not _LINK.match(link) or link in (".", "..", "lo"):
        raise Invalid(f"{LINK_NAME} = {link!r} is not a name for an interface: 15 letters at most")
    if address := options.get(HOST_ADDRESS):
        _address(HOST_ADDRESS, address)
    if driver == BRIDGE:
        return
    if not _LINK.match(options.get(PARENT, "")):
        raise Invalid(f"{driver} needs an interface of this machine: add -o parent=NAME")
    name, modes = MODES[driver]
    if options.get(name, modes[0]) not in modes:
        raise Invalid(f"{name} = {options[name]!r} is not one of {', '.join(modes)}")
    if internal:
        raise NotImplementedHere(f"an internal {driver} is not supported: leave out --internal")


def truth(options: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Raises Invalid."""
    text = options.get(name, "").lower()
    if text not in ("", *_TRUE, *_FALSE):
        raise Invalid(f"{name} = {text!r}: write true or false")
    return text in _TRUE if text else default


def subnet_of(ipam: IPAM, choose: Callable[[], IPv4Network]) -> LocalSubnet:
    """The subnet that is asked for. Raises Invalid, NotImplementedHere."""
    if ipam.driver not in ("", "default") or ipam.options:
        raise NotImplementedHere("only the default IPAM driver without options is supported")
    if len(ipam.config) > 1:
        raise NotImplementedHere("only one subnet for a network of this node is supported")
    config = ipam.config[0] if ipam.config else IPAMConfig()
    if not config.subnet and (config.gateway or config.ip_range or config.aux_address):
        raise Invalid("a gateway, IP range or auxiliary address needs a subnet: add --subnet")
    subnet = _subnet(config.subnet) if config.subnet else choose()
    gateway = _inside("gateway", config.gateway or str(subnet.network_address + 1), subnet)
    aux = {name: str(_inside("auxiliary address", text, subnet))
           for name, text in config.aux_address.items()}  # fmt: skip
    return LocalSubnet(
        subnet=str(subnet),
        gateway=str(gateway),
        ip_range=_range(config.ip_range, subnet),
        aux=aux,
        given=bool(config.subnet),
    )


def _subnet(text: str) -> IPv4Network:
    try:
        found = ip_network(text)
    except ValueError as error:
        raise Invalid(f"invalid network config: invalid subnet {text}: {error}") from error
    if not isinstance(found, IPv4Network):
        raise NotImplementedHere(f"subnet {text}: IPv6 is not supported")
    if found.prefixlen > _SMALLEST:
        raise Invalid(f"subnet {text} is too small: use /{_SMALLEST} or larger")
    return found


def _address(what: str, text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise Invalid(f"{what} {text!r} is not an IPv4 address") from error


def _inside(what: str, text: str, subnet: IPv4Network) -> IPv4Address:
    address = _address(what, text)
    if address not in subnet or address in (subnet.network_address, subnet.broadcast_address):
        raise Invalid(f"{what} {text} is not an address in subnet {subnet}")
    return address


def _range(text: str, subnet: IPv4Network) -> str:
    if not text:
        return ""
    try:
        found = IPv4Network(text, strict=False)
    except ValueError as error:
        raise Invalid(f"IP range {text!r} is not valid: {error}") from error
    if not found.subnet_of(subnet):
        raise Invalid(f"IP range {text} is not in subnet {subnet}")
    return str(found)
