"""What the nodes say of the networks around them, which overlays had better not overlap.

An overlay in the range of a network that a node is in itself would hide that network's machines
from the containers. A route is weaker: it may lead to a wide range of which little is in use, so
that a subnet inside it is allowed if it was asked for; one that covers it would hide all of it.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.model.base import Object
from common.model.node import Node
from manager.store.view import View

RANGES_MAX = 128  # of one node and kind; more are not looked at


class Around(NamedTuple):
    range: ipaddress.IPv4Network
    node: str  # what the node is called
    routed: bool = False  # by way of a gateway or a tunnel

    def collides(self, subnet: ipaddress.IPv4Network) -> bool:
        """Whether nobody should make `subnet` an overlay's."""
        return self.range.subnet_of(subnet) if self.routed else self.range.overlaps(subnet)

    def __str__(self) -> str:
        kind = "a route" if self.routed else "a network"
        return f"{self.range}, {kind} of node {self.node}"


def around(view: View) -> Iterator[Around]:
    """Of all nodes. What does not read as a range is left out: nodes are not trusted that far."""
    for node in view.find(Node):
        name = node.description.hostname or node.id
        for range in _ranges((*node.description.networks, node.status.addr)):
            yield Around(range, name)
        for range in _ranges(node.description.routes):
            yield Around(range, name, routed=True)


def changed(old: Object | None, new: Node) -> bool:
    """Whether what blocked a network may block it no more."""
    if not isinstance(old, Node):
        return False
    before, now = old.description, new.description
    return (before.networks, before.routes) != (now.networks, now.routes)


def _ranges(texts: Iterable[str]) -> Iterator[ipaddress.IPv4Network]:
    for text, _ in zip(texts, range(RANGES_MAX), strict=False):
        try:
            found = ipaddress.IPv4Network(text, strict=False)
        except ValueError:
            continue
        if found.prefixlen:
            yield found
