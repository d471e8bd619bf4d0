"""DNS on the wire and what names mean."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.protocol.network import (
    NetworkChange,
    OverlayEndpoint,
    OverlayNetwork,
    ServiceEntry,
    Subnet,
)
from worker.network import dnswire, names
from worker.network.dnswire import AAAA, PTR, A, Malformed
from worker.network.names import Answer, Scope
from worker.network.table import Table
from worker.network.upstream import parse_resolv_conf


def query(name: str = "web", kind: int = A, edns: int = 0) -> dnswire.Query:
    data = dnswire.make_query(7, name, kind)
    if edns:
        data = data[:10] + b"\0\1" + data[12:] + b"\0\0\x29" + edns.to_bytes(2, "big") + bytes(6)
    return dnswire.parse(data)


def test_a_question_is_read_whatever_its_case() -> None:
    found = query("WEB.Blue")
    assert (found.name, found.kind, found.identity, found.udp_size) == ("web.blue", A, 7, 0)
    assert query(edns=4096).udp_size == 4096


def test_an_answer_repeats_the_question_and_number() -> None:
    data = dnswire.answer(query(), [b"\x0a\0\1\2"], 2)
    found = dnswire.parse_answer(data)
    assert found == dnswire.Answer(7, 0, False, (b"\x0a\0\1\2",), 2)


def test_what_does_not_fit_a_datagram_is_truncated_but_not_over_tcp() -> None:
    records = [number.to_bytes(4, "big") for number in range(200)]
    short = dnswire.parse_answer(dnswire.answer(query(), records, 2))
    assert short.truncated
    assert 0 < len(short.records) < 40
    assert len(dnswire.answer(query(), records, 2)) <= 512
    assert len(dnswire.answer(query(edns=4096), records, 2)) <= 1232
    whole = dnswire.parse_answer(dnswire.answer(query(), records, 2, stream=True))
    assert not whole.truncated
    assert len(whole.records) == 200


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", None),
        (b"\0\7\x80\0\0\1\0\0\0\0\0\0\0\0\1\0\1", None),  # an answer
        (b"\0\7\x28\0\0\1\0\0\0\0\0\0\0\0\1\0\1", dnswire.NOTIMP),  # an update
        (b"\0\7\1\0\0\2\0\0\0\0\0\0\0\0\1\0\1", dnswire.FORMERR),  # two questions
        (b"\0\7\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", dnswire.FORMERR),  # a pointer to itself
        (b"\0\7\1\0\0\1\0\0\0\0\0\0\x3fabc", dnswire.FORMERR),  # cut off
        (b"\0\7\1\0\0\1\0\0\0\0\0\0\0\0\1\0\3", dnswire.NOTIMP),  # class chaos
    ],
)
def test_bad_questions_are_refused_or_ignored(data: bytes, code: int | None) -> None:
    with pytest.raises(Malformed) as caught:
        dnswire.parse(data)
    reply = dnswire.refuse_malformed(caught.value)
    assert (reply is None) == (code is None)
    if reply is not None:
        assert reply[:2] == b"\0\7"
        assert reply[3] & 15 == code


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        dnswire.parse(b"\0\7\1\0\0\1\0\0\0\0\0\1" + data)


def task(name: str, address: str, network: str, active: bool, service: str) -> OverlayEndpoint:
    return OverlayEndpoint(
        task_id=f"id-{name}",
        network_id=network,
        node_id="n",
        address=address,
        mac="",
        task_name=name,
        service_id=service,
        aliases=(f"{name}-alias",),
        active=active,
    )


@pytest.fixture
def table() -> Table:
    found = Table()
    found.apply(
        NetworkChange(
            puts=(
                ServiceEntry(service_id="a", name="Web", vips={"blue": "10.0.1.2"}),
                ServiceEntry(service_id="b", name="rr", aliases={"red": ("round",)}),
                task("web.1", "10.0.1.5", "blue", True, "a"),
                task("web.2", "10.0.1.6", "blue", False, "a"),
                task("rr.1", "10.0.2.5", "red", True, "b"),
                task("rr.2", "10.0.2.6", "red", True, "b"),
            )
        )
    )
    return found


BLUE, RED = Scope("blue", "Blue"), Scope("red", "Red")


def ask(table: Table, scopes: list[Scope], name: str, kind: int = A) -> list[str] | None:
    found = names.resolve(table, scopes, name, kind, random.Random(1))
    if found is None:
        return None
    assert found.code == 0
    return sorted(".".join(map(str, record)) for record in found.records)


def test_names_of_the_sandboxs_networks_only(table: Table) -> None:
    both = [BLUE, RED]
    assert ask(table, both, "web") == ["10.0.1.2"]
    assert ask(table, both, "tasks.web") == ["10.0.1.5"]
    assert ask(table, both, "rr") == ["10.0.2.5", "10.0.2.6"]
    assert ask(table, both, "round") == ["10.0.2.5", "10.0.2.6"]
    assert ask(table, both, "rr.1") == ["10.0.2.5"]
    assert ask(table, both, "rr.1-alias") == ["10.0.2.5"]
    assert ask(table, both, "web.blue") == ["10.0.1.2"]
    assert ask(table, [RED], "web") is None
    assert ask(table, [BLUE], "rr") is None
    assert ask(table, [], "web") is None


def test_a_task_that_is_not_active_has_no_name(table: Table) -> None:
    """And nobody else is asked for it: an address that has stopped never comes back that way."""
    nobody = Answer(dnswire.NXDOMAIN)
    for name in ("web.2", "WEB.2-alias", "web.2.blue"):
        for kind in (A, AAAA):
            found = names.resolve(table, [RED, BLUE], name.lower(), kind, random.Random(1))
            assert found == nobody, name
    subnets = (Subnet(subnet="10.0.1.0/24", gateway="10.0.1.1"),)
    table.apply(
        NetworkChange(puts=(OverlayNetwork(id="blue", name="Blue", vni=1, subnets=subnets),))
    )
    for pointer in ("6.1.0.10.in-addr.arpa", "99.1.0.10.in-addr.arpa"):
        assert names.resolve(table, [BLUE], pointer, PTR, random.Random(1)) == nobody
    assert names.resolve(table, [BLUE], "1.2.0.192.in-addr.arpa", PTR, random.Random(1)) is None


def test_a_known_name_has_no_other_records(table: Table) -> None:
    """So that nobody asks the outside world for the AAAA of one of our services."""
    assert ask(table, [BLUE], "web", AAAA) == []


def test_addresses_have_names(table: Table) -> None:
    def pointer(address: str) -> Answer | None:
        name = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
        return names.resolve(table, [BLUE], name, PTR, random.Random(1))

    assert pointer("10.0.1.2") == Answer(0, (dnswire.encode_name("Web.Blue"),))
    assert pointer("10.0.1.5") == Answer(0, (dnswire.encode_name("web.1.Blue"),))
    assert pointer("10.0.2.5") is None


def test_the_machines_settings() -> None:
    text = "# x\nnameserver 192.0.2.1\nnameserver fe80::1\nnameserver host\n"
    text += "search a.test b.test\noptions x\n"
    assert parse_resolv_conf(text) == (("192.0.2.1",), ("a.test", "b.test"))
