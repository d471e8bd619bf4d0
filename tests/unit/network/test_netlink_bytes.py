"""Messages as bytes. Layouts after linux/netlink.h, rtnetlink.h and nf_tables.h."""

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from worker.network import balancer
from worker.network.netlink import codec, conntrack, nft, rtnl
from worker.network.netlink.codec import Message, Value, attribute


def test_attributes_are_padded_and_nested_ones_marked() -> None:
    assert codec.attribute(3, b"abc") == bytes.fromhex("0700 0300 616263 00".replace(" ", ""))
    inner = bytes.fromhex("0500010001000000")
    assert codec.attribute(2, {1: b"\1"}) == struct.pack("=HH", 12, 0x8002) + inner


def test_a_message_survives_encoding_and_decoding() -> None:
    message = Message(16, 5, b"12345")
    data = codec.encode(message, 7) + codec.encode(Message(20, 1, b""), 8)
    assert len(data) % 4 == 0
    assert list(codec.decode(data)) == [message._replace(sequence=7), Message(20, 1, b"", 8)]


def test_a_torn_datagram_is_refused() -> None:
    data = codec.encode(Message(16, 5, b"12345678"), 7)
    with pytest.raises(ValueError, match="netlink message"):
        list(codec.decode(data[:20]))


def test_a_refusal_is_read_with_the_kernels_words() -> None:
    body = struct.pack("=i", -22) + struct.pack("=IHHII", 40, 16, 5, 9, 0)
    body += codec.attribute(1, b"no such thing\0")
    flags = codec.NLM_F_CAPPED | codec.NLM_F_ACK_TLVS
    found = codec.failure(Message(codec.NLMSG_ERROR, flags, body, 9))
    assert found == codec.Failure(9, 22, "no such thing")


def test_an_address_request_as_ip_sends_it() -> None:
    """ip address replace 10.192.4.1/22 broadcast + dev 5"""
    found = rtnl.add_address(5, IPv4Interface("10.192.4.1/22"))
    assert found.kind == 20
    assert found.body == bytes.fromhex(
        "02160000 05000000"  # family, length, flags, scope, link
        "08000200 0ac00401"  # local
        "08000100 0ac00401"  # address
        "08000400 0ac007ff"  # broadcast
    )


def test_a_neighbour_request_as_bridge_sends_it() -> None:
    """bridge fdb replace 02:42:0a:00:01:05 dev 11 self master static dst 10.77.0.2"""
    found = rtnl.vtep(11, "02:42:0a:00:01:05", "10.77.0.2", bridged=True)
    assert found.kind == 28
    assert found.body == bytes.fromhex(
        "07000000 0b000000 4200 06 00"  # AF_BRIDGE, link, NOARP|REACHABLE, self|master
        "0a000200 02420a000105 0000"
        "08000100 0a4d0002"
    )


def test_a_route_to_a_far_gateway_is_onlink() -> None:
    found = rtnl.route(IPv4Network("10.192.8.0/22"), 4, IPv4Address("10.192.8.1"), table=20002)
    assert found.body[:12] == bytes.fromhex("02160000 fc040001 04000000")
    attributes = codec.parse(found.body, 12)
    assert attributes[15] == struct.pack("=I", 20002)
    assert attributes[5] == IPv4Address("10.192.8.1").packed


@pytest.mark.parametrize("text", ["", "02:42", "zz:42:0a:00:01:05", "02:42:0a:00:01:05:06"])
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MAC|hex"):
        rtnl.mac_bytes(text)


def test_elements_are_cut_into_messages_that_fit_an_attribute() -> None:
    elements = [nft.Element(struct.pack("=I", i), b"data") for i in range(1000)]
    messages = nft.add_elements("t", "m", elements)
    assert len(messages) == 3
    assert all(len(message.body) < 1 << 16 for message in messages)


def test_a_concatenated_key_has_the_kernels_flag_and_whole_registers() -> None:
    """Without NFT_SET_CONCAT and the fields' lengths the kernel refuses the map."""
    found = nft.add_map("t", "m", [(nft.PROTOCOL, 1), (nft.SERVICE, 2)], [(nft.MARK, 4)])
    attributes = codec.parse(found.body, 4)
    assert attributes[3] == codec.be32(0x88)
    assert attributes[4] == codec.be32(12 << 6 | 13)
    assert attributes[5] == codec.be32(8)
    assert 9 in attributes


def test_flows_are_named_by_the_backend_that_answers() -> None:
    udp = codec.parse(conntrack.forget(IPv4Address("10.0.1.5"), conntrack.UDP).body, 4)
    every = codec.parse(conntrack.forget(IPv4Address("10.0.1.5")).body, 4)
    assert IPv4Address("10.0.1.5").packed in udp[2]
    assert codec.parse(udp[25])[2] == struct.pack("=I", 0b1001)
    assert codec.parse(every[25])[2] == struct.pack("=I", 0b0001)


@pytest.mark.parametrize("key", [b"1234", b"123456", b"12345678", b"123456789012"])
@pytest.mark.parametrize("data", [b"abcd", b"abcdef", b"abcdefgh", None])
def test_an_element_packed_at_once_is_what_the_codec_makes_of_it(
    key: bytes, data: bytes | None
) -> None:
    slow: dict[int, Value] = {1: {1: key}}
    if data is not None:
        slow[2] = {1: data}
    (message,) = nft.add_elements("t", "m", [nft.Element(key, data)])
    assert message.body.endswith(attribute(3 | 0x8000, attribute(1, slow)))


def test_no_element_of_a_group_holds_a_verdict() -> None:
    """The kernel would walk the whole map at each change, to look for loops."""
    edits = balancer.plan(balancer.address_key("10.0.0.2"), None, {b"1234", b"5678"})[1]
    edits += balancer.plan(balancer.address_key("10.0.0.3"), None, ())[1]
    for message in balancer.messages("t", edits):
        assert b"n2\0" not in message.body
        assert b"rej\0" not in message.body
