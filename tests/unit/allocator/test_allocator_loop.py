"""The allocator over a store: who gets what, who waits for what, and what a new leader finds."""

import ipaddress
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from common.model.base import Object
from common.model.network import Network
from common.model.node import Node
from common.model.service import EndpointSpec, Service
from common.model.task import Task, TaskState, TaskStatus
from manager.allocator.allocator import Allocator
from manager.store.store import Store
from tests.support import build
from tests.support.loops import Loops
from tests.support.memory_proposer import memory_store


class World:
    """A store and an allocator; `put` writes and lets the allocator settle."""

    def __init__(self) -> None:
        self.store: Store = memory_store()
        self.loops = Loops(self.store, Allocator())

    def new_leader(self) -> None:
        self.loops = Loops(self.store, Allocator())

    async def put(self, *objects: Object) -> None:
        await self.store.update(lambda tx: [tx.put(object) for object in objects])
        await self.loops.settle()

    async def delete(self, *objects: Object) -> None:
        def write(tx: Any) -> None:
            for object in objects:
                tx.delete(type(object), object.id)

        await self.store.update(write)
        await self.loops.settle()

    async def end(self, task: Task, state: TaskState = TaskState.SHUTDOWN) -> None:
        found = self.task(task.id)
        await self.put(replace(found, status=replace(found.status, state=state)))

    def task(self, id: str) -> Task:
        found = self.store.view().get(Task, id)
        assert found is not None
        return found

    def service(self, id: str) -> Service:
        found = self.store.view().get(Service, id)
        assert found is not None
        return found

    def network(self, id: str) -> Network:
        found = self.store.view().get(Network, id)
        assert found is not None
        return found


@pytest.fixture
def world() -> World:
    return World()


def address(task: Task) -> str:
    return task.networks_attachments[0].addresses[0]


def all_addresses(store: Store) -> list[str]:
    view = store.view()
    return [
        *(
            each
            for task in view.find(Task)
            if task.status.state <= TaskState.RUNNING
            for attachment in task.networks_attachments
            for each in attachment.addresses
        ),
        *(vip.addr for service in view.find(Service) for vip in service.endpoint.virtual_ips),
    ]


def tasks_of(service: Service, slots: Iterable[int], **more: Any) -> list[Task]:
    return [build.task(service, slot=slot, **more) for slot in slots]


async def test_a_network_gets_a_vni_and_a_subnet_outside_of_the_node_pool(world: World) -> None:
    """ALL 143."""
    pools = ("10.192.0.0/16", "172.20.0.0/15")
    await world.put(build.cluster(default_addr_pool=pools, subnet_size=16))
    await world.put(build.network("a"), build.network("b"))
    networks = [world.network("network-a"), world.network("network-b")]
    assert [network.vni for network in networks] == [4096, 4097]
    configs = [network.ipam.config[0] for network in networks]
    assert [config.subnet for config in configs] == ["172.20.0.0/16", "172.21.0.0/16"]
    assert configs[0].gateway == "172.20.0.1"
    await world.put(build.network("c"))
    assert "no free /16 subnet left" in world.network("network-c").allocation_error
    await world.delete(networks[0])
    assert world.network("network-c").allocation_error == ""
    assert world.network("network-c").ipam.config[0].subnet == "172.20.0.0/16"


async def test_no_subnet_holds_the_address_of_a_node(world: World) -> None:
    await world.put(build.node("a", addr="10.0.0.7"))
    await world.put(build.network("a"))
    assert world.network("network-a").ipam.config[0].subnet == "10.0.1.0/24"


async def test_no_subnet_overlaps_with_a_network_of_a_node_or_if_possible_a_route(
    world: World,
) -> None:
    """What does not read as a range is no harm; a network waits until a node's is gone."""
    node = build.node("a")
    said = replace(
        node.description, networks=("10.0.0.0/23", "nonsense"), routes=("10.0.2.0/24", "0.0.0.0/0")
    )
    await world.put(build.cluster(default_addr_pool=("10.0.0.0/22",), subnet_size=24))
    await world.put(replace(node, description=said), build.network("a"))
    assert world.network("network-a").ipam.config[0].subnet == "10.0.3.0/24"
    await world.put(build.network("b"))
    problem = world.network("network-b").allocation_error
    assert "no free /24 subnet left beside the nodes' own networks" in problem
    await world.put(replace(node, description=replace(said, routes=("10.0.0.0/8",))))
    assert world.network("network-b").ipam.config[0].subnet == "10.0.2.0/24"


async def test_service_and_tasks_get_addresses_and_go_on(world: World) -> None:
    web = build.service("web", networks=["net"])
    await world.put(build.network("net"), web, *tasks_of(web, (1, 2, 3)))
    assert [vip.addr for vip in world.service(web.id).endpoint.virtual_ips] == ["10.0.0.2/24"]
    tasks = world.store.view().find(Task)
    assert [address(task) for task in tasks] == ["10.0.0.3/24", "10.0.0.4/24", "10.0.0.5/24"]
    assert tasks[0].networks_attachments[0].mac == "02:42:0a:00:00:03"
    assert tasks[0].networks_attachments[0].network_id == "network-net"
    assert {task.status.state for task in tasks} == {TaskState.PENDING}


async def test_a_task_without_networks_goes_on_at_once(world: World) -> None:
    """ALL 128."""
    await world.put(build.task())
    assert world.task("task-alone-1").status.state is TaskState.PENDING


async def test_a_task_waits_for_a_network_that_does_not_exist_yet(world: World) -> None:
    """ALL 127."""
    web = build.service("web", networks=["late"])
    await world.put(web, build.task(web))
    task = world.task("task-web-1")
    assert task.status.state is TaskState.NEW
    assert task.status.err == "network late does not exist; create it"
    await world.put(build.network("late"))
    task = world.task("task-web-1")
    assert (task.status.state, task.status.err) == (TaskState.PENDING, "")
    assert world.service(web.id).endpoint.virtual_ips


async def test_the_second_network_of_a_subnet_waits_for_the_first_to_go(world: World) -> None:
    """ALL 129."""
    await world.put(build.network("a", subnets=["10.9.0.0/16"]))
    await world.put(build.network("b", subnets=["10.9.1.0/24"]))
    web = build.service("web", networks=["b"])
    await world.put(web, build.task(web))
    expected = "subnet 10.9.1.0/24 overlaps with 10.9.0.0/16 of network a"
    assert world.network("network-b").allocation_error == expected
    assert world.task("task-web-1").status.err == f"network b is not ready: {expected}"
    await world.delete(world.network("network-a"))
    assert world.network("network-b").ipam.config[0].gateway == "10.9.1.1"
    assert world.task("task-web-1").status.state is TaskState.PENDING


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        pytest.param({"subnets": ["10.1.0.0/33"]}, "not an address range", id="no range"),
        pytest.param({"subnets": ["fd00::/64"]}, "IPv6", id="IPv6"),
        pytest.param({"subnets": ["10.1.0.0/30"]}, "too small", id="too small"),
        pytest.param(
            {"subnets": ["10.1.0.0/24"], "gateway": "10.2.0.1"}, "not in subnet", id="gateway"
        ),
        pytest.param(
            {"subnets": ["10.1.0.0/24"], "ip_range": "10.2.0.0/25"}, "not in subnet", id="range"
        ),
        pytest.param({"subnets": [""], "gateway": "10.2.0.1"}, "needs the subnet", id="no subnet"),
    ],
)
async def test_a_wrong_wish_is_told_on_the_network(
    world: World, wish: dict[str, Any], error: str
) -> None:
    await world.put(build.network("a", **wish))
    assert error in world.network("network-a").allocation_error
    await world.put(build.network("b", subnets=["10.1.0.0/24"]))
    assert world.network("network-b").vni


async def test_a_range_limits_what_is_given_out(world: World) -> None:
    network = build.network(
        "a", subnets=["10.1.0.0/16"], ip_range="10.1.5.0/29", gateway="10.1.5.1"
    )
    web = build.service("web", networks=["a"], mode="dnsrr")
    await world.put(network, web, *tasks_of(web, range(1, 9)))
    given = [address(task) for task in world.store.view().find(Task) if task.networks_attachments]
    assert given == [f"10.1.5.{number}/16" for number in (0, 2, 3, 4, 5, 6, 7)]


async def test_an_exhausted_subnet_is_told_on_the_task(world: World) -> None:
    """ALL 144; and who waited goes on as soon as an address is free."""
    web = build.service("web", networks=["small"], mode="dnsrr")
    await world.put(build.network("small", subnets=["10.7.0.0/29"]), web)
    await world.put(*tasks_of(web, range(1, 7)))
    waiting = world.task("task-web-6")
    assert waiting.status.state is TaskState.NEW
    assert waiting.status.err == "no free address in network small: 6/6 in use"
    await world.end(world.task("task-web-2"))
    assert world.task("task-web-6").status.state is TaskState.PENDING
    assert address(world.task("task-web-6")) == "10.7.0.3/29"


async def test_addresses_are_kept_until_the_task_was_seen_to_end(world: World) -> None:
    web = build.service("web", networks=["small"], mode="dnsrr")
    await world.put(build.network("small", subnets=["10.7.0.0/29"]), web)
    await world.put(*tasks_of(web, range(1, 6)))
    await world.put(replace(world.task("task-web-1"), desired_state=TaskState.SHUTDOWN))
    await world.put(build.task(web, slot=9))
    assert world.task("task-web-9").status.state is TaskState.NEW
    await world.end(world.task("task-web-1"))
    assert world.task("task-web-9").status.state is TaskState.PENDING


async def test_an_address_is_not_used_again_at_once(world: World) -> None:
    web = build.service("web", networks=["net"], mode="dnsrr")
    await world.put(build.network("net"), web)
    given = []
    for slot in range(1, 20):
        await world.put(build.task(web, slot=slot))
        given.append(address(world.task(f"task-web-{slot}")))
        await world.end(world.task(f"task-web-{slot}"))
        if slot == 10:
            await world.put(build.task(web, slot=50))
            given.append(address(world.task("task-web-50")))
            world.new_leader()
    assert len(set(given)) == len(given)


async def test_two_networks_or_none(world: World) -> None:
    """A task that cannot be on all of its networks holds no address on any."""
    web = build.service("web", networks=["big", "small"], mode="dnsrr")
    await world.put(build.network("big"), build.network("small", subnets=["10.7.0.0/29"]), web)
    await world.put(*tasks_of(web, range(1, 9)))
    view = world.store.view()
    assert [len(task.networks_attachments) for task in view.find(Task)] == [2] * 5 + [0] * 3
    await world.put(*(build.task(build.service("x", networks=["big"]), slot=s) for s in (1, 2)))
    assert len(set(all_addresses(world.store))) == 12


async def test_vip_stays_through_updates_and_leader_changes(world: World) -> None:
    """ALL 132; and 126: what was given is restored before anything new is given."""
    web = build.service("web", networks=["net"])
    await world.put(build.network("net"), build.network("other"), web)
    vip = world.service(web.id).endpoint.virtual_ips
    world.new_leader()
    changed = build.service("web", networks=["net", "other"], image="web:2", replicas=5)
    await world.put(replace(world.service(web.id), spec=changed.spec))
    after = world.service(web.id).endpoint.virtual_ips
    assert after[0] == vip[0]
    assert after[1].network_id == "network-other"
    await world.put(build.task(web))
    assert address(world.task("task-web-1")) not in [each.addr for each in after]
    await world.put(replace(world.service(web.id), spec=web.spec))
    assert world.service(web.id).endpoint.virtual_ips == vip


async def test_dnsrr_has_no_vip(world: World) -> None:
    web = build.service("web", networks=["net"], mode="dnsrr")
    await world.put(build.network("net"), web)
    assert world.service(web.id).endpoint.virtual_ips == ()
    assert world.service(web.id).endpoint.spec == EndpointSpec(mode="dnsrr")


async def test_the_second_service_of_a_port_waits_for_the_first_to_go(world: World) -> None:
    """ALL 130."""
    first = build.service("first", ports=[build.port(80, 8080)])
    second = build.service("second", ports=[build.port(80, 8080)])
    await world.put(first)
    await world.put(second, build.task(second))
    task = world.task("task-second-1")
    assert task.status.state is TaskState.NEW
    assert task.status.err == "published port 8080/tcp is in use by service first"
    await world.put(replace(world.service(first.id), pending_delete=True))
    assert world.task("task-second-1").status.state is TaskState.NEW
    await world.delete(first)
    assert world.task("task-second-1").status.state is TaskState.PENDING
    assert world.service(second.id).endpoint.ports[0].published_port == 8080


async def test_a_blocked_service_goes_on_when_its_spec_is_changed(world: World) -> None:
    first = build.service("first", ports=[build.port(80, 8080)])
    second = build.service("second", ports=[build.port(80, 8080)])
    await world.put(first, second, build.task(second))
    other = build.service("second", ports=[build.port(80, 8081)])
    await world.put(replace(world.service(second.id), spec=other.spec))
    assert world.task("task-second-1").status.state is TaskState.PENDING
    assert world.task("task-second-1").ports[0].published_port == 8081


async def test_dynamic_ports_stay_and_explicit_ones_are_left_out(world: World) -> None:
    """ALL 136, 137, 139."""
    await world.put(build.service("fixed", ports=[build.port(80, 30000)]))
    web = build.service(
        "web", ports=[build.port(80), build.port(81), build.port(53, protocol="udp")]
    )
    await world.put(web)
    ports = world.service(web.id).endpoint.ports
    assert [port.published_port for port in ports] == [30001, 30002, 30000]
    world.new_leader()
    changed = build.service("web", ports=[build.port(81), build.port(82), build.port(80)])
    await world.put(replace(world.service(web.id), spec=changed.spec))
    ports = world.service(web.id).endpoint.ports
    assert [port.published_port for port in ports] == [30002, 30003, 30001]


async def test_ports_removed_and_added_again(world: World) -> None:
    """ALL 135."""
    web = build.service("web", ports=[build.port(80, 8080), build.port(81, 8081)])
    await world.put(web)
    none = build.service("web")
    await world.put(replace(world.service(web.id), spec=none.spec))
    assert world.service(web.id).endpoint.ports == ()
    other = build.service("other", ports=[build.port(1, 8081)])
    await world.put(other)
    assert world.service(other.id).endpoint.ports[0].published_port == 8081
    await world.delete(world.service(other.id))
    await world.put(replace(world.service(web.id), spec=web.spec))
    assert [port.published_port for port in world.service(web.id).endpoint.ports] == [8080, 8081]


async def test_host_mode_ports_pass_through(world: World) -> None:
    """ALL 138."""
    ports = [build.port(80, 8080, publish_mode="host"), build.port(81, publish_mode="host")]
    one, two = build.service("one", ports=ports), build.service("two", ports=ports)
    await world.put(one, two, build.task(one), build.task(two))
    for id in ("task-one-1", "task-two-1"):
        assert world.task(id).ports == tuple(ports)


async def test_ports_are_the_same_in_any_order(world: World) -> None:
    """ALL 140: nothing is given anew, and nothing written but their order."""
    ports = [build.port(80), build.port(81, 8081), build.port(82, publish_mode="host")]
    web = build.service("web", ports=ports)
    await world.put(web)
    before = world.service(web.id).endpoint.ports
    turned = build.service("web", ports=ports[::-1])
    await world.put(replace(world.service(web.id), spec=turned.spec))
    assert world.service(web.id).endpoint.ports == before[::-1]
    assert before[0].published_port == 30000
    other = build.service("other", ports=[build.port(80)])
    await world.put(other)
    assert world.service(other.id).endpoint.ports[0].published_port == 30001


async def test_node_indexes_are_stable_and_unique(world: World) -> None:
    await world.put(build.node("a"), build.node("b"))
    indexes = {node.id: node.index for node in world.store.view().find(Node)}
    assert sorted(indexes.values()) == [1, 2]
    world.new_leader()
    await world.delete(build.node("a"))
    await world.put(build.node("c"))
    found = {node.id: node.index for node in world.store.view().find(Node)}
    assert found == {"b": indexes["b"], "c": 3}


async def test_what_the_last_leader_left_half_done_is_completed(world: World) -> None:
    """ALL 134."""
    await world.put(build.network("net"))
    half = replace(world.network("network-net"), vni=0)
    await world.store.update(lambda tx: tx.put(half))
    web = build.service("web", networks=["net"])
    await world.store.update(lambda tx: [tx.put(web), tx.put(build.task(web))])
    world.new_leader()
    await world.loops.settle()
    assert world.network("network-net").vni
    assert world.network("network-net").ipam == half.ipam
    assert world.task("task-web-1").status.state is TaskState.PENDING


async def test_tasks_that_should_not_run_get_nothing(world: World) -> None:
    web = build.service("web", networks=["net"])
    stale = build.task(web, desired=TaskState.REMOVE)
    dead = build.task(web, slot=2, status=TaskStatus(state=TaskState.FAILED))
    await world.put(build.network("net"), web, stale, dead)
    assert not any(task.networks_attachments for task in world.store.view().find(Task))


async def test_thirty_tasks_take_one_entry(world: World) -> None:
    web = build.service("web", networks=["net"])
    await world.put(build.network("net"), web)
    before = world.store.version
    await world.put(*tasks_of(web, range(30)))
    assert world.store.version == before + 2
    values = all_addresses(world.store)
    assert len(set(values)) == len(values) == 31
    assert all(ipaddress.ip_interface(value) for value in values)
