"""How a VIP shares out what comes: evenly, also to whoever asks, at all ports."""

from collections import Counter

import pytest

from tests.kernel.network.conftest import MakeLab
from tests.kernel.network.rig import NETWORK, Service, ask, run, sh

pytestmark = pytest.mark.root


async def test_a_vip_is_even_within_five_in_a_hundred_and_serves_those_behind_it(
    make_lab: MakeLab,
) -> None:
    """Each backend is drawn alone, so the deviation of 10,000 flows to two is 50. UDP sockets, each
    a flow of its own, take the same way as TCP connections, and less time."""
    lab = await make_lab(2)
    await lab.join()
    web = Service(lab, "web", "10.0.1.2")
    await lab.put(NETWORK, web.entry)
    replicas = [
        await web.add(node, f"10.0.1.{number}") for number, node in enumerate(lab.nodes, 10)
    ]
    for replica in replicas:
        await lab.serve(replica.sandbox, f"{replica.endpoint.task_name}:81", 81)
    netns = replicas[0].sandbox.netns  # behind the VIP itself
    answers = Counter(name for name, _ in await run(netns, "ask-udp", "10.0.1.2", "80", "10000"))
    assert answers.keys() == {"web.10", "web.11"}
    assert all(4750 <= count <= 5250 for count in answers.values()), answers
    assert (await ask(netns, "10.0.1.2", 80, 30)).keys() == {"web.10", "web.11"}
    assert (await ask(netns, "10.0.1.2", 81, 30)).keys() == {"web.10:81", "web.11:81"}
    for node in lab.nodes:  # the overlay's own packets cost the machine no entry for each flow
        where = f"--net=/run/netns/{node.netns}"
        assert "4789" not in sh("nsenter", where, "conntrack", "-L", "-p", "udp")
