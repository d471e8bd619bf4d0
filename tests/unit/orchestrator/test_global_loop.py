"""Global services in a cluster of fake agents: GLO 93-103."""

import asyncio

import pytest
from msgspec.structs import replace

from common.model.node import Availability, Node, NodeState
from common.model.service import UpdateConfig
from common.model.task import SECOND, RestartPolicy, Task, TaskState
from tests.support import build
from tests.support.fake_agents import running, until
from tests.unit.orchestrator.conftest import World

FAST = UpdateConfig(monitor=SECOND // 2)


def nodes(world: World) -> list[str]:
    return sorted(task.node_id for task in running(world.tasks()))


async def test_one_task_on_each_fitting_node(world: World) -> None:
    """GLO 93, 94."""
    await world.node("n2", labels={"kind": "edge"})
    everywhere = await world.create("every", global_=True)
    edge = await world.create("edge", global_=True, constraints=["node.labels.kind == edge"])
    await world.all_running(everywhere, 3)
    await world.all_running(edge, 1)
    await world.put(build.node("n4"))
    await world.all_running(everywhere, 4)
    await world.store.update(lambda tx: tx.delete(Node, "n1"))
    await until(world.store, lambda view: not view.find(Task, node_id="n1"), "its task is deleted")
    await world.node("n2", labels={})
    await until(
        world.store, lambda view: not running(view.find(Task, service_id=edge.id)), "edge ends"
    )


async def test_availability(world: World) -> None:
    """GLO 95."""
    web = await world.create(global_=True)
    await world.all_running(web, 3)
    await world.node("n1", availability=Availability.PAUSE)
    await world.node("n2", availability=Availability.DRAIN)
    await asyncio.sleep(10)
    assert nodes(world) == ["n1", "n3"]
    await world.node("n2", availability=Availability.ACTIVE)
    await world.all_running(web, 3)


async def test_a_node_goes_and_comes_back(world: World) -> None:
    """GLO 96: its old task has to stop before a new one starts there."""
    web = await world.create(global_=True)
    await world.all_running(web, 3)
    await world.node("n1", state=NodeState.DOWN)
    await asyncio.sleep(10)
    assert nodes(world) == ["n2", "n3"]
    began = world.now
    await world.node("n1", state=NodeState.READY)
    await world.all_running(web, 3)
    assert world.now - began >= 0.4


async def test_update_leaves_drained_nodes_alone(world: World) -> None:
    """GLO 97."""
    web = await world.create(global_=True, update=FAST)
    await world.all_running(web, 3)
    await world.node("n1", availability=Availability.DRAIN)
    await world.update(web, image="web:2")
    await world.state(web, "completed")
    assert nodes(world) == ["n2", "n3"]
    assert world.images(web) == ["web:2"] * 2


async def test_update_that_fails_is_rolled_back(world: World) -> None:
    world.agents.fails["bad"] = TaskState.FAILED
    web = await world.create(global_=True, update=replace(FAST, failure_action="rollback"))
    await world.all_running(web, 3)
    await world.update(web, image="bad")
    await world.state(web, "rollback_completed")
    assert world.images(web) == ["web:1"] * 3


async def test_remove(world: World) -> None:
    """GLO 98."""
    web = await world.create(global_=True)
    await world.all_running(web, 3)
    await world.services.remove(web.id)
    await until(world.store, lambda view: not view.find(Task), "all tasks are deleted")


@pytest.mark.parametrize(("condition", "again"), [("any", True), ("none", False)])
async def test_restart_policy(world: World, condition: str, again: bool) -> None:
    """GLO 99."""
    web = await world.create(global_=True, restart=RestartPolicy(condition=condition, delay=SECOND))
    await world.all_running(web, 3)
    task = running(world.tasks())[0]
    await world.put(replace(task, status=replace(task.status, state=TaskState.FAILED)))
    await asyncio.sleep(10)
    assert (task.node_id in nodes(world)) is again
    assert len(nodes(world)) == 2 + again


async def test_a_leader_repairs_what_it_finds(world: World) -> None:
    """GLO 100, 102."""
    await world.leader.kill()
    web = build.service(global_=True)
    await world.node("n1", availability=Availability.DRAIN)
    await world.put(
        web,
        *(
            build.task(web, slot=0, id=f"t-{node}", node=node, state=TaskState.RUNNING)
            for node in ("n1", "n2", "gone")
        ),
        build.task(web, slot=0, id="t-n3", node="n3", state=TaskState.REJECTED),
    )
    world.leader.start()
    await world.all_running(web, 2)
    await until(
        world.store,
        lambda view: (
            view.get(Task, "t-gone") is None
            and view.get(Task, "t-n1").status.state is TaskState.SHUTDOWN
        ),  # type: ignore[union-attr]
        "the others are closed",
    )
