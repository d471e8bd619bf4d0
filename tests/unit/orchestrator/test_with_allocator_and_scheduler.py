"""The orchestrators beside the real allocator and scheduler: the seams between the loops."""

import asyncio
import random

from common.ids import Ids
from common.model.network import Network
from common.model.node import Availability, Node
from common.model.service import UpdateConfig
from common.model.task import PortConfig, RestartPolicy, Task, TaskState
from manager.api.networks import Networks
from tests.support import build
from tests.support.fake_agents import running, until
from tests.unit.orchestrator.conftest import World


async def test_the_life_of_a_service(whole: World) -> None:
    """Created, updated under load, drained, removed; its network after it."""
    networks = Networks(whole.store, Ids(random.Random(3)))
    net = await networks.create(build.network("front").spec)
    began = whole.now
    web = await whole.create(
        replicas=20,
        networks=["front"],
        ports=[PortConfig(target_port=80, published_port=8080)],
        update=UpdateConfig(parallelism=5, monitor=0),
    )
    await whole.all_running(web, 20)
    assert whole.now - began < 0.5
    addresses = {task.networks_attachments[0].addresses for task in running(whole.tasks())}
    assert len(addresses) == 20

    began = whole.now
    await whole.update(web, image="web:2")
    await whole.state(web, "completed")
    assert whole.now - began < 3.5
    assert whole.images(web) == ["web:2"] * 20

    await whole.node("n1", availability=Availability.DRAIN)
    await whole.all_running(web, 20, "web:2")

    await whole.services.remove(web.id)
    await networks.remove("front")
    await until(whole.store, lambda view: not view.find(Task), "all tasks are deleted")
    await until(whole.store, lambda view: view.get(Network, net.id) is None, "and the network")


async def test_what_was_asked_for_before_any_node_came_starts_when_one_does(whole: World) -> None:
    """NOD 228."""
    nodes = whole.store.view().find(Node)
    await whole.store.update(lambda tx: [tx.delete(Node, node.id) for node in nodes])
    web, everywhere = await whole.create(replicas=2), await whole.create("agent", global_=True)
    await asyncio.sleep(60)
    assert {task.status.err for task in whole.tasks()} == {"no suitable node"}
    await whole.put(build.node("late"))
    await whole.all_running(web, 2)
    await whole.all_running(everywhere, 1)


async def test_global_service_that_does_not_fit(whole: World) -> None:
    web = await whole.create(global_=True, memory=6 * build.GIB)
    await whole.all_running(web, 3)
    other = await whole.create("other", global_=True, memory=6 * build.GIB)
    await asyncio.sleep(10)
    waiting = [task for task in whole.tasks(other.id) if task.status.state is TaskState.PENDING]
    assert len(waiting) == 3
    assert all(task.status.err for task in waiting)
    await whole.services.remove(web.id)
    await whole.all_running(other, 3)


async def test_an_update_of_what_fills_its_nodes(whole: World) -> None:
    """Stop-first: the new task fits only once the old one has stopped."""
    web = await whole.create(
        replicas=3, memory=6 * build.GIB, update=UpdateConfig(monitor=0, parallelism=2)
    )
    await whole.all_running(web, 3)
    await whole.update(web, image="web:2")
    await whole.state(web, "completed")
    assert whole.images(web) == ["web:2"] * 3


async def test_tasks_that_never_got_a_place_are_cleaned(whole: World) -> None:
    web = await whole.create(constraints=["node.labels.none == x"], restart=RestartPolicy())
    await asyncio.sleep(1)
    assert [task.status.state for task in whole.tasks()] == [TaskState.PENDING]
    await whole.update(web, image="web:2", task={"placement": None})
    await whole.all_running(web, 1, "web:2")
    await until(
        whole.store,
        lambda view: all(task.status.state >= TaskState.RUNNING for task in view.find(Task)),
        "the task without a place is closed",
    )
    await whole.services.remove(web.id)
    await until(whole.store, lambda view: not view.find(Task), "all tasks are deleted")
