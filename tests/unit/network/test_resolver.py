"""The resolver of a sandbox: whatever comes in, one answer goes out, and none is older than the
table. Behaviours 251, 253 and 259, as far as names are concerned."""

import random
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.protocol.network import NetworkChange, OverlayEndpoint, ServiceEntry, key
from worker.network import dnswire
from worker.network.dnswire import AAAA, ANY, PTR, A
from worker.network.names import Scope
from worker.network.resolver import Resolver
from worker.network.table import Table

SCOPES = [Scope("blue", "Blue")]
LONG = "n" * 64  # a network's name that is no name in DNS


class NoUpstream:
    async def ask(self, *_: object, **__: object) -> bytes | None:
        raise AssertionError("nobody else is to be asked")


class Socket:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, asker: tuple[str, int]) -> None:
        self.sent.append(data)


def task(number: int, active: bool, service: str = "s") -> OverlayEndpoint:
    return OverlayEndpoint(
        task_id=f"t{number}",
        network_id="blue",
        node_id="n",
        address=f"10.0.1.{number}",
        mac="",
        task_name=f"web.{number}",
        service_id=service,
        aliases=("either",),
        active=active,
    )


WEB = ServiceEntry(service_id="s", name="web", vips={"blue": "10.0.1.2"})
ROUND = ServiceEntry(service_id="r", name="rr", aliases={"blue": ("rr",)})


def make(table: Table, scopes: list[Scope] = SCOPES) -> Resolver:
    return Resolver(table, scopes, NoUpstream(), (), random.Random(3))  # type: ignore[arg-type]


def ask(resolver: Resolver, question: bytes) -> list[bytes]:
    sock: Any = Socket()
    resolver._serve_datagram(sock, question, ("127.0.0.1", 5))
    found: list[bytes] = sock.sent
    return found


@pytest.fixture(scope="module")
def table() -> Table:
    found = Table()
    found.apply(NetworkChange(puts=(WEB, ROUND, task(10, True), task(11, False))))
    found.apply(NetworkChange(puts=tuple(task(number, True, "r") for number in range(100, 180))))
    return found


NAMES = (
    "web",
    "WEB.blue",
    "rr",
    "tasks.web",
    "web.10",
    "web.11",
    "either",
    "10.1.0.10.in-addr.arpa",
)


@given(
    st.sampled_from(NAMES),
    st.sampled_from([A, AAAA, ANY, PTR, 15, 33, 65]),
    st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), max_size=4),
    st.integers(0, 64),
    st.binary(max_size=24),
)
def test_hostile_datagrams_get_one_answer_that_can_be_read_or_none(
    table: Table, name: str, kind: int, flips: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    """A good question with some bytes changed, cut off and added to: no exception, no loop."""
    data = bytearray(dnswire.make_query(7, name, kind) + tail)
    for place, value in flips:
        if 12 <= place < len(data) or place in (2, 3, 10, 11):
            data[place % len(data)] = value
    question = bytes(data[: len(data) - cut]) if cut < len(data) else b""
    try:
        query = dnswire.parse(question)
    except dnswire.Malformed:
        assert len(ask(make(table), question)) <= 1
        return
    if names_of(table, query) is None:
        return  # somebody else's
    (answer,) = ask(make(table), question)
    assert dnswire.is_answer(answer, question)
    assert len(answer) <= max(512, query.udp_size)
    dnswire.parse_answer(answer)


def names_of(table: Table, query: dnswire.Query) -> bytes | None:
    return make(table)._own(query, stream=False)


def test_a_version_of_edns_that_does_not_exist_is_told_so(table: Table) -> None:
    question = dnswire.make_query(7, "web", A)
    edns = b"\0\0\x29\x10\0\0\1\0\0\0\0"  # version 1
    (answer,) = ask(make(table), question[:10] + b"\0\1" + question[12:] + edns)
    assert answer[3] & 15 == 0
    assert answer.endswith(b"\0\0\x29\x04\xd0\1\0\0\0\0\0")  # and 16 in the upper bits


def test_many_addresses_are_truncated_and_mixed(table: Table) -> None:
    resolver, question = make(table), dnswire.make_query(7, "rr", A)
    first, second = (dnswire.parse_answer(*ask(resolver, question)) for _ in range(2))
    assert first.truncated
    assert first.records != second.records
    assert first.ttl <= 2
    whole = resolver._own(dnswire.parse(question), stream=True)
    assert whole is not None
    assert len(set(dnswire.parse_answer(whole).records)) == 80


def test_a_network_whose_name_is_none_in_dns_has_no_pointers(table: Table) -> None:
    resolver = make(table, [Scope("blue", LONG), Scope("blue", "second")])
    (answer,) = ask(resolver, dnswire.make_query(7, "2.1.0.10.in-addr.arpa", PTR))
    assert b"second" in answer


ITEMS = st.one_of(
    st.builds(task, st.integers(10, 14), st.booleans(), st.sampled_from(["s", "r"])),
    st.sampled_from([WEB, ROUND]),
)


@given(st.lists(st.tuples(st.booleans(), ITEMS), max_size=30))
def test_answers_are_those_of_the_last_change_always(
    steps: list[tuple[bool, OverlayEndpoint | ServiceEntry]],
) -> None:
    """Behaviours 253 and 259: after each change exactly the active tasks have names."""
    table = Table()
    resolver = make(table)
    wanted: dict[tuple[str, ...], OverlayEndpoint | ServiceEntry] = {}
    for put, item in steps:
        if put:
            wanted[key(item)] = item
            table.apply(NetworkChange(puts=(item,)))
        else:
            wanted.pop(key(item), None)
            table.apply(NetworkChange(removes=(key(item),)))
        tasks = [entry for entry in wanted.values() if isinstance(entry, OverlayEndpoint)]
        assert table._is_sound()
        for service in (WEB, ROUND):
            if key(service) in wanted:
                active = [t for t in tasks if t.service_id == service.service_id and t.active]
                assert addresses(resolver, f"tasks.{service.name}") == {t.address for t in active}
        for entry in tasks:
            assert addresses(resolver, entry.task_name) == (
                {entry.address} if entry.active else set()
            )


def addresses(resolver: Resolver, name: str) -> set[str]:
    (answer,) = ask(resolver, dnswire.make_query(7, name, A))
    return {socket.inet_ntoa(record) for record in dnswire.parse_answer(answer).records}
