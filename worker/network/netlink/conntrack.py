"""ctnetlink requests: how many flows a namespace tracks, and forgetting those to one backend.

Numbers are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import struct
from ipaddress import IPv4Address

from worker.network.netlink.channel import Channel
from worker.network.netlink.codec import NLM_F_REQUEST, Message, Value, attributes, parse, u8, u32

_CTNETLINK = 1 << 8
_DELETE = _CTNETLINK | 2
_GET_STATS = _CTNETLINK | 5
_IPV4 = 2

_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = 1
_PROTO_NUMBER = 1
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_BY_SOURCE, _BY_PROTOCOL = 1 << 0, 1 << 3
UDP = 17


def forget(backend: IPv4Address, protocol: int = 0) -> Message:
    """conntrack -D --reply-src BACKEND [--proto PROTOCOL]; ENOENT never, also if there is none."""
    reply: dict[int, Value] = {_TUPLE_IP: {_IP_SOURCE: backend.packed}}
    flags = _BY_SOURCE
    if protocol:
        reply[_TUPLE_PROTO] = {_PROTO_NUMBER: u8(protocol)}
        flags |= _BY_PROTOCOL
    values: dict[int, Value] = {
        _TUPLE_REPLY: reply,
        _FILTER: {_FILTER_ORIG_FLAGS: u32(0), _FILTER_REPLY_FLAGS: u32(flags)},
    }
    body = struct.pack("!BBH", _IPV4, 0, 0) + attributes(values)
    return Message(_DELETE, NLM_F_REQUEST, body)


def count(channel: Channel) -> int:
    """Flows tracked in the channel's namespace."""
    answer = channel.ask(Message(_GET_STATS, NLM_F_REQUEST, struct.pack("!BBH", 0, 0, 0)))
    data = parse(answer.body, 4).get(1, b"")
    return int.from_bytes(data, "big")
