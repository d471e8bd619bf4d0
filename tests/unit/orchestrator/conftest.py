"""A cluster for the orchestrators: a store, its loops, and fake agents, in virtual time."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from common.ids import Ids
from common.model.base import Object
from common.model.node import Availability, Node, NodeState
from common.model.service import Service
from common.model.task import Task
from manager.allocator.allocator import Allocator
from manager.api.services import Services
from manager.orchestrator.scene import is_leaving
from manager.scheduler.scheduler import Scheduler
from manager.store.store import Store, View
from tests.support import build
from tests.support.fake_agents import FakeAgents, Leader, image_of, running, until
from tests.support.memory_proposer import LoopClock, memory_store


class World:
    """What a test of the loops works with."""

    def __init__(self, store: Store) -> None:
        ids = Ids(random.Random(1))
        self.store = store
        self.agents = FakeAgents(store)
        self.leader = Leader(store, ids)
        self.services = Services(store, ids, LoopClock())

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def put(self, *objects: Object) -> None:
        await self.store.update(lambda tx: [tx.put(object) for object in objects])

    def tasks(self, service_id: str = "") -> list[Task]:
        view = self.store.view()
        return view.find(Task, service_id=service_id) if service_id else view.find(Task)

    async def create(self, name: str = "web", **settings: Any) -> Service:
        service = await self.services.create(build.service(name, **settings).spec)
        return service

    async def update(self, service: Service, **changes: Any) -> Service:
        """Change the service's spec; `image` and `force` change its tasks."""
        current = self.services.get(service.id)
        template = current.spec.task_template
        if (image := changes.pop("image", "")) and template.container_spec is not None:
            template = replace(
                template, container_spec=replace(template.container_spec, image=image)
            )
        template = replace(template, **changes.pop("task", {}))
        spec = replace(current.spec, task_template=template, **changes)
        return await self.services.update(service.id, current.version.index, spec)

    async def all_running(self, service: Service, count: int, image: str = "") -> View:
        def done(view: View) -> bool:
            tasks = view.find(Task, service_id=service.id)
            stays = [
                task for task in running(tasks) if not is_leaving(view.get(Node, task.node_id))
            ]
            return len(running(tasks, image)) == len(stays) == count == len(running(tasks))

        return await until(self.store, done, f"{count} tasks of {image or service.id} run")

    async def state(self, service: Service, state: str) -> Service:
        """The service once its update is in `state`."""

        def done(view: View) -> bool:
            found = view.get(Service, service.id)
            return bool(found and found.update_status and found.update_status.state == state)

        view = await until(self.store, done, f"update {state}")
        found = view.get(Service, service.id)
        assert found is not None
        return found

    async def node(
        self,
        id: str,
        *,
        state: NodeState | None = None,
        availability: Availability | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        """Change a node."""
        node = self.store.view().get(Node, id)
        assert node is not None
        if state is not None:
            since = LoopClock().now() if state is NodeState.DOWN else None
            node = replace(node, status=replace(node.status, state=state, down_since=since))
        spec = node.spec
        if availability is not None:
            spec = replace(spec, availability=availability)
        if labels is not None:
            spec = replace(spec, labels=labels)
        await self.put(replace(node, spec=spec))

    def images(self, service: Service) -> list[str]:
        """The images that run, in the order of their slots."""
        tasks = sorted(running(self.tasks(service.id)), key=lambda task: task.slot)
        return [image_of(task) for task in tasks]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Three ready nodes, orchestrators and agents at work."""
    store = memory_store(delay_s=0.005)
    world = World(store)
    await world.put(build.cluster(), *(build.node(f"n{number}") for number in (1, 2, 3)))
    agents = asyncio.get_running_loop().create_task(world.agents.run())
    world.leader.start()
    try:
        yield world
    finally:
        await world.leader.kill()
        agents.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agents
        await store.close()


@pytest.fixture
async def whole() -> AsyncIterator[World]:
    """Like `world`, with nobody but the manager's own loops to place tasks."""
    store = memory_store(delay_s=0.005)
    whole = World(store)
    whole.agents.full = True
    whole.leader = Leader(store, Ids(random.Random(2)), lambda: [Allocator(), Scheduler()])
    nodes = (build.node(f"n{i}", index=i) for i in (1, 2, 3))
    await whole.put(build.cluster(), *nodes)
    agents = asyncio.get_running_loop().create_task(whole.agents.run())
    whole.leader.start()
    yield whole
    await whole.leader.kill()
    agents.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await agents
    await store.close()
