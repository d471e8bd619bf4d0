"""What a node that starts on another address makes of it. Wish 11."""

import pytest

from common.config import DaemonConfig
from common.errors import Invalid
from common.protocol.dispatcher import Manager
from node.address import Interface
from node.identity import NodeState
from node.moving import moved

OTHER = Manager(node_id="other", address="192.0.2.1:2377")


def state(
    address: str = "192.0.2.3:2377",
    data: str = "192.0.2.3",
    listen: str = "0.0.0.0:2377",
    advertise: str = "",
    data_path: str = "",
) -> NodeState:
    own = Manager(node_id="me", address=address)
    return NodeState(
        node_id="me",
        cluster_id="c",
        address=address,
        listen=listen,
        data_address=data,
        managers=(OTHER, own),
        advertise=advertise,
        data_path=data_path,
    )


def on(*addresses: str, name: str = "eth0") -> list[Interface]:
    return [Interface("lo", ("127.0.0.1",)), Interface(name, addresses)]


def now(before: NodeState, interfaces: list[Interface], **config: str) -> NodeState:
    return moved(before, DaemonConfig(**config), interfaces, lambda: "192.0.2.13")  # type: ignore[arg-type]


def test_who_has_not_moved_stays() -> None:
    assert now(state(), on("192.0.2.3", "192.0.2.99")) == state()
    assert now(state("127.0.0.2:7", "127.0.0.2"), on()) == state("127.0.0.2:7", "127.0.0.2")


def test_a_lost_address_gives_way_to_the_one_towards_the_managers() -> None:
    found = now(state(listen="192.0.2.3:2377"), on("192.0.2.13"))
    assert found == state("192.0.2.13:2377", "192.0.2.13", listen="192.0.2.13:2377")


def test_an_interface_that_was_named_is_followed() -> None:
    found = now(state(advertise="eth0"), on("198.51.100.7"))
    assert (found.address, found.data_address) == ("198.51.100.7:2377", "198.51.100.7")


def test_what_the_daemon_is_started_with_goes_before() -> None:
    found = now(state(advertise="eth0"), on("192.0.2.3"), advertise_addr="203.0.113.5:99")
    assert found.address == "203.0.113.5:99"
    assert found.data_address == "192.0.2.3"  # tunnels end on this machine
    found = now(state(), on("192.0.2.3", "10.0.0.1"), data_path_addr="10.0.0.1")
    assert (found.address, found.data_address) == ("192.0.2.3:2377", "10.0.0.1")


def test_an_address_that_never_was_here_stays() -> None:
    """As behind a translating router; the overlays' own may move all the same."""
    found = now(state("203.0.113.5:2377", "10.0.0.1"), on("192.0.2.13"))
    assert (found.address, found.data_address) == ("203.0.113.5:2377", "192.0.2.13")


def test_a_lost_data_path_that_was_asked_for_is_said() -> None:
    with pytest.raises(Invalid, match=r"10\.0\.0\.1 is no longer on this machine"):
        now(state(data="10.0.0.1", data_path="10.0.0.1"), on("192.0.2.3"))


def test_no_address_to_choose() -> None:
    def nowhere() -> str:
        raise Invalid("no way there")

    with pytest.raises(Invalid, match="no way"):
        moved(state(), DaemonConfig(), on(), nowhere)
