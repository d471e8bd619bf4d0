"""The kernel is compared with the endpoint table: what somebody breaks is found and mended."""

import asyncio

import pytest

from common.protocol.network import PublishedPort
from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import DEADLINE_S, NETWORK, Service, ask, mac_of, sh
from worker.network import networks as network_part

pytestmark = pytest.mark.root

FAR = "10.0.1.11"
PORTS = tuple(PublishedPort(protocol="tcp", published=port, target=80) for port in (8080, 8081))


def breakages(bridge: str) -> list[tuple[str, str, str]]:
    """Where, with what command, and the part in which the difference must be found."""
    mac, vip, route = mac_of(FAR), "10.0.1.2", "10.192.12.0/22 via 10.192.12.1"
    return [
        ("overlay", f"bridge fdb del {mac} dev vxlan0 self", "overlay"),
        ("overlay", f"bridge fdb del {mac} dev vxlan0 master", "overlay"),
        ("overlay", f"bridge fdb replace {mac} dev vxlan0 self dst 10.77.0.9", "overlay"),
        ("overlay", "bridge fdb add 02:42:0a:00:01:63 dev vxlan0 self dst 10.77.0.2", "overlay"),
        ("overlay", f"ip neigh del {FAR} dev vxlan0", "overlay"),
        (
            "overlay",
            "ip neigh add 10.0.1.99 lladdr 02:42:0a:00:01:63 dev vxlan0 nud permanent",
            "overlay",
        ),
        ("overlay", f"bridge fdb del {mac_of('10.0.1.10')} dev NEAR master", "overlay"),
        ("sandbox", f"nft delete element ip shoal vips {{ {vip} }}", "sandbox"),
        ("sandbox", "nft add element ip shoal dead { 10.0.1.77 }", "sandbox"),
        ("sandbox", "nft flush map ip shoal by", "sandbox"),
        ("sandbox", "nft flush map ip shoal be", "sandbox"),
        ("sandbox", "nft flush chain ip shoal out", "sandbox"),
        ("sandbox", "nft flush ruleset", "sandbox"),
        (
            "sandbox",
            f"ip neigh replace {FAR} lladdr 02:00:00:00:00:01 dev eth0 nud stale",
            "sandbox",
        ),
        ("machine", f"nft flush map ip {bridge} vips", "ports"),
        ("machine", f"nft flush map ip {bridge} nodes", "ports"),
        ("machine", "nft flush ruleset", "ports"),
        ("machine", f"bridge fdb del 02:ee:00:00:00:02 dev {bridge}-ing self", "mesh"),
        ("machine", f"ip neigh del 10.192.8.1 dev {bridge}-ing", "mesh"),
        ("machine", "ip rule del pref 100", "mesh"),
        ("machine", "ip route del 10.192.8.0/22", "mesh"),
        ("machine", f"ip route add {route} dev {bridge}-ing onlink proto static", "mesh"),
        ("machine", f"ip rule add pref 100 iif {bridge} fwmark 0x10007 lookup 20007", "mesh"),
    ]


async def test_whatever_is_broken_is_found_counted_and_mended(make_lab: MakeLab) -> None:
    """Behaviours 252 and 257; what differs is in the log and in the metric."""
    lab = await make_lab(2)
    lab.broken = True
    await lab.join()
    web = Service(lab, "web", "10.0.1.2", PORTS)
    await lab.put(NETWORK, web.entry)
    for number, node in enumerate(lab.nodes, 10):
        await web.add(node, f"10.0.1.{number}")
    node, box = lab.nodes[0], web.replicas[0].sandbox
    await ask(box.netns, FAR, 80)
    overlay = f"{node.config.run_dir}/netns/overlay-{NETWORK.id}"
    places = {"overlay": overlay, "sandbox": box.netns, "machine": f"/run/netns/{node.netns}"}
    bridge = node.networks.inspect("bridge")["Options"]["com.docker.network.bridge.name"]
    assert await node.networks.audit() == []
    for count, (place, command, part) in enumerate(breakages(bridge), 1):
        words = command.replace("NEAR", _near(overlay)).split(" ")
        sh("nsenter", f"--net={places[place]}", *words)
        found = await node.networks.audit()
        assert {item.part for item in found} == {part}, (command, found)
        assert await node.networks.audit() == [], command
        assert node.networks.counts.repairs == count
    assert node.networks.counts.differences.keys() == {"overlay", "sandbox", "ports", "mesh"}
    assert (await ask(box.netns, "10.0.1.2", 80, 40)).keys() == {"web.10", "web.11"}
    client = f"{lab.prefix}-client"
    assert (await ask(client, node.address, 8080, 40)).keys() == {"web.10", "web.11"}


def _near(overlay: str) -> str:
    """The bridge's port of the only sandbox."""
    lines = sh("nsenter", f"--net={overlay}", "ip", "-br", "link", "show", "type", "veth")
    return lines.split("@")[0].split()[0]


async def test_a_firewall_reload_is_noticed_without_any_change(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour 257: published ports and ways out are back soon after the host's rules went."""
    monkeypatch.setattr(network_part, "_WATCH_S", 0.02)
    lab = await make_lab(1)
    lab.broken = True
    await lab.join()
    web = Service(lab, "web", "10.0.1.2", PORTS)
    await lab.put(NETWORK, web.entry)
    await web.add(lab.nodes[0], "10.0.1.10")
    node = lab.nodes[0]
    await node.networks.close()
    node.networks = lab.make_networks(node)
    await node.networks.open()
    sh("nsenter", f"--net=/run/netns/{node.netns}", "nft", "flush", "ruleset")
    async with asyncio.timeout(DEADLINE_S):
        while not node.networks.counts.repairs:
            await asyncio.gather(*node.networks._running)
            await asyncio.sleep(0)
    assert await ask(f"{lab.prefix}-client", node.address, 8080, 5) == {"web.10": 5}


async def test_what_was_believed_of_the_table_wrongly_is_mended_as_well(make_lab: MakeLab) -> None:
    """A mistake of our own: an index of the table, a group, a port that nobody has any more."""
    lab = await make_lab(1)
    lab.broken = True
    await lab.join()
    web = Service(lab, "web", "10.0.1.2", PORTS)
    await lab.put(NETWORK, web.entry)
    await web.add(lab.nodes[0], "10.0.1.10")
    networks = lab.nodes[0].networks
    machine = networks._machine
    machine._table.publish((), {("tcp", 9999): {("10.192.4.9", 80)}})
    assert {item.part for item in await networks.audit()} == {"ports"}
    machine._groups[NETWORK.id].members.clear()
    machine._sandboxes["box-web.10"].load(machine._groups[NETWORK.id])
    assert {item.part for item in await networks.audit()} == {"sandbox"}
    networks._table._names.clear()
    assert {item.part for item in await networks.audit()} == {"names"}
    assert await networks.audit() == []
