"""What is told of a machine's routes."""

from ipaddress import IPv4Network

from worker.network.netlink.rtnl import Route
from worker.network.surroundings import RANGES_MAX, Surroundings, surroundings


def route(destination: str, index: int = 2, *, unicast: bool = True, kernel: bool = False) -> Route:
    return Route(IPv4Network(destination), index, unicast, kernel)


def test_own_links_default_routes_and_what_is_inside_wider_ranges_are_left_out() -> None:
    found = surroundings(
        (
            route("0.0.0.0/0"),
            route("10.77.0.0/24", kernel=True),
            route("10.77.0.1/32", unicast=False, kernel=True),
            route("10.192.4.0/22", 7, kernel=True),
            route("172.16.0.0/12"),
            route("172.16.5.0/24"),
        ),
        own={7},
    )
    assert found == Surroundings(("10.77.0.0/24",), ("172.16.0.0/12",))
    assert found.overlapping("10.64.0.0/10") == "10.77.0.0/24"
    assert found.overlapping("10.192.0.0/10") == ""


def test_of_very_many_routes_the_widest_are_told() -> None:
    many = [route(f"10.{number // 128}.{number % 128 * 2}.0/24") for number in range(1000)]
    told = surroundings((*many, route("172.16.0.0/12")), own=()).routes
    assert len(told) == RANGES_MAX
    assert told[0] == "172.16.0.0/12"
