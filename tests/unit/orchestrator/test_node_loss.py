"""Graded loss of nodes: how long a service waits for one, and what is kept when it returns."""

import asyncio

import pytest

from common.model import labels
from common.model.node import Availability, Node, NodeState
from common.model.task import Task, TaskState
from tests.support.fake_agents import running, until
from tests.unit.orchestrator.conftest import World

WAITS = {labels.LOSS_GRACE: "2m"}


@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_node_that_returns_in_time_keeps_its_tasks(world: World, everywhere: bool) -> None:
    web = await world.create(replicas=6, global_=everywhere, labels=WAITS)
    count = 3 if everywhere else 6
    await world.all_running(web, count)
    before = {task.id for task in world.tasks()}
    await world.node("n1", state=NodeState.DOWN)
    await asyncio.sleep(119)
    await world.node("n1", state=NodeState.READY)
    await asyncio.sleep(600)
    assert {task.id for task in running(world.tasks())} == before


@pytest.mark.parametrize("everywhere", [False, True])
async def test_tasks_are_replaced_when_the_grace_is_over(world: World, everywhere: bool) -> None:
    """Also by a leader that did not see the node go down."""
    web = await world.create(replicas=6, global_=everywhere, labels=WAITS)
    await world.all_running(web, 3 if everywhere else 6)
    old = {task.id for task in world.tasks() if task.node_id == "n1"}
    await world.node("n1", state=NodeState.DOWN)
    began = world.now
    await asyncio.sleep(60)
    await world.leader.kill()
    world.leader.start()

    def gave_up(tasks: list[Task]) -> bool:
        given_up = [task for task in tasks if task.desired_state is TaskState.SHUTDOWN]
        return {task.id for task in given_up} == old

    await until(world.store, lambda view: gave_up(view.find(Task)), "n1's tasks are given up")
    assert 119.9 < world.now - began < 121
    await world.all_running(web, 2 if everywhere else 6)
    await world.node("n1", state=NodeState.READY)
    await world.all_running(web, 3 if everywhere else 6)
    assert not old & {task.id for task in running(world.tasks())}


async def test_a_drained_or_removed_node_is_not_waited_for(world: World) -> None:
    web = await world.create(replicas=6, labels=WAITS)
    await world.all_running(web, 6)
    await world.node("n1", state=NodeState.DOWN)
    await world.node("n1", availability=Availability.DRAIN)
    await world.all_running(web, 6)
    assert world.now < 5
    await world.store.update(lambda tx: tx.delete(Node, "n2"))
    await until(
        world.store,
        lambda view: {t.node_id for t in running(view.find(Task))} == {"n3"},
        "all on n3",
    )
    assert world.now < 10


async def test_what_is_on_a_lost_node_does_not_count_as_running(world: World) -> None:
    web = await world.create(replicas=6, labels=WAITS)
    await world.all_running(web, 6)
    await world.node("n1", state=NodeState.DOWN)
    status = world.services.statuses()[web.id]
    assert (status.running_tasks, status.desired_tasks) == (4, 6)
