"""No address, port, VNI or index is ever given twice, whatever comes and goes, whoever leads."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from common.model.network import Network
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.allocator.allocator import Allocator
from manager.allocator.ipam import Addresses, SubnetPool, mac
from manager.allocator.rotation import Rotation
from manager.store.store import Store, Tx
from tests.support import build
from tests.support.loops import Loops
from tests.support.memory_proposer import memory_store

NETWORKS = ("small", "pooled", "overlapping")
step = st.one_of(
    st.tuples(st.just("put task"), st.integers(0, 9)),
    st.tuples(st.just("put task"), st.integers(0, 9)),
    st.tuples(st.just("end task"), st.integers(0, 9)),
    st.tuples(st.just("delete task"), st.integers(0, 9)),
    st.tuples(st.just("put service"), st.integers(0, 3)),
    st.tuples(st.just("delete service"), st.integers(0, 3)),
    st.tuples(st.just("change service"), st.integers(0, 3)),
    st.tuples(st.just("put network"), st.integers(0, 2)),
    st.tuples(st.just("delete network"), st.integers(0, 2)),
    st.tuples(st.just("put node"), st.integers(0, 2)),
    st.tuples(st.just("delete node"), st.integers(0, 2)),
    st.tuples(st.just("new leader"), st.just(0)),
)


def wanted_network(number: int) -> Network:
    subnets = {0: ["10.0.0.0/29"], 1: [], 2: ["10.0.0.0/16"]}[number]
    return build.network(NETWORKS[number], subnets=subnets)


def wanted_service(number: int, variant: int = 0) -> Service:
    return build.service(
        f"s{number}",
        networks=NETWORKS[: (number + variant) % 3],
        ports=[build.port(80, 8080 if number == 3 else 0), build.port(81 + variant)],
    )


def write(tx: Tx, what: str, number: int) -> None:
    """One step of churn, as API, orchestrator and dispatcher would take it."""
    match what:
        case "put task":
            service = tx.get(Service, f"service-s{number % 4}")
            if service is not None and tx.get(Task, f"t{number}") is None:
                tx.put(build.task(service, id=f"t{number}"))
        case "end task":
            task = tx.get(Task, f"t{number}")
            if task is not None:
                tx.put(replace(task, status=replace(task.status, state=TaskState.FAILED)))
        case "delete task":
            tx.delete(Task, f"t{number}")
        case "put service":
            if tx.get(Service, f"service-s{number}") is None:
                tx.put(wanted_service(number))
        case "delete service":
            tx.delete(Service, f"service-s{number}")
        case "change service":
            service = tx.get(Service, f"service-s{number}")
            if service is not None:
                tx.put(replace(service, spec=wanted_service(number, variant=1).spec))
        case "put network":
            if tx.get(Network, f"network-{NETWORKS[number]}") is None:
                tx.put(wanted_network(number))
        case "delete network":
            in_use = f"network-{NETWORKS[number]}"
            if not tx.find(Task, network_id=in_use) and not tx.find(
                Service, network=NETWORKS[number]
            ):
                tx.delete(Network, in_use)
        case "put node":
            if tx.get(Node, f"n{number}") is None:
                tx.put(build.node(f"n{number}"))
        case "delete node":
            tx.delete(Node, f"n{number}")


def check_nothing_twice(store: Store) -> None:
    view = store.view()
    given = Counter[object]()
    for task in view.find(Task):
        for attachment in task.networks_attachments:
            if task.status.state <= TaskState.RUNNING:
                given.update((attachment.network_id, each) for each in attachment.addresses)
                given[(attachment.network_id, attachment.mac)] += 1
    for service in view.find(Service):
        given.update((vip.network_id, vip.addr) for vip in service.endpoint.virtual_ips)
        given.update((port.protocol, port.published_port) for port in service.endpoint.ports)
    given.update(("vni", network.vni) for network in view.find(Network) if network.vni)
    given.update(("index", node.index) for node in view.find(Node) if node.index)
    twice = [what for what, count in given.items() if count > 1]
    assert not twice


def check_everything_served(store: Store) -> None:
    """What is still NEW says why."""
    for task in store.view().find(Task):
        if task.status.state is TaskState.NEW:
            assert task.status.err


@settings(max_examples=150)
@given(st.lists(step, min_size=10, max_size=40))
def test_nothing_is_given_twice(steps: list[tuple[str, int]]) -> None:
    """ALL 126, 131, 134."""

    async def churn() -> None:
        store = memory_store()
        loops = Loops(store, Allocator())
        for number in range(3):
            await store.update(lambda tx, n=number: write(tx, "put network", n))
            await store.update(lambda tx, n=number: write(tx, "put service", n))
        await loops.settle()
        for what, number in steps:
            if what == "new leader":
                loops = Loops(store, Allocator())
            else:
                await store.update(lambda tx, w=what, n=number: write(tx, w, n))
            await loops.settle()
            check_nothing_twice(store)
        check_everything_served(store)
        await check_a_new_leader_agrees(store)

    asyncio.run(churn())


async def check_a_new_leader_agrees(store: Store) -> None:
    """Restoring finds nothing to do that watching all along had left undone.

    A reason may be worded anew: of several that stand in the way, one is named.
    """
    before = everything_given(store)
    await Loops(store, Allocator()).settle()
    assert everything_given(store) == before


def everything_given(store: Store) -> list[object]:
    view = store.view()
    return [
        [(node.id, node.index) for node in view.find(Node)],
        [(network.id, network.vni, network.ipam) for network in view.find(Network)],
        [(service.id, service.endpoint) for service in view.find(Service)],
        [(task.id, task.status.state, task.networks_attachments) for task in view.find(Task)],
    ]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_a_rotation_gives_every_number_once(steps: list[tuple[bool, int]]) -> None:
    rotation, mine = Rotation(3, 9), set[int]()
    for take, number in steps:
        if take:
            given_out = rotation.take()
            assert (given_out is None) == (len(mine & set(range(3, 10))) == 7)
            if given_out is not None:
                assert given_out not in mine
                mine.add(given_out)
        elif number in mine:
            rotation.release(number)
            mine.discard(number)
        else:
            rotation.claim(number)
            mine.add(number)
        assert rotation.used == len(mine & set(range(3, 10)))


@given(
    st.sampled_from(["10.0.0.0/22", "10.0.0.0/24"]),
    st.lists(st.integers(0, 3), max_size=4, unique=True),
)
def test_the_pool_gives_out_all_that_is_free_and_no_more(pool: str, reserved: list[int]) -> None:
    subnets = SubnetPool([pool], 24, [f"10.0.{number}.128/25" for number in reserved])
    free = {"10.0.0.0/22": 4, "10.0.0.0/24": 1}[pool]
    free -= sum(number < free for number in reserved)
    got = [subnets.take(f"n{number}") for number in range(free)]
    assert len(set(got)) == free
    assert not any(int(subnet.network_address) >> 8 & 255 in reserved for subnet in got)
    try:
        more = subnets.take("more")
    except ValueError:
        more = None
    assert more is None


def test_macs_follow_addresses() -> None:
    config = replace(build.network().ipam, config=()).config
    assert Addresses(config).take("x") is None
    assert mac("10.1.2.255/24") == "02:42:0a:01:02:ff"
