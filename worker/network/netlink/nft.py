"""nf_tables requests as messages: tables, chains, rules, maps and their elements.

Only what our tables need, for family ip. Numbers are those of linux/netfilter/nf_tables.h. A list
of messages goes to the kernel as one transaction (`transaction`).
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from worker.network.netlink.channel import Channel
from worker.network.netlink.codec import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Message,
    Value,
    attribute,
    attributes,
    be32,
    parse,
    parse_list,
    text,
)

_NFTABLES = 10 << 8
_NEWTABLE, _DELTABLE = _NFTABLES | 0, _NFTABLES | 2
_NEWCHAIN, _NEWRULE = _NFTABLES | 3, _NFTABLES | 6
_NEWSET, _NEWSETELEM, _DELSETELEM = _NFTABLES | 9, _NFTABLES | 12, _NFTABLES | 14
_GETSETELEM, _GETTABLE, _GETRULE = _NFTABLES | 13, _NFTABLES | 1, _NFTABLES | 7
_GETGEN = _NFTABLES | 16
_GETCHAIN = _NFTABLES | 4
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_IPV4 = 2

ACCEPT, DROP, GOTO = 1, 0, -4
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
RAW, MANGLE, DSTNAT, OUTNAT, FILTER, SRCNAT = -300, -150, -100, -100, 0, 100

# Types of keys and data, as `nft` shows them; `concat` joins them.
VERDICT, IPV4_ADDR, ETHER_ADDR, PROTOCOL, SERVICE, MARK = 0xFFFFFF00, 7, 9, 12, 13, 19
IFNAME = 41

_SET_MAP, _SET_CONCAT = 0x8, 0x80
_VERDICT_REGISTER = 0
_REGISTER = 8  # the first of sixteen 4-byte registers
_ELEMENTS_A_MESSAGE = 400  # an attribute holds 64 KiB


class Element(NamedTuple):
    """An element of a map. `data` is bytes, or the chain to go to; None in a set."""

    key: bytes
    data: bytes | str | None


def concat(*types: int) -> int:
    number = 0
    for kind in types:
        number = number << 6 | kind
    return number


def _message(kind: int, flags: int, values: dict[int, Value], family: int = _IPV4) -> Message:
    body = struct.pack("!BBH", family, 0, 0) + attributes(values)
    return Message(kind, NLM_F_REQUEST | flags, body)


def transaction(channel: Channel, messages: Sequence[Message]) -> None:
    """All of `messages` or none of them. Raises NetlinkError."""
    begin = Message(_BATCH_BEGIN, NLM_F_REQUEST, struct.pack("!BBH", 0, 0, 10))
    end = Message(_BATCH_END, NLM_F_REQUEST, struct.pack("!BBH", 0, 0, 10))
    channel.transact(begin, messages, end)


def add_table(table: str) -> Message:
    """add table ip TABLE"""
    return _message(_NEWTABLE, NLM_F_CREATE, {1: text(table)})


def delete_table(table: str) -> Message:
    """delete table ip TABLE"""
    return _message(_DELTABLE, 0, {1: text(table)})


def fresh_table(table: str) -> list[Message]:
    """Table TABLE, empty, whether or not it is there now."""
    return [add_table(table), delete_table(table), add_table(table)]


def add_chain(table: str, chain: str) -> Message:
    """add chain ip TABLE CHAIN"""
    return _message(_NEWCHAIN, NLM_F_CREATE, {1: text(table), 3: text(chain)})


def add_base_chain(table: str, chain: str, kind: str, hook: int, priority: int) -> Message:
    """add chain ip TABLE CHAIN { type KIND hook HOOK priority PRIORITY; policy accept; }"""
    values: dict[int, Value] = {
        1: text(table),
        3: text(chain),
        4: {1: be32(hook), 2: be32(priority)},
        5: be32(ACCEPT),
        7: text(kind),
    }
    return _message(_NEWCHAIN, NLM_F_CREATE, values)


def add_map(
    table: str, name: str, key: Sequence[tuple[int, int]], data: Sequence[tuple[int, int]]
) -> Message:
    """add map ip TABLE NAME { type KEY : DATA; }

    `key` and `data` are (type, length in bytes) of each field. Concatenated fields take whole
    registers.
    """
    more = {6: be32(concat(*(kind for kind, _ in data))), 7: be32(_width(data))}
    return _new_set(table, name, key, _SET_MAP, more)


def add_set(table: str, name: str, key: Sequence[tuple[int, int]]) -> Message:
    """add set ip TABLE NAME { type KEY; }"""
    return _new_set(table, name, key, 0, {})


def _new_set(
    table: str, name: str, key: Sequence[tuple[int, int]], flags: int, more: dict[int, bytes]
) -> Message:
    """The kernel wants a number for each new set, unique in the transaction."""
    joined = len(key) > 1
    values: dict[int, Value] = {
        1: text(table),
        2: text(name),
        3: be32(flags | (_SET_CONCAT if joined else 0)),
        4: be32(concat(*(kind for kind, _ in key))),
        5: be32(_width(key)),
        **more,
    }
    if joined:
        fields = [(1, {1: be32(length)}) for _, length in key]
        values[9] = {2: fields}
    values[10] = be32(zlib.crc32(name.encode()))
    return _message(_NEWSET, NLM_F_CREATE, values)


def _width(fields: Sequence[tuple[int, int]]) -> int:
    if len(fields) == 1:
        return fields[0][1]
    return sum((length + 3) & ~3 for _, length in fields)


def _data(data: bytes | str) -> Value:
    if isinstance(data, bytes):
        return {1: data}
    return {2: {1: be32(GOTO), 2: text(data)}}


def _element(key: bytes, data: bytes | str | None) -> bytes:
    """attribute(1, {1: {1: key}, 2: data}), which is needed by the ten thousands, more quickly."""
    if isinstance(data, str):
        return attribute(1, {1: {1: key}, 2: _data(data)})
    head, middle, end = _frame(len(key), -1 if data is None else len(data))
    return head + key + middle + (data or b"") + end


@cache
def _frame(key: int, data: int) -> tuple[bytes, bytes, bytes]:
    """What stands before, between and after key and data of these lengths (-1: no data)."""
    values: dict[int, Value] = {1: {1: bytes(key)}}
    if data >= 0:
        values[2] = {1: bytes(data)}
    whole = attribute(1, values)
    start = 12  # three headers: of the element, of its key, of the value
    stop = start + key
    if data < 0:
        return whole[:start], whole[stop:], b""
    second = start + ((key + 3) & ~3) + 8
    return whole[:start], whole[stop:second], whole[second + data :]


def _elements(kind: int, flags: int, table: str, name: str, parts: list[bytes]) -> list[Message]:
    messages = []
    for start in range(0, len(parts), _ELEMENTS_A_MESSAGE):
        listed = b"".join(parts[start : start + _ELEMENTS_A_MESSAGE])
        head = {1: text(table), 2: text(name)}
        body = struct.pack("!BBH", _IPV4, 0, 0) + attributes(head)
        nested = attribute(3 | 0x8000, listed)
        messages.append(Message(kind, NLM_F_REQUEST | flags, body + nested))
    return messages


def add_elements(table: str, name: str, elements: Iterable[Element]) -> list[Message]:
    """add element ip TABLE NAME { KEY : DATA, … }"""
    parts = [_element(item.key, item.data) for item in elements]
    return _elements(_NEWSETELEM, NLM_F_CREATE, table, name, parts)


def delete_elements(table: str, name: str, keys: Iterable[bytes]) -> list[Message]:
    """delete element ip TABLE NAME { KEY, … }"""
    parts = [_element(key, None) for key in keys]
    return _elements(_DELSETELEM, 0, table, name, parts)


def add_rule(table: str, chain: str, *expressions: bytes) -> Message:
    """add rule ip TABLE CHAIN EXPRESSIONS"""
    body = struct.pack("!BBH", _IPV4, 0, 0) + attributes({1: text(table), 2: text(chain)})
    nested = attribute(4 | 0x8000, b"".join(expressions))
    return Message(_NEWRULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND, body + nested)


def get_elements(table: str, name: str) -> Message:
    """list map ip TABLE NAME (dump)"""
    return _message(_GETSETELEM, 0, {1: text(table), 2: text(name)})


def get_tables() -> Message:
    """list tables ip (dump)"""
    return _message(_GETTABLE, 0, {})


def get_rules(table: str) -> Message:
    """list table ip TABLE: its rules (dump)"""
    return _message(_GETRULE, 0, {1: text(table)})


def is_rule(request: Message) -> bool:
    """Whether `request` adds a rule."""
    return request.kind == _NEWRULE


def generation(channel: Channel) -> int:
    """The number of the ruleset of the channel's namespace: each transaction adds one to it."""
    answer = channel.ask(Message(_GETGEN, NLM_F_REQUEST, struct.pack("!BBH", 0, 0, 0)))
    return int.from_bytes(parse(answer.body, 4).get(1, b""), "big")


class BaseChain(NamedTuple):
    """A chain that hooks into the packets' way. `policy` is DROP or ACCEPT."""

    family: int
    table: str
    name: str
    hook: int
    policy: int


def base_chains(channel: Channel) -> list[BaseChain]:
    """list chains: those of all families that have a hook."""
    found = []
    for answer in channel.dump(_message(_GETCHAIN, 0, {}, family=0)):
        values = parse(answer.body, 4)
        hook = parse(values.get(4, b"")).get(1)
        if hook is not None:
            policy = int.from_bytes(values.get(5, be32(ACCEPT)), "big")
            table, name = (values[kind].rstrip(b"\0").decode() for kind in (1, 3))
            number = int.from_bytes(hook, "big")
            found.append(BaseChain(answer.body[0], table, name, number, policy))
    return found


def parse_elements(answers: Iterable[Message]) -> dict[bytes, bytes | str]:
    """What a dump of a map's elements says: key -> data, or the chain to go to."""
    found: dict[bytes, bytes | str] = {}
    for answer in answers:
        for element in parse_list(parse(answer.body, 4).get(3, b"")):
            parts = parse(element)
            key, data = parse(parts.get(1, b"")), parse(parts.get(2, b""))
            if 2 in data:
                chain = parse(data[2]).get(2, b"").rstrip(b"\0").decode(errors="replace")
                found[key.get(1, b"")] = chain
            else:
                found[key.get(1, b"")] = data.get(1, b"")
    return found


# Expressions. Registers are counted from 0 in steps of four bytes.


def _expression(name: str, values: dict[int, Value]) -> bytes:
    return attribute(1, {1: text(name), 2: values})


def _payload(base: int, offset: int, length: int, register: int) -> bytes:
    return _expression(
        "payload",
        {1: be32(_REGISTER + register), 2: be32(base), 3: be32(offset), 4: be32(length)},
    )


def ip_destination(register: int) -> bytes:
    """ip daddr"""
    return _payload(1, 16, 4, register)


def ip_source(register: int) -> bytes:
    """ip saddr"""
    return _payload(1, 12, 4, register)


def ether_source(register: int) -> bytes:
    """ether saddr"""
    return _payload(0, 6, 6, register)


def port(register: int) -> bytes:
    """th dport"""
    return _payload(2, 2, 2, register)


def meta(key: int, register: int) -> bytes:
    return _expression("meta", {1: be32(_REGISTER + register), 2: be32(key)})


def protocol(register: int) -> bytes:
    """meta l4proto"""
    return meta(16, register)


def incoming(name: str, unequal: bool = False) -> list[bytes]:
    """iifname [!=] NAME"""
    return [meta(6, 0), compare(0, name.encode().ljust(16, b"\0"), unequal)]


def outgoing(name: str, unequal: bool = False) -> list[bytes]:
    """oifname [!=] NAME"""
    return [meta(7, 0), compare(0, name.encode().ljust(16, b"\0"), unequal)]


def set_mark(register: int) -> bytes:
    """meta mark set"""
    return _expression("meta", {2: be32(3), 3: be32(_REGISTER + register)})


PRIORITY = 2


def set_priority(register: int) -> bytes:
    """meta priority set"""
    return _expression("meta", {2: be32(PRIORITY), 3: be32(_REGISTER + register)})


def compare(register: int, value: bytes, unequal: bool = False) -> bytes:
    return _expression("cmp", {1: be32(_REGISTER + register), 2: be32(int(unequal)), 3: {1: value}})


def mask(register: int, bits: bytes) -> bytes:
    """& BITS"""
    place = be32(_REGISTER + register)
    empty = bytes(len(bits))
    return _expression(
        "bitwise", {1: place, 2: place, 3: be32(len(bits)), 4: {1: bits}, 5: {1: empty}}
    )


def load(register: int, value: bytes) -> bytes:
    """A constant into a register."""
    return _expression("immediate", {1: be32(_REGISTER + register), 2: {1: value}})


def verdict(code: int) -> bytes:
    """accept, drop"""
    return _expression("immediate", {1: be32(_VERDICT_REGISTER), 2: {2: {1: be32(code)}}})


def goto(chain: str) -> bytes:
    """goto CHAIN"""
    return _expression("immediate", {1: be32(_VERDICT_REGISTER), 2: _data(chain)})


def lookup(name: str, register: int, result: int) -> bytes:
    """map @NAME: from `register` on, into `result` on"""
    return _expression(
        "lookup", {1: text(name), 2: be32(_REGISTER + register), 3: be32(_REGISTER + result)}
    )


def lookup_set(name: str, register: int) -> bytes:
    """@NAME: the rule ends here unless it is in the set"""
    return _expression("lookup", {1: text(name), 2: be32(_REGISTER + register)})


def lookup_verdict(name: str, register: int) -> bytes:
    """vmap @NAME"""
    return _expression(
        "lookup", {1: text(name), 2: be32(_REGISTER + register), 3: be32(_VERDICT_REGISTER)}
    )


def random_number(register: int, modulus: int) -> bytes:
    """numgen random mod MODULUS; in host byte order"""
    return _expression("numgen", {1: be32(_REGISTER + register), 2: be32(modulus), 3: be32(1)})


def dnat(address: int, port_register: int | None = None) -> bytes:
    """dnat to the address, and port, in these registers"""
    return _nat(1, address, port_register)


def snat(address: int) -> bytes:
    """snat to the address in this register"""
    return _nat(0, address, None)


def _nat(kind: int, address: int, port_register: int | None) -> bytes:
    values: dict[int, Value] = {1: be32(kind), 2: be32(_IPV4), 3: be32(_REGISTER + address)}
    if port_register is not None:
        values[5] = be32(_REGISTER + port_register)
    return _expression("nat", values)


def notrack() -> bytes:
    """notrack"""
    return _expression("notrack", {})


def masquerade() -> bytes:
    """masquerade"""
    return _expression("masq", {})


def reset() -> bytes:
    """reject with tcp reset"""
    return _expression("reject", {1: be32(1), 2: b"\0"})


def unreachable() -> bytes:
    """reject with icmp type port-unreachable"""
    return _expression("reject", {1: be32(0), 2: b"\3"})


def fib_type(register: int, source: bool = False) -> bytes:
    """fib daddr|saddr type; in host byte order"""
    return _expression(
        "fib", {1: be32(_REGISTER + register), 2: be32(3), 3: be32(1 if source else 2)}
    )


def local(source: bool = False) -> list[bytes]:
    """fib daddr|saddr type local"""
    return [fib_type(0, source), compare(0, struct.pack("=I", 2))]


CT_STATE, CT_DIRECTION, CT_STATUS, CT_MARK = 0, 1, 2, 3


def ct(key: int, register: int) -> bytes:
    return _expression("ct", {1: be32(_REGISTER + register), 2: be32(key)})


def set_ct_mark(register: int) -> bytes:
    """ct mark set"""
    return _expression("ct", {2: be32(CT_MARK), 4: be32(_REGISTER + register)})


def ct_bit(key: int, bit: int) -> list[bytes]:
    """ct state new, ct status dnat and their like"""
    bits = struct.pack("=I", bit)
    return [ct(key, 0), mask(0, bits), compare(0, bytes(4), unequal=True)]


STATE_NEW = 8
STATUS_DNAT = 1 << 5
