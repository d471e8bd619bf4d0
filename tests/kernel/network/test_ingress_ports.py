"""Published ports on every node with the client's address, and ports of one sandbox."""

import asyncio

import msgspec
import pytest

from common.errors import Conflict
from common.protocol.network import PublishedPort
from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import DEADLINE_S, NETWORK, Lab, Service, ask, run, seen_from, sh
from worker.network.model import HostPort, SandboxSpec

pytestmark = pytest.mark.root

PORTS = (
    PublishedPort(protocol="tcp", published=8080, target=80),
    PublishedPort(protocol="udp", published=8080, target=80),
)


async def published(lab: Lab, nodes: int) -> Service:
    """A service with a replica on each of the first `nodes` machines."""
    web = Service(lab, "web", "10.0.1.2", PORTS)
    await lab.put(NETWORK, web.entry)
    for number, node in enumerate(lab.nodes[:nodes], 10):
        await web.add(node, f"10.0.1.{number}")
    return web


async def test_every_node_answers_with_all_tasks_and_keeps_the_clients_address(
    make_lab: MakeLab,
) -> None:
    """Also a node without a task (the third), for TCP and UDP; behaviour 255."""
    lab = await make_lab(3)
    await lab.join()
    web = await published(lab, 2)
    names = {replica.endpoint.task_name for replica in web.replicas}
    client = f"{lab.prefix}-client"
    for node in lab.nodes:
        assert (await ask(client, node.address, 8080, 60)).keys() == names
        assert await seen_from(client, node.address, 8080, 60) == {"10.77.0.100"}
        udp = await run(client, "ask-udp", node.address, "8080", "30")
        assert {name for name, _ in udp} == names
        assert {address for _, address in udp} == {"10.77.0.100"}


async def test_the_machine_itself_and_its_containers_reach_a_published_port(
    make_lab: MakeLab,
) -> None:
    lab = await make_lab(3)
    await lab.join()
    web = await published(lab, 2)
    names = {replica.endpoint.task_name for replica in web.replicas}
    for node in lab.nodes:
        for address in ("127.0.0.1", node.address):
            assert (await ask(node.netns, address, 8080, 40)).keys() == names
    for replica in web.replicas:
        for node in lab.nodes:
            answers = await ask(replica.sandbox.netns, node.address, 8080, 40)
            assert answers.keys() == names, (replica.endpoint.task_name, node.number)


async def test_a_port_without_active_backend_is_refused_at_once(make_lab: MakeLab) -> None:
    """And works again afterwards; another service's port is left alone (behaviour 256)."""
    lab = await make_lab(2)
    await lab.join()
    web = await published(lab, 1)
    client = f"{lab.prefix}-client"
    await web.activate(web.replicas[0], False)
    for node in lab.nodes:
        assert (await ask(client, node.address, 8080)).keys() == {"!ConnectionRefusedError"}
        assert (await ask(node.netns, "127.0.0.1", 8080)).keys() == {"!ConnectionRefusedError"}
    await web.activate(web.replicas[0], True)
    moved = msgspec.structs.replace(
        web.entry, ports=(PublishedPort(protocol="tcp", published=9090, target=80),)
    )
    await lab.put(moved)
    for node in lab.nodes:
        assert (await ask(client, node.address, 9090)).keys() == {"web.10"}
        assert (await ask(client, node.address, 8080)).keys() == {"!ConnectionRefusedError"}


async def test_a_host_port_leads_to_its_sandbox_only_and_conflicts_are_named(
    make_lab: MakeLab,
) -> None:
    lab = await make_lab(2)
    first, second = lab.nodes
    port = HostPort(protocol="tcp", published=8081, target=80)
    box = await first.networks.open_sandbox(SandboxSpec(id="one", host_ports=(port,)))
    await lab.serve(box, "one")
    client = f"{lab.prefix}-client"
    assert await ask(client, first.address, 8081) == {"one": 1}
    assert await seen_from(client, first.address, 8081) == {"10.77.0.100"}
    assert await ask(first.netns, "127.0.0.1", 8081) == {"one": 1}
    with pytest.raises(
        Conflict, match=r"Bind for 0\.0\.0\.0:8081/tcp failed: port is already allocated"
    ):
        await first.networks.open_sandbox(SandboxSpec(id="two", host_ports=(port,)))
    await first.networks.close_sandbox("one")
    again = await first.networks.open_sandbox(SandboxSpec(id="two", host_ports=(port,)))
    assert again.host_ports == (port,)
    assert "two" not in second.networks.sandboxes()


async def test_a_port_that_a_process_listens_on_is_refused(make_lab: MakeLab) -> None:
    lab = await make_lab(1)
    (node,) = lab.nodes
    outside = msgspec.structs.replace(
        await node.networks.open_sandbox(SandboxSpec(id="box")), netns=f"/run/netns/{node.netns}"
    )
    await lab.serve(outside, "process", 8082)
    port = HostPort(protocol="tcp", published=8082, target=80)
    with pytest.raises(Conflict, match=r"0\.0\.0\.0:8082/tcp: address already in use"):
        await node.networks.open_sandbox(SandboxSpec(id="two", host_ports=(port,)))
    assert set(node.networks.sandboxes()) == {"box"}


async def test_a_node_tells_of_the_networks_around_it_but_not_of_ours(make_lab: MakeLab) -> None:
    lab = await make_lab(2)
    await lab.join()
    node = lab.nodes[0]
    sh(*f"ip -n {node.netns} route add 172.30.0.0/16 via 10.77.0.2".split())
    sh(*f"ip -n {node.netns} route add blackhole 172.31.0.0/16".split())
    await node.networks.open_sandbox(SandboxSpec(id="box"))
    await lab.restart(node)
    assert node.networks.around == (("10.77.0.0/24",), ("172.30.0.0/16",))
    assert node.networks.warnings == ()
    sh(*f"ip -n {node.netns} addr add 10.200.0.1/24 dev eth0".split())
    await lab.restart(node)
    (warning,) = node.networks.warnings
    assert "10.200.0.0/24, a network of this machine, overlaps with the node pool" in warning


async def test_a_process_keeps_its_port_until_it_ends_and_the_other_nodes_answer(
    make_lab: MakeLab,
) -> None:
    """A task on that very node is reached through the others; what is missing is told."""
    lab = await make_lab(2)
    await lab.join()
    first, second = lab.nodes
    web = Service(lab, "web", "10.0.1.2", PORTS)
    await lab.put(NETWORK)
    await web.add(first, "10.0.1.10")
    outside = msgspec.structs.replace(web.replicas[0].sandbox, netns=f"/run/netns/{first.netns}")
    process = await lab.serve(outside, "process", 8080)
    await lab.put(web.entry)
    client = f"{lab.prefix}-client"
    for _ in range(2):
        assert (await ask(client, first.address, 8080)).keys() == {"process"}
        assert (await ask(first.netns, "127.0.0.1", 8080)).keys() == {"process"}
        assert (await ask(client, second.address, 8080)).keys() == {"web.10"}
        (warning,) = [text for text in first.networks.warnings if "8080/tcp" in text]
        assert "address already in use by a process of this node" in warning
        assert second.networks.warnings == ()
        await lab.restart(first)
    await lab.stop_server(process)
    async with asyncio.timeout(DEADLINE_S):
        while first.networks.warnings:  # noqa: ASYNC110 - the kernel tells nobody of a free port
            await asyncio.sleep(0.05)
    assert (await ask(client, first.address, 8080)).keys() == {"web.10"}


async def test_a_chosen_port_and_a_port_of_one_address(make_lab: MakeLab) -> None:
    lab = await make_lab(1)
    (node,) = lab.nodes
    box = await node.networks.open_sandbox(
        SandboxSpec(
            id="box",
            host_ports=(
                HostPort(protocol="tcp", published=0, target=80),
                HostPort(protocol="tcp", published=8083, target=80, host_ip="127.0.0.1"),
            ),
        )
    )
    await lab.serve(box, "box")
    client = f"{lab.prefix}-client"
    chosen = box.host_ports[0].published
    assert await ask(client, node.address, chosen) == {"box": 1}
    assert await ask(node.netns, "127.0.0.1", 8083) == {"box": 1}
    assert (await ask(client, node.address, 8083)).keys() == {"!ConnectionRefusedError"}


async def test_containers_reach_the_outside_by_masquerade(make_lab: MakeLab) -> None:
    lab = await make_lab(2)
    box = await lab.nodes[0].networks.open_sandbox(SandboxSpec(id="box"))
    assert [item.network_name for item in box.interfaces] == ["bridge"]
    target = msgspec.structs.replace(box, netns=f"{lab.prefix}-client")
    await lab.serve(target, "outside")
    assert await seen_from(box.netns, "10.77.0.100", 80) == {"10.77.0.1"}
    sh("nsenter", f"--net={box.netns}", "ip", "link", "show", "eth0")
