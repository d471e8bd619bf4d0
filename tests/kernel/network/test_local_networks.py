"""Networks of one machine: apart from each other, live changes, crashes, firewalls of others."""

import asyncio
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from common.model.network import IPAM, IPAMConfig, NetworkSpec
from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import Lab, resolve, run, sh
from worker.network import local_spec
from worker.network.model import (
    ENDPOINT_SYSCTLS,
    Attachment,
    HostPort,
    Sandbox,
    SandboxSpec,
)
from worker.network.networks import Networks

pytestmark = pytest.mark.root

WEB = (HostPort(protocol="tcp", published=8080, target=80),)


def item(networks: Networks, name: str, **more: Any) -> Attachment:
    row = networks.inspect(name)
    return Attachment(network_id=row["Id"], network_name=name, **more)


async def box(
    lab: Lab, name: str, *networks: str | Attachment, ports: tuple[HostPort, ...] = ()
) -> Sandbox:
    """A sandbox with a server in it that says its name."""
    here = lab.nodes[0].networks
    items = tuple(item(here, one) if isinstance(one, str) else one for one in networks)
    spec = SandboxSpec(id=f"box-{name}", name=name, attachments=items, host_ports=ports)
    made = await here.open_sandbox(spec)
    await lab.serve(made, name)
    return made


def at(sandbox: Sandbox, network: str) -> str:
    found = {one.network_name: one.address.split("/")[0] for one in sandbox.interfaces}
    return found[network]


async def reaches(netns: str, wanted: Iterable[str], *others: str) -> None:
    """A client there reaches all of `wanted` and none of `others`."""
    expected = sorted(wanted)
    assert await run(netns, "probe", str(len(expected)), *expected, *others) == expected


async def make(lab: Lab, name: str, subnet: str, **more: Any) -> None:
    ipam = IPAM(config=(IPAMConfig(subnet=subnet),))
    spec = NetworkSpec(name=name, ipam=ipam, **more)
    await lab.nodes[0].networks.create(spec, f"{name}{'0' * 64}"[:64])


async def test_bridges_are_apart_and_published_ports_lead_in(make_lab: MakeLab) -> None:
    """Also with a firewall that drops what is forwarded, which gets a way through and back."""
    lab = await make_lab(1)
    node, client = lab.nodes[0], f"{lab.prefix}-client"
    sh("ip", "-n", client, "route", "add", "172.20.0.0/14", "via", node.address)
    sh("ip", "-n", client, "route", "add", "10.192.0.0/10", "via", node.address)
    await make(lab, "front", "172.20.0.0/24")
    await make(lab, "quiet", "172.21.0.0/24", options={local_spec.ICC: "false"})
    await make(lab, "back", "172.22.0.0/24", internal=True)
    with pytest.raises(Forbidden, match="overlaps"):
        await make(lab, "again", "10.77.0.0/16")
    with pytest.raises(Conflict, match="eth0 is there already"):
        await make(lab, "taken", "172.23.0.0/24", options={local_spec.LINK_NAME: "eth0"})
    web = await box(lab, "web", "front", "back", ports=WEB)
    other = await box(lab, "other", "front")
    quiet = [await box(lab, f"quiet{number}", "quiet") for number in (1, 2)]
    plain, inner = await box(lab, "plain", "bridge"), await box(lab, "inner", "back")
    for firewall in (False, True):
        if firewall:
            lab.broken = True  # a difference is what we make
            sh("ip", "netns", "exec", node.netns, "iptables-nft", "-P", "FORWARD", "DROP")
            assert {found.part for found in await node.networks.audit()} == {"firewall"}
            assert await node.networks.audit() == []
        hidden = f"{at(inner, 'back')}:80"
        unasked, direct = f"{at(web, 'front')}:80", f"{at(plain, 'bridge')}:80"
        port = f"{node.address}:8080"
        await asyncio.gather(
            reaches(other.netns, [unasked, port], hidden),
            reaches(inner.netns, [f"{at(web, 'back')}:80"], port),
            reaches(quiet[0].netns, [port], hidden, unasked, f"{at(quiet[1], 'quiet')}:80"),
            reaches(plain.netns, [port], hidden, unasked),
            reaches(client, [port] if firewall else [port, direct], hidden, unasked,
                    *([direct] if firewall else [])),
            reaches(node.netns, [port, "127.0.0.1:8080"]),
            reaches(web.netns, [port]),
        )  # fmt: skip
    await node.networks.close_sandbox("box-inner")
    await node.networks.close_sandbox("box-web")
    await node.networks.remove("back")
    assert "br-back" not in sh("ip", "-n", node.netns, "link")


async def test_live_changes_survive_a_daemon_that_is_killed_on_the_way(make_lab: MakeLab) -> None:
    lab = await make_lab(1)
    node = lab.nodes[0]
    await make(lab, "one", "172.20.0.0/24")
    await make(lab, "two", "172.21.0.0/24")
    web = await box(lab, "web", "one", ports=WEB)
    peer = await box(lab, "peer", item(node.networks, "two", aliases=("friend",)))
    here = node.networks
    options = {ENDPOINT_SYSCTLS: "net.ipv4.conf.IFNAME.log_martians=1"}
    two = item(here, "two", priority=5, options=options)
    web = await here.reconnect(web.id, (item(here, "one"), two))
    read = ("cat", "/proc/sys/net/ipv4/conf/eth1/log_martians")
    assert sh("nsenter", f"--net={web.netns}", *read) == "1\n"
    wrong = replace(two, network_id="", network_name="bridge",
                    options={ENDPOINT_SYSCTLS: "net.ipv4.conf.IFNAME.nosuch=1"})  # fmt: skip
    with pytest.raises(Invalid, match="nosuch=1 is refused"):
        await here.reconnect(web.id, (item(here, "one"), two, wrong))
    await reaches(web.netns, [f"{at(peer, 'two')}:80"])
    assert await resolve(web.netns, "friend") == (0, [at(peer, "two")])
    assert await resolve(peer.netns, "web") == (0, [at(web, "two")])
    await reaches(node.netns, [f"{node.address}:8080"])
    with pytest.raises(Forbidden, match='active endpoints \\(name:"web"'):
        await here.remove("two")

    # as if killed after the journal had heard of the new networks, and before the kernel did
    boxes = here._machine.boxes
    old = boxes.records[web.id]
    left = here._planner.connected(old, replace(old.spec, attachments=(item(here, "two"),)))
    boxes._journal.put("sandboxes", web.id, replace(left, changing=True))
    sh("ip", "-n", node.netns, "link", "del", "br-two000000000")
    sh("ip", "-n", node.netns, "link", "add", "br-gone", "type", "bridge")
    sh("ip", "-n", node.netns, "link", "set", "br-gone", "alias", f"{here._owner}#{'9' * 64}")
    await lab.restart(node)
    here = node.networks
    await reaches(web.netns, [f"{at(peer, 'two')}:80"])
    links = sh("ip", "netns", "exec", node.netns, "nsenter", f"--net={web.netns}", "ip", "-br", "l")
    assert [line.split("@")[0] for line in links.splitlines()[1:]] == ["eth1"]
    assert "br-gone" not in sh("ip", "-n", node.netns, "link")
    await reaches(node.netns, [f"{node.address}:8080"])
    assert await resolve(peer.netns, "web") == (0, [at(web, "two")])
    assert (await here.reconnect(web.id, ())).interfaces == ()
    assert await here.audit() == []


def has(driver: str) -> bool:
    """Whether this kernel can make such a link."""
    line = f"ip link add t0 type veth && ip link add t1 link t0 type {driver}"
    return not subprocess.run(["unshare", "-n", "sh", "-c", line], capture_output=True).returncode


async def test_a_macvlan_is_on_the_network_of_its_parent(make_lab: MakeLab) -> None:
    """Where the kernel has no such driver, it says so when the network is made."""
    lab = await make_lab(1)
    node, client = lab.nodes[0], f"{lab.prefix}-client"
    for driver in ("ipvlan", "macvlan"):
        wishes = {"driver": driver, "options": {"parent": "eth0"}}
        if not has(driver):
            with pytest.raises(Unavailable, match=f"machine refuses {driver} on eth0"):
                await make(lab, driver, "10.77.0.0/24", **wishes)
            continue
        await make(lab, driver, "10.77.0.0/24", **wishes)
        made = item(node.networks, driver, address="10.77.0.50")
        far = await box(lab, driver, made)
        assert far.interfaces[0].gateway == "10.77.0.1"
        await reaches(client, ["10.77.0.50:80"])
        await node.networks.close_sandbox(far.id)
        await node.networks.remove(driver)
    with pytest.raises(NotFound, match="parent interface eth7 is not on this machine"):
        await make(lab, "far", "10.78.0.0/24", driver="macvlan", options={"parent": "eth7"})
    assert node.networks.local.all() == []
