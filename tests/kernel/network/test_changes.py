"""Backends that come and go, restarts of the daemon, leaving: behaviours 252, 254, 259."""

import asyncio
import os
from typing import Any

import msgspec
import pytest

from common.errors import Invalid, Unavailable
from common.protocol.network import (
    NetworkChange,
    OverlayEndpoint,
    OverlayNetwork,
    Peer,
    PublishedPort,
    ServiceEntry,
    digest,
)
from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import (
    DEADLINE_S,
    NETWORK,
    OTHER,
    POOL,
    Lab,
    Replica,
    Service,
    ask,
    enter,
    mac_of,
    resolve,
    run,
    sh,
    spec,
)
from worker.network.model import SandboxSpec

pytestmark = pytest.mark.root

PORT = (PublishedPort(protocol="tcp", published=8080, target=80),)


async def service(lab: Lab, per_node: int = 1) -> Service:
    await lab.join()
    web = Service(lab, "web", "10.0.1.2", PORT)
    await lab.put(NETWORK, web.entry)
    for number, node in enumerate(lab.nodes * per_node, 10):
        await web.add(node, f"10.0.1.{number}")
    return web


def endpoint(
    name: str, address: str, node_id: str, network: OverlayNetwork = NETWORK, **more: Any
) -> OverlayEndpoint:
    return OverlayEndpoint(
        task_id=f"task-{name}",
        network_id=network.id,
        node_id=node_id,
        address=address,
        mac=mac_of(address),
        task_name=f"{name}.1",
        **more,
    )


def client_of(web: Service) -> Replica:
    return web.replicas[0]


async def test_an_inactive_backend_gets_nothing_new_and_its_tcp_flow_goes_on(
    make_lab: MakeLab,
) -> None:
    """UDP flows to it move to another backend."""
    lab = await make_lab(2)
    web = await service(lab)
    netns = client_of(web).sandbox.netns
    gone = web.replicas[1]
    flows = {}
    for kind in ("tcp", "udp"):
        flows[kind] = await flow_to(netns, "10.0.1.2", kind, gone.endpoint.task_name)
    await web.activate(gone, False)
    assert await ask(netns, "10.0.1.2", 80, 50) == {"web.10": 50}
    assert await resolve(netns, "tasks.web") == (0, ["10.0.1.10"])
    assert await resolve(netns, "web.11") == (3, [])
    assert await say(flows["tcp"]) == "web.11"
    assert await say(flows["udp"]) == "web.10"
    for process in flows.values():
        process.kill()
        await process.communicate()


async def flow_to(netns: str, address: str, kind: str, name: str) -> asyncio.subprocess.Process:
    """A flow that the balancer happened to give to the task `name`."""
    while True:
        process = await asyncio.create_subprocess_exec(
            *enter(netns, "keep", address, "80", kind),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if await say(process) == name:
            return process
        process.kill()
        await process.communicate()


async def say(process: asyncio.subprocess.Process) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    async with asyncio.timeout(DEADLINE_S):
        return (await process.stdout.readline()).decode().strip()


async def test_a_service_without_active_task_refuses_and_none_is_ever_named(
    make_lab: MakeLab,
) -> None:
    """Behaviour 259: a task that never became healthy is in no answer."""
    lab = await make_lab(2)
    web = await service(lab)
    netns = client_of(web).sandbox.netns
    for replica in web.replicas:
        await web.activate(replica, False)
    assert await ask(netns, "10.0.1.2", 80) == {"!ConnectionRefusedError": 1}
    udp = await run(netns, "ask-udp", "10.0.1.2", "80", "1")
    assert udp[0][0] in ("!ConnectionRefusedError", "!PermissionError")  # a reject on the way out
    assert await resolve(netns, "tasks.web") == (0, [])
    assert await resolve(netns, "web") == (0, ["10.0.1.2"])
    await web.activate(web.replicas[1], True)
    assert await ask(netns, "10.0.1.2", 80, 5) == {"web.11": 5}


async def test_short_connections_see_no_failure_while_every_replica_is_replaced(
    make_lab: MakeLab,
) -> None:
    """Behaviour 254, through the VIP and through a published port."""
    lab = await make_lab(3)
    web = await service(lab)
    await lab.put(endpoint("asker", "10.0.1.99", "n1"))
    asker = await lab.nodes[0].networks.open_sandbox(spec("asker", "10.0.1.99"))
    work = asyncio.gather(
        ask(asker.netns, "10.0.1.2", 80, 1500),
        ask(f"{lab.prefix}-client", lab.nodes[2].address, 8080, 1500),
    )
    for number, replica in enumerate(list(web.replicas), 20):
        await web.activate(replica, False)
        await asyncio.sleep(0.2)  # what the dispatcher gives requests under way
        await web.drop(replica)
        await web.add(replica.node, f"10.0.1.{number}")
    for answers in await work:
        assert not [name for name in answers if name.startswith("!")], answers
        assert sum(answers.values()) == 1500


async def test_an_address_that_moves_to_another_node_is_found_there(make_lab: MakeLab) -> None:
    """Behaviour 252: no stale entry, also when the new task has another MAC."""
    lab = await make_lab(3)
    web = await service(lab)
    first, second, third = web.replicas
    address = second.endpoint.address
    assert await ask(first.sandbox.netns, address, 80) == {second.endpoint.task_name: 1}
    await web.drop(second)
    other = Service(lab, "other", "10.0.1.3")
    await lab.put(other.entry)
    moved = await other.add(lab.nodes[2], address)
    for replica in (first, third):
        assert await ask(replica.sandbox.netns, address, 80) == {moved.endpoint.task_name: 1}
    await other.drop(moved)
    await lab.put(msgspec.structs.replace(moved.endpoint, node_id="n2", mac="02:42:aa:bb:cc:dd"))
    attachment = msgspec.structs.replace(spec("x", address).attachments[0], mac="02:42:aa:bb:cc:dd")
    box = await lab.nodes[1].networks.open_sandbox(
        SandboxSpec(id="again", attachments=(attachment,))
    )
    await lab.serve(box, "again")
    for replica in (first, third):
        assert await ask(replica.sandbox.netns, address, 80) == {"again": 1}


async def test_a_restarted_daemon_adopts_its_sandboxes(make_lab: MakeLab) -> None:
    """Names are answered again before any manager is met; connections never stop."""
    lab = await make_lab(2)
    web = await service(lab)
    node, netns = lab.nodes[0], client_of(web).sandbox.netns
    flow = await flow_to(netns, "10.0.1.2", "tcp", "web.11")
    before = node.networks.sandboxes()
    digested = node.networks.digest()
    await node.networks.close()
    assert await say(flow) == "web.11"
    assert (await ask(netns, "10.0.1.2", 80, 40)).keys() == {"web.10", "web.11"}
    node.networks = lab.make_networks(node)
    await node.networks.open()
    assert node.networks.sandboxes() == before
    assert node.networks.digest() == digested == digest(lab.table.values())
    assert await resolve(netns, "web") == (0, ["10.0.1.2"])
    assert await say(flow) == "web.11"
    flow.kill()
    await flow.communicate()
    await lab.join()
    await web.activate(web.replicas[1], False)
    assert await ask(netns, "10.0.1.2", 80, 20) == {"web.10": 20}
    client = f"{lab.prefix}-client"
    assert await ask(client, node.address, 8080, 5) == {"web.10": 5}
    again = await node.networks.open_sandbox(SandboxSpec(id="new"))
    assert again.node_address not in {box.node_address for box in before.values()}


async def test_what_changed_while_the_daemon_was_away_is_put_right(make_lab: MakeLab) -> None:
    """A complete table replaces all: endpoints, peers, ports, networks' entries."""
    lab = await make_lab(3)
    web = await service(lab)
    node, netns = lab.nodes[0], client_of(web).sandbox.netns
    await node.networks.close()
    kept = [
        item
        for item in lab.table.values()
        if not (isinstance(item, OverlayEndpoint) and item.node_id == "n3")
        and not (isinstance(item, Peer) and item.node_id == "n3")
    ]
    node.networks = lab.make_networks(node)
    await node.networks.open()
    await node.networks.apply(NetworkChange(complete=True, puts=tuple(kept)))
    assert node.networks.digest() == digest(kept)
    answers = await ask(netns, "10.0.1.2", 80, 60)
    assert answers.keys() == {"web.10", "web.11"}
    overlay = f"{node.config.run_dir}/netns/overlay-{NETWORK.id}"
    entries = sh("nsenter", f"--net={overlay}", "bridge", "fdb", "show", "dev", "vxlan0")
    assert mac_of("10.0.1.11") in entries
    assert mac_of("10.0.1.12") not in entries
    rules = sh("nsenter", f"--net=/run/netns/{node.netns}", "ip", "rule")
    assert "20002" in rules
    assert "20003" not in rules


async def test_leaving_and_closing_leave_nothing(make_lab: MakeLab) -> None:
    lab = await make_lab(2)
    web = await service(lab)
    for replica in list(web.replicas):
        await lab.stop_server(replica.server)
        await replica.node.networks.close_sandbox(replica.sandbox.id)
    for node in lab.nodes:
        await node.networks.leave()
        where = f"--net=/run/netns/{node.netns}"
        assert "ing" not in sh("nsenter", where, "ip", "-br", "link")
        assert "lookup 2000" not in sh("nsenter", where, "ip", "rule")
        assert node.networks.digest() == digest([])
        await node.networks.close()
        assert sh("nsenter", where, "nft", "list", "tables") == ""
        names = [line.split()[0] for line in sh("nsenter", where, "ip", "-br", "l").splitlines()]
        assert [name.split("@")[0] for name in names if not name.startswith("sh")] == ["lo", "eth0"]
        assert list((node.config.run_dir / "netns").iterdir()) == []
        assert list((node.config.state_dir / "network").rglob("*.json")) == []
        await node.networks.open()


async def test_sandboxes_outlive_joining_and_leaving(make_lab: MakeLab) -> None:
    """A user's container keeps its address, its way out and its port."""
    lab = await make_lab(2)
    node = lab.nodes[0]
    box = await node.networks.open_sandbox(SandboxSpec(id="user"))
    target = msgspec.structs.replace(box, netns=f"{lab.prefix}-client")
    await lab.serve(target, "outside")
    await lab.join()
    later = await node.networks.open_sandbox(SandboxSpec(id="later"))
    assert later.node_address.startswith("10.192.4.")
    for made in (box, later):
        assert await ask(made.netns, "10.77.0.100", 80) == {"outside": 1}
    await node.networks.leave()
    for made in (box, later):
        assert await ask(made.netns, "10.77.0.100", 80) == {"outside": 1}


async def test_a_sandbox_that_cannot_be_made_leaves_nothing(make_lab: MakeLab) -> None:
    """Behaviour 258."""
    lab = await make_lab(1)
    await lab.join()
    (node,) = lab.nodes
    with pytest.raises(Unavailable, match="network red is not known on this node"):
        await node.networks.open_sandbox(spec("box", "10.0.2.5", OTHER))
    with pytest.raises(Invalid, match=r"sysctl net\.ipv4\.nonsense"):
        await node.networks.open_sandbox(SandboxSpec(id="box", sysctls={"net.ipv4.nonsense": "1"}))
    with pytest.raises(Invalid, match="cannot name a sandbox"):
        await node.networks.open_sandbox(SandboxSpec(id="../box"))
    assert node.networks.sandboxes() == {}
    assert list(node.config.run_dir.rglob("*box*")) == []
    box = await node.networks.open_sandbox(SandboxSpec(id="box"))
    assert box == await node.networks.open_sandbox(SandboxSpec(id="box"))
    await node.networks.close_sandbox("box")
    await node.networks.close_sandbox("box")


async def test_modes_none_and_host(make_lab: MakeLab) -> None:
    lab = await make_lab(1)
    (node,) = lab.nodes
    none = await node.networks.open_sandbox(SandboxSpec(id="none", mode="none"))
    links = sh("nsenter", f"--net={none.netns}", "ip", "-br", "link")
    assert links.split()[0] == "lo"
    assert len(links.splitlines()) == 1
    host = await node.networks.open_sandbox(SandboxSpec(id="host", mode="host"))
    assert host.netns == ""
    assert "127.53.0.1" in host.resolv_conf
    with pytest.raises(Invalid, match="network mode 'magic'"):
        await node.networks.open_sandbox(SandboxSpec(id="x", mode="magic"))
    await lab.restart(node)
    assert node.networks.sandboxes() == {"none": none, "host": host}


async def test_no_namespace_is_given_out_twice_whether_made_before_or_not(
    make_lab: MakeLab,
) -> None:
    lab = await make_lab(1)
    (node,) = lab.nodes
    wishes = [{}, {}, {"net.ipv4.ip_default_ttl": "61"}, {}]
    specs = [SandboxSpec(id=f"box{n}", sysctls=wish) for n, wish in enumerate(wishes)]
    boxes = [await node.networks.open_sandbox(spec) for spec in specs]
    assert len({os.stat(box.netns).st_ino for box in boxes}) == len(boxes)
    assert len({box.node_address for box in boxes}) == len(boxes)
    ttl = ("cat", "/proc/sys/net/ipv4/ip_default_ttl")
    found = [sh("nsenter", f"--net={box.netns}", *ttl).strip() for box in boxes]
    assert found == ["64", "64", "61", "64"]


async def test_leftovers_of_a_killed_daemon_are_removed(make_lab: MakeLab) -> None:
    """A namespace without record, and records without namespace."""
    lab = await make_lab(1)
    (node,) = lab.nodes
    box = await node.networks.open_sandbox(SandboxSpec(id="box"))
    await node.networks.open_sandbox(SandboxSpec(id="lost"))
    await node.networks.close()
    records = node.config.state_dir / "network" / "sandboxes"
    (records / "lost.json").unlink()
    (records / "torn.json").write_text('{"spec": ')
    sh("umount", box.netns)
    node.networks = lab.make_networks(node)
    await node.networks.open()
    assert node.networks.sandboxes() == {}
    assert os.listdir(node.config.run_dir / "netns") == []
    assert list(records.iterdir()) == []


async def test_several_networks_scopes_and_other_names(make_lab: MakeLab) -> None:
    """eth0, eth1 are the overlays in order, the last is the node's bridge."""
    lab = await make_lab(2)
    web = await service(lab)
    twin = ServiceEntry(service_id="svc-twin", name="web", vips={OTHER.id: "10.0.2.2"})
    single = ServiceEntry(service_id="svc-rr", name="rr")
    await lab.put(OTHER, twin, single)
    await lab.put(
        endpoint("rr", "10.0.2.9", "n2", OTHER, active=True, service_id="svc-rr"),
        endpoint("x", "10.0.1.50", "n1"),
        endpoint("x", "10.0.2.50", "n1", OTHER),
    )
    first, second = spec("x", "10.0.2.50", OTHER), spec("x", "10.0.1.50")
    both = msgspec.structs.replace(first, attachments=first.attachments + second.attachments)
    box = await lab.nodes[0].networks.open_sandbox(both)
    assert [(item.name, item.network_name) for item in box.interfaces] == [
        ("eth0", "red"),
        ("eth1", "blue"),
    ]
    assert "dev eth2" in sh("nsenter", f"--net={box.netns}", "ip", "route", "show", "default")
    assert await resolve(box.netns, "web") == (0, ["10.0.2.2"])
    assert await resolve(box.netns, "WEB.blue") == (0, ["10.0.1.2"])
    assert await resolve(box.netns, "web-alias") == (0, ["10.0.1.2"])
    assert await resolve(box.netns, "rr") == (0, ["10.0.2.9"])
    assert await resolve(box.netns, "web", kind=28) == (0, [])
    assert await resolve(box.netns, "2.1.0.10.in-addr.arpa", kind=12) == (0, ["web.blue"])
    assert await ask(box.netns, "10.0.1.2", 80, 20)
    only_blue = client_of(web).sandbox.netns
    assert (await resolve(only_blue, "rr"))[0] != 0


async def test_other_names_go_to_the_machines_resolvers(make_lab: MakeLab) -> None:
    """And SERVFAIL when none answers in time."""
    lab = await make_lab(1)
    (node,) = lab.nodes
    box = await node.networks.open_sandbox(SandboxSpec(id="box"))
    assert "search example.test" in box.resolv_conf
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(FakeUpstream, ("127.53.0.1", 53))
    try:
        assert await resolve(box.netns, "elsewhere.example") == (0, ["192.0.2.7"])
    finally:
        transport.close()
    assert (await resolve(box.netns, "elsewhere.example"))[0] == 2


class FakeUpstream(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        record = bytes.fromhex("c00c 0001 0001 0000003c 0004 c0000207")
        answer = data[:2] + bytes.fromhex("8180 0001 0001 0000 0000") + data[12:] + record
        self.transport.sendto(answer, addr)


async def test_a_node_that_comes_back_with_another_index(make_lab: MakeLab) -> None:
    """Behaviour 252: the lost node and its successor have the same address for a while."""
    lab = await make_lab(2)
    web = await service(lab)
    lost = lab.nodes[0]
    await web.drop(web.replicas[0])
    await lost.networks.leave()
    await lost.networks.join("n9", 9, POOL, lost.address, 4789)
    change = NetworkChange(complete=True, puts=tuple(lab.table.values()))
    await lost.networks.apply(change)
    await lab.put(Peer(node_id="n9", index=9, address=lost.address))
    client = f"{lab.prefix}-client"
    for node in lab.nodes:
        assert await ask(client, node.address, 8080, 5) == {"web.11": 5}
    await lab.remove(Peer(node_id="n1", index=1, address=lost.address))
    for node in lab.nodes:
        assert await ask(client, node.address, 8080, 5) == {"web.11": 5}


async def test_state_that_somebody_else_broke_is_put_right(make_lab: MakeLab) -> None:
    """Our tables flushed (a firewall reload, behaviour 257) and entries deleted: the next change
    that the kernel refuses has everything made again."""
    lab = await make_lab(2)
    web = await service(lab)
    node, replica = lab.nodes[0], web.replicas[0]
    overlay = f"--net={node.config.run_dir}/netns/overlay-{NETWORK.id}"
    sh("nsenter", f"--net=/run/netns/{node.netns}", "nft", "flush", "ruleset")
    sh("nsenter", f"--net={replica.sandbox.netns}", "nft", "flush", "ruleset")
    sh("nsenter", overlay, "bridge", "fdb", "del", mac_of("10.0.1.11"), "dev", "vxlan0")
    await web.activate(web.replicas[1], False)
    await web.activate(web.replicas[1], True)
    client = f"{lab.prefix}-client"
    netns = replica.sandbox.netns
    assert (await ask(netns, "10.0.1.2", 80, 40)).keys() == {"web.10", "web.11"}
    assert (await ask(client, node.address, 8080, 40)).keys() == {"web.10", "web.11"}


async def test_an_internal_network_has_no_way_out(make_lab: MakeLab) -> None:
    lab = await make_lab(2)
    await lab.join()
    inner = msgspec.structs.replace(NETWORK, internal=True)
    ends = [endpoint("a", "10.0.1.10", "n1"), endpoint("b", "10.0.1.11", "n2")]
    await lab.put(inner, *ends)
    boxes = [
        await node.networks.open_sandbox(spec(item.task_id, item.address))
        for node, item in zip(lab.nodes, ends, strict=True)
    ]
    await lab.serve(boxes[1], "b")
    assert await ask(boxes[0].netns, "10.0.1.11", 80) == {"b": 1}
    assert boxes[0].node_address == ""
    assert sh("nsenter", f"--net={boxes[0].netns}", "ip", "route", "show", "default") == ""


async def test_a_machine_that_got_another_address_opens_and_joins_again(make_lab: MakeLab) -> None:
    lab = await make_lab(2)
    web = await service(lab)
    node = lab.nodes[0]
    await node.networks.close()
    where = f"--net=/run/netns/{node.netns}"
    sh("nsenter", where, "ip", "addr", "flush", "dev", "eth0")
    sh("nsenter", where, "ip", "addr", "add", "10.77.0.55/24", "dev", "eth0")
    node.networks = lab.make_networks(node)
    await node.networks.open()
    assert node.networks.sandboxes().keys() == {web.replicas[0].sandbox.id}
    with pytest.raises(Unavailable, match="no interface of this machine has"):
        await node.networks.join("n1", 1, POOL, node.address, 4789)
    await node.networks.join("n1", 1, POOL, "10.77.0.55", 4789)
    await lab.put(Peer(node_id="n1", index=1, address="10.77.0.55"))
    netns = web.replicas[0].sandbox.netns
    assert (await ask(netns, "10.0.1.2", 80, 40)).keys() == {"web.10", "web.11"}
    client = f"{lab.prefix}-client"
    assert (await ask(client, "10.77.0.55", 8080, 40)).keys() == {"web.10", "web.11"}


async def test_two_daemons_in_one_namespace_do_not_meet(make_lab: MakeLab) -> None:
    lab = await make_lab(1)
    (node,) = lab.nodes
    other = msgspec.structs.replace(
        node.config, state_dir=node.directory / "other", run_dir=node.directory / "other-run"
    )
    twin = type(node)(9, node.netns, node.address, node.directory, node.networks, other)
    twin.networks = lab.make_networks(twin)
    await twin.networks.open()
    try:
        box = await twin.networks.open_sandbox(SandboxSpec(id="box"))
        mine = await node.networks.open_sandbox(SandboxSpec(id="box"))
        assert box.node_address != mine.node_address
        await lab.serve(mine, "mine")
        assert await ask(node.netns, mine.node_address, 80) == {"mine": 1}
        assert await ask(box.netns, mine.node_address, 80) == {"mine": 1}
        await twin.networks.close_sandbox("box")
    finally:
        await twin.networks.close()
    assert await ask(node.netns, mine.node_address, 80) == {"mine": 1}
