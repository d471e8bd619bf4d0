"""Plans: what they say, that they write nothing, and that it happens so."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, NotFound
from common.model.node import Availability
from common.model.service import ReplicatedService, Service, ServiceMode, UpdateConfig
from common.model.task import Task
from manager.api.nodes import Nodes
from manager.plan.plan import Plan, Planner
from tests.support import build
from tests.support.fake_agents import running
from tests.support.memory_proposer import LoopClock
from tests.unit.orchestrator.conftest import World


def planner(world: World) -> Planner:
    return Planner(world.store, LoopClock())


async def plan_create(world: World, name: str = "web", **settings: Any) -> Plan:
    _, write = world.services.creation(build.service(name, **settings).spec)
    return await planner(world).plan(write)


async def plan_spec(world: World, service: Service, **changes: Any) -> Plan:
    current = world.services.get(service.id)
    template = current.spec.task_template
    if image := changes.pop("image", ""):
        container = replace(template.container_spec, image=image)  # type: ignore[type-var]
        template = replace(template, container_spec=container)
    if replicas := changes.pop("replicas", 0):
        changes["mode"] = ServiceMode(replicated=ReplicatedService(replicas=replicas))
    spec = replace(current.spec, task_template=template, **changes)
    return await planner(world).plan(world.services.change(service.id, current.version.index, spec))


async def plan_drain(world: World, id: str) -> Plan:
    nodes = Nodes(world.store, LoopClock(), list)
    node = nodes.get(id)
    spec = replace(node.spec, availability=Availability.DRAIN)
    return await planner(world).plan(nodes.change(id, node.version.index, spec))


def said(plan: Plan) -> list[tuple[str, int, str, str]]:
    return [(step.action, step.slot, step.from_node, step.to_node) for step in plan.steps]


def placed(world: World) -> dict[tuple[str, int], str]:
    tasks = running(world.tasks())
    return {(task.service_annotations.name, task.slot): task.node_id for task in tasks}


async def test_create_says_where_and_writes_nothing(whole: World) -> None:
    await asyncio.sleep(1)
    before = whole.store.version
    plan = await plan_create(whole, replicas=4)
    assert plan.counts == {"create": 4, "replace": 0, "move": 0, "stop": 0, "wait": 0}
    assert whole.store.version == before
    assert not whole.tasks()
    web = await whole.create(replicas=4)
    await whole.all_running(web, 4)
    nodes = [step.to_node for step in plan.steps]
    assert sorted(nodes) == sorted(placed(whole).values())


async def test_what_does_not_fit_waits_and_says_why(whole: World) -> None:
    plan = await plan_create(whole, replicas=2, constraints=["node.labels.zone==moon"])
    assert [step.action for step in plan.steps] == ["wait", "wait"]
    reason = "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    assert {step.reason for step in plan.steps} == {reason}
    full = await plan_create(whole, replicas=7, memory=4 * build.GIB)
    assert (
        full.counts["wait"] == full.counts["create"] + full.counts["wait"] - full.counts["create"]
    )
    assert full.counts["wait"] > 0
    assert "insufficient resources" in full.steps[-1].reason or any(
        "insufficient resources" in step.reason for step in full.steps
    )


async def test_global_services_and_errors(whole: World) -> None:
    plan = await plan_create(whole, "agent", global_=True)
    assert said(plan) == [("create", 0, "", f"n{i}") for i in (1, 2, 3)]
    with pytest.raises(NotFound):
        await plan_create(whole, networks=["nowhere"])
    with pytest.raises(Invalid):
        await plan_create(whole, replicas=-1)
    web = await whole.create()
    with pytest.raises(Conflict):
        await plan_create(whole, "web")
    with pytest.raises(Conflict, match="out of sequence"):
        await planner(whole).plan(whole.services.change(web.id, 1 << 40, web.spec))


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
async def test_update_with_delays_is_played_to_its_end(whole: World, order: str) -> None:
    hour = 3600 * 10**9
    slow = UpdateConfig(parallelism=1, delay=hour, monitor=hour, order=order)
    web = await whole.create(replicas=6, update=slow)
    await whole.all_running(web, 6)
    plan = await plan_spec(whole, web, image="web:2")
    assert plan.counts["replace"] + plan.counts["move"] == 6 == len(plan.steps)
    assert not (await plan_spec(whole, web, labels={"a": "b"})).steps
    assert whole.images(web) == ["web:1"] * 6


async def test_scale_up_and_down_as_it_really_goes(whole: World) -> None:
    web = await whole.create(replicas=3)
    await whole.all_running(web, 3)
    up = await plan_spec(whole, web, replicas=5)
    assert [step.slot for step in up.steps] == [4, 5]
    before = placed(whole)
    down = await plan_spec(whole, web, replicas=1)
    assert down.counts["stop"] == 2 == len(down.steps)
    await whole.update(web, mode=ServiceMode(replicated=ReplicatedService(replicas=1)))
    await whole.all_running(web, 1)
    stopped = {("web", step.slot): step.from_node for step in down.steps}
    assert stopped == {key: node for key, node in before.items() if key not in placed(whole)}


async def test_drain_moves_and_tells_what_has_no_place(whole: World) -> None:
    web = await whole.create(replicas=6)
    bound = await whole.create("bound", constraints=["node.hostname==n1"])
    everywhere = await whole.create("agent", global_=True)
    await whole.all_running(web, 6)
    await whole.all_running(bound, 1)
    await whole.all_running(everywhere, 3)
    there = [t for t in running(whole.tasks()) if t.node_id == "n1" and t.service_id == web.id]
    plan = await plan_drain(whole, "n1")
    assert plan.counts == {
        "create": 0,
        "replace": 0,
        "move": len(there),
        "stop": 1,
        "wait": 1,
    }
    assert {step.from_node for step in plan.steps} == {"n1"}
    waiting = next(step for step in plan.steps if step.action == "wait")
    assert waiting.service == "bound"
    assert waiting.reason.startswith("no suitable node (")
    assert not (await plan_drain(whole, "n1")).counts["create"]
    moves = {step.slot: step.to_node for step in plan.steps if step.action == "move"}
    await whole.node("n1", availability=Availability.DRAIN)
    await whole.all_running(web, 6)
    assert sorted(moves.values()) == sorted(placed(whole)["web", slot] for slot in moves)


async def test_what_others_are_in_the_midst_of_is_not_in_the_plan(whole: World) -> None:
    """Tasks that wait for a place, or are about to get one, are not this change's doing."""
    stuck = await whole.create("stuck", constraints=["node.labels.zone==moon"])
    await asyncio.sleep(1)
    await whole.leader.kill()
    web = await whole.create(replicas=2)  # nobody has made its tasks yet
    plan = await plan_create(whole, "other", replicas=1)
    assert [(step.service, step.action) for step in plan.steps] == [("other", "create")]
    assert {t.service_id for t in whole.store.view().find(Task)} == {stuck.id}
    assert web.id != stuck.id


async def test_a_change_that_gives_another_its_room_says_so(whole: World) -> None:
    big = await whole.create("big", replicas=3, memory=6 * build.GIB)
    await whole.all_running(big, 3)
    late = await whole.create("late", memory=6 * build.GIB)
    await asyncio.sleep(1)
    assert not running(whole.tasks(late.id))
    plan = await plan_spec(whole, big, replicas=2)
    assert sorted((step.service, step.action) for step in plan.steps) == [
        ("big", "stop"),
        ("late", "create"),
    ]
