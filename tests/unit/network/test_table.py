"""The endpoint table: what it answers, and what a change touches."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.protocol.network import (
    IngressBackend,
    NetworkChange,
    NetworkItem,
    OverlayEndpoint,
    Peer,
    PublishedPort,
    ServiceEntry,
    digest,
    key,
)
from worker.network.table import EVERYWHERE, Remote, Table


def endpoint(number: int, node: str = "n1", active: bool = True) -> OverlayEndpoint:
    return OverlayEndpoint(
        task_id=f"t{number}",
        network_id="net",
        node_id=node,
        address=f"10.0.1.{number}",
        mac=f"02:42:0a:00:01:{number:02x}",
        task_name=f"web.{number}",
        service_id="svc",
        active=active,
    )


WEB = ServiceEntry(
    service_id="svc",
    name="web",
    vips={"net": "10.0.1.2"},
    ports=(PublishedPort(protocol="tcp", published=80, target=8000),),
)
PEERS = tuple(Peer(node_id=f"n{i}", index=i, address=f"192.0.2.{i}") for i in (1, 2, 3))


def backend(number: int, active: bool = True) -> IngressBackend:
    return IngressBackend(
        task_id=f"t{number}",
        service_id="svc",
        node_id="n1",
        address=f"10.192.4.{number}",
        active=active,
    )


def test_remote_endpoints_are_those_of_other_nodes_whether_active_or_not() -> None:
    table = Table()
    table.apply(NetworkChange(puts=(*PEERS, endpoint(5), endpoint(6, "n2", active=False))))
    assert table.remotes("net", "n1") == {"10.0.1.6": Remote("02:42:0a:00:01:06", "192.0.2.2")}
    assert table.active("net", "svc") == ["10.0.1.5"]


def test_an_endpoint_of_an_unknown_node_waits_for_its_peer() -> None:
    table = Table()
    table.apply(NetworkChange(puts=(endpoint(5, "n3"),)))
    assert table.remotes("net", "n1") == {}
    assert table.apply(NetworkChange(puts=PEERS)).peers
    assert "10.0.1.5" in table.remotes("net", "n1")


def test_deactivating_touches_the_group_and_not_the_forwarding() -> None:
    table = Table()
    table.apply(NetworkChange(puts=(*PEERS, WEB, endpoint(5))))
    touched = table.apply(NetworkChange(puts=(endpoint(5, active=False),)))
    assert touched.groups == {("net", "svc")}
    assert touched.idle == {("net", "10.0.1.5")}
    assert not touched.networks
    assert not touched.gone
    touched = table.apply(NetworkChange(removes=(("endpoint", "net", "t5"),)))
    assert touched.gone == {("net", "10.0.1.5")}
    assert touched.networks == {"net"}


def test_what_is_put_again_touches_nothing() -> None:
    table = Table()
    items = (*PEERS, WEB, endpoint(5), backend(5))
    table.apply(NetworkChange(puts=items))
    assert (
        table.apply(NetworkChange(complete=True, puts=items))
        == type(table.apply(NetworkChange()))()
    )


def test_ports_lead_to_active_backends_and_vanish_with_their_service() -> None:
    table = Table()
    table.apply(NetworkChange(puts=(WEB, backend(5), backend(6, active=False))))
    assert table.published("svc") == {("tcp", 80): {("10.192.4.5", 8000)}}
    touched = table.apply(NetworkChange(removes=(("service", "svc"),)))
    assert touched.ports_gone == {("tcp", 80)}
    assert touched.vips_gone == {("net", "10.0.1.2")}
    assert table.published("svc") == {}


def test_a_port_that_another_service_takes_in_the_same_change_stays_its() -> None:
    table = Table()
    table.apply(NetworkChange(puts=(WEB, backend(5))))
    heir = msgspec.structs.replace(WEB, service_id="heir", vips={})
    change = NetworkChange(puts=(heir,), removes=(("service", "svc"),))
    touched = table.apply(change)
    assert "heir" in touched.published
    assert table.published("heir") == {("tcp", 80): set()}


items = st.one_of(
    st.builds(endpoint, st.integers(5, 9), st.sampled_from(["n1", "n2", "n3"]), st.booleans()),
    st.sampled_from(PEERS),
    st.builds(backend, st.integers(5, 9), st.booleans()),
    st.sampled_from([WEB, msgspec.structs.replace(WEB, vips={"net": "10.0.1.3"}, ports=())]),
)


@given(st.lists(st.tuples(st.booleans(), items), max_size=40))
def test_increments_lead_to_the_same_answers_as_one_complete_change(
    steps: list[tuple[bool, NetworkItem]],
) -> None:
    """Property: no index keeps anything of what is gone."""
    table, expected = Table(), dict[tuple[str, ...], NetworkItem]()
    for put, item in steps:
        if put:
            expected[key(item)] = item
            table.apply(NetworkChange(puts=(item,)))
        else:
            expected.pop(key(item), None)
            table.apply(NetworkChange(removes=(key(item),)))
    fresh = Table()
    fresh.apply(NetworkChange(complete=True, puts=tuple(expected.values())))
    assert table.digest() == fresh.digest() == digest(expected.values())
    for name in ("web", "web.5", "web.9"):
        assert table.named("net", name) == fresh.named("net", name)
    assert table.remotes("net", "n1") == fresh.remotes("net", "n1")
    assert table.active("net", "svc") == fresh.active("net", "svc")
    assert table.vips("net") == fresh.vips("net")
    assert table.published("svc") == fresh.published("svc")
    assert {*table._names} == {*fresh._names}
    assert {*table._endpoints} == {*fresh._endpoints}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table._names.clear(),
        lambda table: table._names[EVERYWHERE, "gone"].add(("service", "gone")),
        lambda table: table._addresses.popitem(),
        lambda table: table._members["net", "svc"].clear(),
        lambda table: table._members["net", "other"].update(x=endpoint(9)),
        lambda table: table._endpoints["net"].update(t5=endpoint(5, active=False)),
        lambda table: table._backends.clear(),
        lambda table: table._peers.update(n9=PEERS[0]),
        lambda table: table._services.clear(),
    ],
)
def test_an_index_that_is_not_as_the_items_are_is_found_and_made_anew(
    spoil: Callable[[Table], object],
) -> None:
    table = Table()
    table.apply(NetworkChange(puts=(*PEERS, WEB, endpoint(5), endpoint(6), backend(5))))
    assert table.differences() == []
    spoil(table)
    assert table.differences()
    table.index()
    assert table.differences() == []
