"""Running tasks are moved to emptier nodes: asked for, and by the cluster itself."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid
from common.ids import Ids
from common.model import labels
from common.model.cluster import Cluster
from common.model.mounts import Mount
from common.model.node import Availability
from common.model.service import Service, UpdateConfig
from common.model.task import ContainerSpec, Task, TaskState
from manager.allocator.allocator import Allocator
from manager.api import cluster as cluster_api
from manager.api.rebalancing import Rebalancing
from manager.control import Loop
from manager.orchestrator.rebalance import Rebalancer
from manager.scheduler.scheduler import Scheduler
from tests.support import build
from tests.support.fake_agents import Leader, running, until
from tests.support.memory_proposer import memory_store
from tests.unit.orchestrator.conftest import World

FAST = UpdateConfig(parallelism=1, monitor=0)


@pytest.fixture
async def moving() -> AsyncIterator[World]:
    """Three nodes, n3 drained, with the loop that moves tasks."""

    def others() -> list[Loop]:
        scheduler = Scheduler()
        return [Allocator(), scheduler, Rebalancer(lambda: scheduler.nodes)]

    store = memory_store(delay_s=0.005)
    world = World(store)
    world.agents.full = True
    world.leader = Leader(store, Ids(random.Random(2)), others)
    await world.put(build.cluster(), *(build.node(f"n{i}", index=i) for i in (1, 2, 3)))
    await world.node("n3", availability=Availability.DRAIN)
    agents = asyncio.get_running_loop().create_task(world.agents.run())
    world.leader.start()
    yield world
    await world.leader.kill()
    agents.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await agents
    await store.close()


def counts(world: World, service: Service) -> dict[str, int]:
    return dict(Counter(task.node_id for task in running(world.tasks(service.id))))


async def balanced(world: World, service: Service, **wanted: int) -> None:
    await until(
        world.store,
        lambda view: (
            Counter(t.node_id for t in running(view.find(Task, service_id=service.id))) == wanted
            and not any(t.leaving for t in running(view.find(Task)))
        ),
        f"{wanted}",
    )


async def allow(world: World, moves: int) -> None:
    cluster = world.store.view().find(Cluster)[0]
    spec = replace(cluster.spec, labels={labels.REBALANCE: str(moves)})
    await world.put(replace(cluster, spec=spec))


def with_volume() -> ContainerSpec:
    mount = Mount(type="volume", source="data", target="/data")
    return ContainerSpec(image="db:1", mounts=(mount,))


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
async def test_on_request_by_the_rules_of_updates(moving: World, order: str) -> None:
    web = await moving.create(replicas=6, update=replace(FAST, parallelism=2, order=order))
    await moving.all_running(web, 6)
    await moving.node("n3", availability=Availability.ACTIVE)
    await asyncio.sleep(120)
    assert counts(moving, web) == {"n1": 3, "n2": 3}  # not by itself
    api = Rebalancing(moving.store)
    dry = await api.service("web", dry=True)
    assert not any(task.leaving for task in moving.tasks())
    told = await api.service("web")
    assert told == dry
    assert [move.to_node for move in told] == ["n3", "n3"]
    least = 6
    with moving.store.watch() as watcher:
        service = await moving.state(web, "updating")
        assert service.update_status is not None
        assert service.update_status.rebalancing
        while counts(moving, web) != {"n1": 2, "n2": 2, "n3": 2}:
            await watcher.wait(60)
            watcher.take()
            tasks = moving.tasks(web.id)
            up = {task.slot for task in tasks if task.status.state is TaskState.RUNNING}
            least = min(least, len(up))
    assert least == (6 if order == "start-first" else 4)
    done = await moving.state(web, "completed")
    assert done.update_status is not None
    assert done.update_status.message == "rebalancing completed"
    assert done.spec_version == web.spec_version
    assert await api.service("web") == []


async def test_a_move_that_fails_ends_it_and_rolls_nothing_back(moving: World) -> None:
    rules = UpdateConfig(parallelism=1, failure_action="rollback", order="start-first")
    web = await moving.create(replicas=6, update=rules)
    await moving.all_running(web, 6)
    await moving.update(web, labels={"a": "b"})  # there is a spec to roll back to
    await moving.node("n3", availability=Availability.ACTIVE)
    moving.agents.fails["web:1"] = TaskState.FAILED
    await Rebalancing(moving.store).service("web")
    done = await moving.state(web, "completed")
    assert done.update_status is not None
    assert done.update_status.message.startswith("rebalancing ended early due to failure")
    assert done.spec.labels == {"a": "b"}
    assert not any(task.leaving for task in running(moving.tasks()))
    await asyncio.sleep(60)
    assert counts(moving, web) == {"n1": 3, "n2": 3}


async def test_the_cluster_moves_so_many_a_minute(moving: World) -> None:
    await allow(moving, 2)
    web = await moving.create(replicas=12, update=FAST)
    await moving.all_running(web, 12)
    await moving.node("n3", availability=Availability.ACTIVE)
    began = moving.now
    await until(moving.store, lambda view: any(t.leaving for t in view.find(Task)), "a move")
    assert 29 < moving.now - began < 31  # nodes have to be calm
    await balanced(moving, web, n1=5, n2=5, n3=2)
    assert moving.now - began < 40
    await moving.leader.kill()
    moving.leader.start()
    await balanced(moving, web, n1=4, n2=4, n3=4)
    assert 60 <= moving.now - began < 100
    await asyncio.sleep(60)
    version = moving.store.version
    await asyncio.sleep(600)
    assert moving.store.version == version


async def test_who_is_left_alone(moving: World) -> None:
    """Volumes, who says off, global services, jobs; the label lets volumes move all the same."""
    api = Rebalancing(moving.store)
    db = await moving.create("db", replicas=4, update=FAST, container_spec=with_volume())
    off = await moving.create("off", replicas=4, update=FAST, labels={labels.REBALANCE: "off"})
    everywhere = await moving.create("agent", global_=True)
    for service in (db, off):
        await moving.all_running(service, 4)
    await moving.node("n3", availability=Availability.ACTIVE)
    await moving.all_running(everywhere, 3)
    await allow(moving, 100)
    await asyncio.sleep(300)
    assert counts(moving, db) == counts(moving, off) == {"n1": 2, "n2": 2}
    assert await api.node("n3") == []
    for name, why in (("db", "volumes"), ("off", "label says so"), ("agent", "not replicated")):
        with pytest.raises(Conflict, match=why):
            await api.service(name)
    assert len(await api.service("off", force=True)) == 2
    await balanced(moving, off, n1=1, n2=1, n3=2)  # n3 has the fewest tasks of all
    await moving.update(db, labels={labels.REBALANCE: "on"})
    await until(
        moving.store,
        lambda view: any(t.node_id == "n3" for t in running(view.find(Task, service_id=db.id))),
        "db may move now",
    )


async def test_to_a_node_and_not_while_an_update_is_under_way(moving: World) -> None:
    api = Rebalancing(moving.store)
    services = [await moving.create(f"s{i}", update=FAST) for i in range(9)]
    for service in services:
        await moving.all_running(service, 1)
    with pytest.raises(Conflict, match="takes no tasks"):
        await api.node("n3")
    await moving.node("n3", availability=Availability.ACTIVE)
    assert len(await api.node("n3")) == 3
    await until(
        moving.store,
        lambda view: sum(t.node_id == "n3" for t in running(view.find(Task))) == 3,
        "three on n3",
    )
    slow = await moving.create("slow", replicas=2, update=UpdateConfig(delay=3600 * 10**9))
    await moving.all_running(slow, 2)
    await moving.update(slow, image="web:2")
    await moving.state(slow, "updating")
    with pytest.raises(Conflict, match="under way"):
        await api.service("slow")


async def test_an_update_during_a_rebalancing_takes_over(moving: World) -> None:
    web = await moving.create(replicas=6, update=UpdateConfig(parallelism=1, monitor=10**9))
    await moving.all_running(web, 6)
    await moving.node("n3", availability=Availability.ACTIVE)
    await Rebalancing(moving.store).service("web")
    await moving.state(web, "updating")
    await moving.update(web, image="web:2")
    done = await moving.state(web, "completed")
    assert done.update_status is not None
    assert not done.update_status.rebalancing
    assert moving.images(web) == ["web:2"] * 6


def test_labels_of_the_cluster_are_checked() -> None:
    for bad in ({labels.REBALANCE: "many"}, {"shoal.rebalanse": "1"}):
        with pytest.raises(Invalid):
            cluster_api.check(replace(build.cluster().spec, labels=bad))
    cluster_api.check(replace(build.cluster().spec, labels={labels.REBALANCE: "6", "a": "b"}))
