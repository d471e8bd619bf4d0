import socket
from contextlib import closing

import pytest

from common.errors import Invalid
from node.address import (
    Interface,
    advertised,
    bind,
    data_address,
    listening,
    machine_interfaces,
    source_address,
)
from node.pools import check_pools

LO = Interface("lo", ("127.0.0.1",))
ETH = Interface("eth0", ("192.0.2.5",), has_default_route=True)
PLAIN = Interface("eth1", ("198.51.100.7",))
TWO = Interface("eth2", ("203.0.113.1", "203.0.113.2"), has_default_route=True)


@pytest.mark.parametrize(
    ("given", "interfaces", "expect"),
    [
        pytest.param("", [LO, ETH, PLAIN], ("192.0.2.5", 2377), id="the default route's"),
        pytest.param("", [LO, PLAIN], ("198.51.100.7", 2377), id="the only one"),
        pytest.param("eth1", [LO, ETH, PLAIN], ("198.51.100.7", 2377), id="an interface"),
        pytest.param("eth1:99", [LO, ETH, PLAIN], ("198.51.100.7", 99), id="with a port"),
        pytest.param("203.0.113.9", [LO], ("203.0.113.9", 2377), id="not of this machine: NAT"),
        pytest.param("203.0.113.9:1", [LO], ("203.0.113.9", 1), id="address and port"),
    ],
)
def test_chosen(given: str, interfaces: list[Interface], expect: tuple[str, int]) -> None:
    assert advertised(given, 2377, interfaces) == expect


@pytest.mark.parametrize(
    ("given", "interfaces", "says"),
    [
        pytest.param("", [LO, TWO], "several addresses .*--advertise-addr", id="several"),
        pytest.param("", [LO, PLAIN, TWO], "several addresses", id="only the default's count"),
        pytest.param("", [LO], "no address but its own", id="none"),
        pytest.param("eth2", [TWO], "has 2 IPv4 addresses", id="an interface with two"),
        pytest.param("eth9", [ETH], "neither an IPv4 .*eth0 192.0.2.5", id="nothing known"),
        pytest.param("0.0.0.0", [ETH], "cannot reach", id="everywhere"),
        pytest.param("192.0.2.5:99999", [ETH], "between 1 and 65535", id="port too large"),
        pytest.param("192.0.2.5:x", [ETH], "between 1 and 65535", id="port no number"),
        pytest.param("::1", [ETH], r"neither|port must", id="IPv6"),
    ],
)
def test_refused(given: str, interfaces: list[Interface], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        advertised(given, 2377, interfaces)


def test_overlays_run_between_addresses_of_the_machines() -> None:
    """Behind NAT others may reach us by an address that is not ours; tunnels cannot end there."""
    assert data_address("", "192.0.2.5", [LO, ETH]) == "192.0.2.5"
    assert data_address("", "127.0.0.2", [LO, ETH]) == "127.0.0.2"
    assert data_address("eth1", "203.0.113.9", [LO, ETH, PLAIN]) == "198.51.100.7"
    for given, host in (("", "203.0.113.9"), ("203.0.113.9", "192.0.2.5")):
        with pytest.raises(Invalid, match=r"203.0.113.9 is not .*eth0 192.0.2.5.*--data-path-addr"):
            data_address(given, host, [LO, ETH])


def test_listening_is_everywhere_by_default() -> None:
    assert listening("", 2377, [ETH]) == ("0.0.0.0", 2377)
    assert listening("0.0.0.0:99", 2377, [ETH]) == ("0.0.0.0", 99)
    assert listening("eth0", 2377, [ETH]) == ("192.0.2.5", 2377)


def test_this_machine_has_a_loopback() -> None:
    assert any("127.0.0.1" in interface.addresses for interface in machine_interfaces())
    assert source_address("127.0.0.1:1") == "127.0.0.1"


def test_what_is_in_the_way_of_binding_is_named() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Invalid, match=f"port {port} is in use on 127.0.0.1"):
            bind("127.0.0.1", port)
    with pytest.raises(Invalid, match="not an address of this machine"):
        bind("192.0.2.250", port)


@pytest.mark.parametrize(
    ("pools", "size", "says"),
    [
        (("10.0.0.0/8", "10.1.0.0/16"), 24, "overlap"),
        (("10.0.0.0/25",), 24, "subnet size 24 does not fit"),
        (("10.0.0.0/8",), 30, "between 8 and 29"),
        (("10.0.0.1/8",), 24, "not an IPv4 range"),
        (("pool",), 24, "not an IPv4 range"),
    ],
)
def test_pools_that_cannot_be(pools: tuple[str, ...], size: int, says: str) -> None:
    check_pools(("10.0.0.0/8", "192.168.0.0/16"), 24)
    with pytest.raises(Invalid, match=says):
        check_pools(pools, size)
