"""Overlays, virtual IPs and names across machines: behaviours 251, 254, 259."""

import pytest

from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import NETWORK, Service, ask, resolve, run

pytestmark = pytest.mark.root


async def test_a_service_is_reached_by_address_vip_and_name_on_every_node(
    make_lab: MakeLab,
) -> None:
    """Behaviour 251; the VIP is balanced evenly over replicas on all nodes."""
    lab = await make_lab(3)
    await lab.join()
    web = Service(lab, "web", "10.0.1.2")
    await lab.put(NETWORK, web.entry)
    for number, node in enumerate(lab.nodes * 2, 10):
        await web.add(node, f"10.0.1.{number}")
    names = {replica.endpoint.task_name for replica in web.replicas}
    for replica in web.replicas[:3]:
        netns = replica.sandbox.netns
        for other in web.replicas:
            assert await ask(netns, other.endpoint.address, 80) == {other.endpoint.task_name: 1}
        answers = await ask(netns, "10.0.1.2", 80, 300)
        assert answers.keys() == names
        assert all(25 <= count <= 80 for count in answers.values()), answers
        assert await resolve(netns, "web") == (0, ["10.0.1.2"])
        addresses = sorted(item.endpoint.address for item in web.replicas)
        assert await resolve(netns, "tasks.web") == (0, addresses)
        assert await resolve(netns, "web.12", how="tcp") == (0, ["10.0.1.12"])
    assert {name for name, _ in await run(netns, "ask-udp", "10.0.1.2", "80", "60")} == names
