"""What our codec writes, pyroute2's reads: two implementations of one format."""

import struct
from ipaddress import IPv4Address
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from worker.network.netlink import rtnl
from worker.network.netlink.codec import Message


def read(kind: Any, message: Message) -> Any:
    """`message` as pyroute2 decodes it."""
    head = struct.pack("=IHHII", 16 + len(message.body), message.kind, message.flags, 1, 0)
    decoded = kind(head + message.body)
    decoded.decode()
    return decoded


def test_a_vxlan() -> None:
    device = rtnl.add_vxlan("vx1", 4097, IPv4Address("192.0.2.1"), 4789, mtu=1450)
    link = read(ifinfmsg, device)
    assert link.get_attr("IFLA_IFNAME") == "vx1"
    assert link.get_attr("IFLA_MTU") == 1450
    info = link.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "vxlan"
    data = info.get_attr("IFLA_INFO_DATA")
    assert data.get_attr("IFLA_VXLAN_ID") == 4097
    assert data.get_attr("IFLA_VXLAN_LOCAL") == "192.0.2.1"
    assert data.get_attr("IFLA_VXLAN_PORT") == 4789
    assert data.get_attr("IFLA_VXLAN_LEARNING") == 0


def test_a_neighbour_and_a_forwarding_entry() -> None:
    mac = "02:42:0a:00:01:05"
    neighbour = read(ndmsg, rtnl.neighbour(7, "10.0.1.5", mac))
    assert neighbour["ifindex"] == 7
    assert neighbour.get_attr("NDA_DST") == "10.0.1.5"
    assert neighbour.get_attr("NDA_LLADDR") == mac
    entry = read(ndmsg, rtnl.vtep(7, mac, "192.0.2.2", bridged=False))
    assert entry.get_attr("NDA_DST") == "192.0.2.2"
    assert entry.get_attr("NDA_LLADDR") == mac
