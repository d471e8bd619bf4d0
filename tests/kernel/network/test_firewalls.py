"""The machine's own firewall: what it drops, what it loses, and what is left of us in it."""

import msgspec
import pytest

from common.protocol.network import PublishedPort
from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import NETWORK, Node, Service, ask, seen_from, sh
from worker.network.model import SandboxSpec

pytestmark = pytest.mark.root

# As ufw has it: what is not allowed is dropped, coming in and forwarded. Overlays need their port.
UFW = """
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p udp --dport 4789 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


def inside(node: Node, *words: str) -> str:
    return sh("nsenter", f"--net=/run/netns/{node.netns}", *words)


def reload_firewall(node: Node) -> None:
    """What the admin's tool does: everything that was in the chains is replaced."""
    file = node.directory / "rules"
    file.write_text(UFW)
    inside(node, "iptables-nft-restore", str(file))


async def test_containers_and_ports_work_behind_a_firewall_that_drops_what_is_forwarded(
    make_lab: MakeLab,
) -> None:
    """Also after it is loaded anew, and it has nothing of ours in it after we have gone."""
    lab = await make_lab(2)
    lab.broken = True
    await lab.join()
    first, second = lab.nodes
    web = Service(lab, "web", "", (PublishedPort(protocol="tcp", published=8080, target=80),))
    await lab.put(NETWORK, web.entry)
    replica = await web.add(first, "10.0.1.10")
    box = await second.networks.open_sandbox(SandboxSpec(id="box"))
    client = f"{lab.prefix}-client"
    await lab.serve(msgspec.structs.replace(box, netns=client), "outside")
    for _ in range(2):
        for node in lab.nodes:
            reload_firewall(node)
            found = await node.networks.audit()
            assert {item.part for item in found} == {"firewall"}
            assert await node.networks.audit() == []
        for node in lab.nodes:
            assert await ask(client, node.address, 8080) == {"web.10": 1}
            assert await seen_from(client, node.address, 8080) == {"10.77.0.100"}
            assert await ask(node.netns, "127.0.0.1", 8080) == {"web.10": 1}
        assert await ask(box.netns, "10.77.0.100", 80) == {"outside": 1}
    before = inside(first, "iptables-nft", "--list-rules").splitlines()
    assert sum("shoal" in line for line in before) == 2
    await web.drop(replica)
    await second.networks.close_sandbox("box")
    for node in lab.nodes:
        await node.networks.leave()
        await node.networks.close()
        left = inside(node, "iptables-nft", "--list-rules").splitlines()
        assert left == [line for line in before if "shoal" not in line]
        assert "shoal" not in inside(node, "nft", "list", "ruleset")


async def test_a_chain_made_by_hand_is_left_alone_and_told_of(make_lab: MakeLab) -> None:
    lab = await make_lab(1)
    (node,) = lab.nodes
    hook = "type filter hook forward priority 0; policy drop;"
    file = node.directory / "mine.nft"
    file.write_text(f"table inet mine {{\n chain passing {{\n {hook}\n }}\n}}\n")
    inside(node, "nft", "-f", str(file))
    before = inside(node, "nft", "list", "table", "inet", "mine")
    await node.networks.audit()
    (warning,) = node.networks.warnings
    assert "inet mine passing) drops what is forwarded" in warning
    assert inside(node, "nft", "list", "table", "inet", "mine") == before
    inside(node, "nft", "delete", "table", "inet", "mine")
    await node.networks.audit()
    assert node.networks.warnings == ()
