"""Services that depend on others: when they start, what they say meanwhile, and their updates."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Invalid
from common.model import labels
from common.model.node import NodeState
from common.model.service import ReplicatedJob, Service, ServiceMode, UpdateConfig
from common.model.task import RestartPolicy, Task, TaskState
from manager.orchestrator import ordering
from manager.store.store import View
from tests.support import build
from tests.support.fake_agents import image_of, running, until
from tests.unit.orchestrator.conftest import World

FAST = UpdateConfig(parallelism=1, monitor=0)


def after(*what: str) -> dict[str, str]:
    return {labels.DEPENDS_ON: ",".join(what)}


def waiting(view: View, service: Service) -> set[str]:
    """What the tasks of `service` say that they wait for."""
    tasks = view.find(Task, service_id=service.id)
    return {task.status.err for task in tasks if task.waits_for}


async def says(world: World, service: Service, text: str) -> None:
    await until(world.store, lambda view: waiting(view, service) == {text}, text)


async def job(world: World, name: str) -> Service:
    spec = build.service(name).spec
    mode = ServiceMode(replicated_job=ReplicatedJob(total_completions=2, max_concurrent=1))
    return await world.services.create(replace(spec, mode=mode))


@pytest.mark.parametrize("everywhere", [False, True])
async def test_starts_when_all_it_depends_on_is_as_it_should(
    whole: World, everywhere: bool
) -> None:
    wants = after("db:healthy", "init:completed")
    web = await whole.create(replicas=3, global_=everywhere, labels=wants)
    await says(
        whole, web, "waits for service db, which does not exist, service init, which does not exist"
    )
    assert all(task.status.state is TaskState.NEW for task in whole.tasks(web.id))
    db = await whole.create("db")
    await says(whole, web, "waits for service init, which does not exist")
    init = await job(whole, "init")
    await says(whole, web, "waits for service init (completed)")
    await whole.all_running(web, 3)
    done = [task for task in whole.tasks(init.id) if task.status.state is TaskState.COMPLETE]
    assert len(done) == 2
    assert len(running(whole.tasks(db.id))) == 1
    assert {task.status.err for task in whole.tasks(web.id)} == {""}


async def test_a_new_leader_goes_on_waiting(whole: World) -> None:
    web = await whole.create(labels=after("db"))
    await says(whole, web, "waits for service db, which does not exist")
    await whole.leader.kill()
    await whole.create("db")
    whole.leader.start()
    await whole.all_running(web, 1)


async def test_what_fails_to_become_healthy_is_waited_for(whole: World) -> None:
    whole.agents.fails["bad:1"] = TaskState.FAILED
    web = await whole.create(labels=after("db:healthy"))
    db = await whole.create("db", image="bad:1")
    await asyncio.sleep(60)
    assert waiting(whole.store.view(), web) == {"waits for service db (healthy)"}
    await whole.update(db, image="good:1")
    await whole.all_running(web, 1)


async def test_tasks_that_ended_well_complete_a_service(whole: World) -> None:
    whole.agents.fails["once:1"] = TaskState.COMPLETE
    web = await whole.create(labels=after("init:completed"))
    never = RestartPolicy(condition="none")
    await whole.create("init", image="once:1", replicas=2, restart=never)
    await whole.all_running(web, 1)


async def test_what_runs_stays_and_what_follows_it_waits(whole: World) -> None:
    """The dependency's node is lost: web runs on; its next task waits until db runs again."""
    db = await whole.create("db", constraints=["node.hostname==n1"])
    web = await whole.create(labels=after("db:healthy"), constraints=["node.hostname==n2"])
    await whole.all_running(web, 1)
    await whole.node("n1", state=NodeState.DOWN)
    await asyncio.sleep(30)
    assert len(running(whole.tasks(web.id))) == 1
    task = running(whole.tasks(web.id))[0]
    status = replace(task.status, state=TaskState.FAILED)
    await whole.put(replace(task, status=status))
    await says(whole, web, "waits for service db (healthy)")
    await whole.node("n1", state=NodeState.READY)
    await whole.all_running(db, 1)
    await whole.all_running(web, 1)


async def test_updates_go_in_order(whole: World) -> None:
    """The old tasks of web run until the update of db is over; web says what it waits for."""
    slow = UpdateConfig(parallelism=1, delay=20 * 10**9, monitor=0)
    db = await whole.create("db", replicas=3, update=slow)
    web = await whole.create(replicas=2, labels=after("db:healthy"), update=FAST)
    await whole.all_running(web, 2)
    await whole.update(db, image="db:2")
    await whole.update(web, image="web:2")
    await whole.state(db, "updating")
    service = await whole.state(web, "updating")
    assert service.update_status is not None
    assert service.update_status.message == "update waits for the update of service db"
    seen: list[str] = []
    with whole.store.watch() as watcher:
        await whole.state(web, "completed")
        for event in watcher.take():
            if isinstance(event.object, Service) and event.object.update_status:
                seen.append(f"{event.object.spec.name} {event.object.update_status.state}")
            elif isinstance(event.object, Task) and image_of(event.object) == "web:2":
                seen.append("web:2")
    assert seen.index("db completed") < seen.index("web:2")
    assert len(running(whole.tasks(web.id), "web:2")) == 2


async def test_a_task_that_fails_during_an_update_of_the_dependency_is_replaced(
    whole: World,
) -> None:
    slow = UpdateConfig(parallelism=1, delay=600 * 10**9, monitor=0)
    db = await whole.create("db", replicas=3, update=slow)
    web = await whole.create(replicas=1, labels=after("db:healthy"), update=FAST)
    await whole.all_running(web, 1)
    await whole.update(db, image="db:2")
    await whole.state(db, "updating")
    task = running(whole.tasks(web.id))[0]
    await whole.put(replace(task, status=replace(task.status, state=TaskState.FAILED)))
    began = whole.now
    await until(whole.store, lambda view: task not in running(view.find(Task)), "it failed")
    await whole.all_running(web, 1)
    assert whole.now - began < 10


async def test_cycles_are_refused(whole: World) -> None:
    with pytest.raises(Invalid, match="a -> a is a cycle"):
        await whole.create("a", labels=after("a"))
    await whole.create("a", labels=after("b"))
    b = await whole.create("b", labels=after("c:healthy", "z"))
    with pytest.raises(Invalid, match="depends_on: c -> a -> b -> c is a cycle"):
        await whole.create("c", labels=after("a"))
    with pytest.raises(Invalid, match="b -> a -> b is a cycle"):
        await whole.update(b, labels=after("a"))
    await whole.create("c")


def test_names_in_a_stack_are_those_of_its_file() -> None:
    spec = build.service("s_web", labels={ordering.STACK: "s", **after("DB")}).spec
    assert ordering.names(spec) == ["s_db", "db"]


@pytest.mark.parametrize("text", ["db:ready", ":healthy", "db,db:started"])
async def test_what_is_no_dependency(whole: World, text: str) -> None:
    with pytest.raises(Invalid, match=r"label shoal.depends_on: "):
        await whole.create(labels=after(text))


async def test_no_label_no_change(world: World) -> None:
    kinds: Any = build.service("a").spec
    assert ordering.waits(world.store.view(), Service(id="a", spec=kinds)) is ordering.NOTHING
