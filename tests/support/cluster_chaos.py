"""A whole leader over agents on fake engines, a random workload, faults, and what must hold.

Unlike `AgentsWorld`, all of the leader's loops run, and the workload goes through the API.
"""

import asyncio
import contextlib
from collections.abc import Hashable, Iterable
from pathlib import Path

from msgspec.structs import replace

from common.errors import ShoalError
from common.ids import Ids
from common.model.node import Availability, Node, NodeState, Role
from common.model.service import (
    ReplicatedJob,
    ReplicatedService,
    Service,
    ServiceMode,
    UpdateConfig,
)
from common.model.service import ServiceSpec as Spec
from common.model.task import SECOND, PortConfig, RestartPolicy, Task, TaskState
from manager import leader
from manager.allocator.allocator import Allocator
from manager.api.services import Services
from manager.control import Loop
from manager.orchestrator.enforcer import Enforcer
from manager.orchestrator.global_services import GlobalOrchestrator
from manager.orchestrator.jobs import GlobalJobOrchestrator, ReplicatedJobOrchestrator
from manager.orchestrator.reaper import Reaper
from manager.orchestrator.replicated import ReplicatedOrchestrator
from manager.orchestrator.update import is_under_way
from manager.scheduler.scheduler import Scheduler
from tests.support import build
from tests.support.agents_world import AgentsWorld, Machine
from tests.support.memory_proposer import LoopClock

S = TaskState
MODES = ("service", "service", "service", "job")
QUIET_S = 90.0  # longer than every delay there is


class ClusterWorld(AgentsWorld):
    """One leader at a time with all its loops, and `nodes` machines."""

    def __init__(self, folder: Path, seed: int, nodes: int) -> None:
        super().__init__(folder, seed, nodes)
        self.ids = Ids(self.rng)
        self.services = Services(self.store, self.ids, LoopClock())

    def lead(self) -> None:
        self.dispatcher = self._dispatcher()
        self._term = asyncio.get_running_loop().create_task(self._whole_term())
        self.leads = True
        self.lead_since = asyncio.get_running_loop().time()

    async def _whole_term(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.dispatcher.run())
            group.create_task(leader.lead(self.store, self._loops(), LoopClock()))

    def _loops(self) -> list[Loop]:
        return [
            ReplicatedOrchestrator(self.ids),
            GlobalOrchestrator(self.ids),
            ReplicatedJobOrchestrator(self.ids),
            GlobalJobOrchestrator(self.ids),
            Enforcer(),
            Reaper(),
            Allocator(),
            Scheduler(),
        ]


class Workload:
    """Does things at random."""

    def __init__(self, world: ClusterWorld) -> None:
        self.world = world
        self.rng = world.rng
        self._made = 0

    async def step(self) -> None:
        what = self.rng.choices(
            ["create", "update", "scale", "remove", "node", "promote", "exit", "fault"],
            [14, 16, 14, 5, 14, 3, 12, 10],
        )[0]
        with contextlib.suppress(ShoalError):  # what the API refuses is no fault
            await getattr(self, f"_{what}")()
        self.finish_jobs(0.3)

    def finish_jobs(self, share: float) -> None:
        """Let the containers of some jobs come to their end."""
        for machine, id, task in live(self.world):
            if task is not None and task.job_iteration is not None and self.rng.random() < share:
                machine.engine.exit(id, 1 if self.rng.random() < 0.2 else 0)

    async def rest(self) -> None:
        """End all faults; what then is wanted must come to be."""
        for machine in self.world.machines:
            machine.silence(False)
            await self.set_node(machine, Availability.ACTIVE)

    async def set_node(self, machine: Machine, availability: Availability) -> None:
        def write(tx) -> None:  # type: ignore[no-untyped-def]
            node = tx.get(Node, machine.id)
            tx.put(replace(node, spec=replace(node.spec, availability=availability)))

        await self.world.store.update(write)

    async def _create(self) -> None:
        if len(self.world.store.view().find(Service)) >= 6:
            return
        self._made += 1
        rng, name = self.rng, f"s{self._made}"
        ports: tuple[PortConfig, ...] = ()
        if rng.choice(MODES) == "job":
            at_once = rng.randint(1, 3)
            job = ReplicatedJob(
                max_concurrent=at_once, total_completions=at_once + rng.randint(0, 3)
            )
            mode = ServiceMode(replicated_job=job)
        else:
            mode = ServiceMode(replicated=ReplicatedService(replicas=rng.randint(1, 5)))
            ports = self._ports()
        update = UpdateConfig(
            parallelism=rng.randint(1, 2),
            monitor=SECOND // 2,
            failure_action="continue",
            order=rng.choice(["stop-first", "start-first"]) if not ports else "stop-first",
        )
        spec = replace(
            build.service(name, networks=["net"], ports=ports).spec,
            mode=mode,
            update_config=None if mode.is_job else update,
        )
        await self.world.services.create(_restarting(spec))

    def _ports(self) -> tuple[PortConfig, ...]:
        kind = self.rng.random()
        if kind < 0.3:
            return (build.port(80, 8000 + self.rng.randint(0, 2), publish_mode="host"),)
        return (build.port(80),) if kind < 0.6 else ()

    async def _update(self) -> None:
        if (service := self._any()) is not None:
            image = f"web:{self.rng.randint(1, 1000)}"
            template = build.task_spec(image=image, networks=["net"])
            spec = _restarting(replace(service.spec, task_template=template))
            await self.world.services.update(service.id, service.version.index, spec)

    async def _scale(self) -> None:
        service = self._any()
        if service is not None and service.spec.mode.replicated is not None:
            mode = ServiceMode(replicated=ReplicatedService(replicas=self.rng.randint(0, 6)))
            spec = replace(service.spec, mode=mode)
            await self.world.services.update(service.id, service.version.index, spec)

    async def _remove(self) -> None:
        if (service := self._any()) is not None:
            await self.world.services.remove(service.id)

    async def _node(self) -> None:
        machine = self.rng.choice(self.world.machines)
        choices = [Availability.ACTIVE, Availability.ACTIVE, Availability.DRAIN, Availability.PAUSE]
        await self.set_node(machine, self.rng.choice(choices))

    async def _promote(self) -> None:
        machine, role = self.rng.choice(self.world.machines), self.rng.choice(list(Role))

        def write(tx) -> None:  # type: ignore[no-untyped-def]
            node = tx.get(Node, machine.id)
            tx.put(replace(node, spec=replace(node.spec, role=role)))

        await self.world.store.update(write)

    async def _exit(self) -> None:
        found = list(live(self.world))
        if found:
            machine, id, _ = self.rng.choice(found)
            machine.engine.exit(id, self.rng.choice([0, 1, 137]))

    async def _fault(self) -> None:
        machine = self.rng.choice(self.world.machines)
        match self.rng.choice(["cut", "silence", "restart", "leader"]):
            case "cut":
                machine.cut()
            case "silence":
                machine.silence(True)
                await asyncio.sleep(self.rng.uniform(0, 8))
                machine.silence(False)
            case "restart":
                await machine.restart()
            case "leader":
                await self.world.end_term()
                await asyncio.sleep(self.rng.uniform(0, 1))
                self.world.lead()

    def _any(self) -> Service | None:
        found = [s for s in self.world.store.view().find(Service) if not s.pending_delete]
        return self.rng.choice(found) if found else None


class Checks:
    """What must hold at every moment. `broken` says what did not."""

    def __init__(self, world: ClusterWorld) -> None:
        self.world = world
        self.broken: list[str] = []
        self._engaged: dict[str, tuple[object, set[int]]] = {}  # service -> its spec, slots
        self._addresses: dict[str, tuple[Hashable, ...]] = {}  # of every task ever seen

    async def watch(self) -> None:
        with self.world.store.watch() as watcher:
            while True:
                for event in await watcher.next():
                    old, new = event.old, event.object
                    if isinstance(new, Task) and event.action != "remove":
                        self._note(old if isinstance(old, Task) else None, new)
                self._look()

    def _note(self, old: Task | None, new: Task) -> None:
        self._addresses[new.id] = tuple(
            (each.network_id, address)
            for each in new.networks_attachments
            for address in each.addresses
        )
        service = self.world.store.view().get(Service, new.service_id)
        if service is None or not is_under_way(service) or new.job_iteration is not None:
            return
        spec, slots = self._engaged.get(service.id, (None, set()))
        if spec != service.spec_version:
            slots = set()
        if new.spec_version == service.spec_version:
            if new.status.state >= S.RUNNING or new.desired_state > S.RUNNING:
                slots.discard(new.slot)
            elif old is None and self._has_another(service, new):
                slots.add(new.slot)  # start-first
        elif old is not None and self._is_replaced(old, new) and not _starts_first(service):
            slots.add(new.slot)
        self._engaged[service.id] = service.spec_version, slots
        most = service.spec.update_config.parallelism if service.spec.update_config else 1
        if most and len(slots) > most:
            self.broken.append(f"{service.spec.name}: {sorted(slots)} updated at once, not {most}")

    def _has_another(self, service: Service, new: Task) -> bool:
        """Whether the slot of `new` has a task that it is to take over from."""
        return any(
            task.status.state is S.RUNNING
            and task.desired_state is S.RUNNING
            and task.spec_version != service.spec_version
            for task in self.world.store.view().find(Task, slot=(service.id, new.slot))
        )

    def _is_replaced(self, old: Task, new: Task) -> bool:
        """Whether an update takes away a task that ran well."""
        node = self.world.store.view().get(Node, new.node_id)
        return (
            old.desired_state is S.RUNNING
            and new.desired_state is S.SHUTDOWN
            and new.status.state is S.RUNNING
            and node is not None
            and node.status.state is NodeState.READY
            and node.spec.availability is not Availability.DRAIN
        )

    def _look(self) -> None:
        view = self.world.store.view()
        tasks = [task for task in view.find(Task) if task.status.state <= S.RUNNING]
        owners: dict[Hashable, str] = {}
        for task in tasks:
            self._claim(owners, task.id, self._addresses.get(task.id, ()))
        for machine, id, _ in live(self.world):
            self._claim(owners, id, self._addresses.get(id, ()))
            ports = [("host", machine.id, port.published_port) for port in self._host_ports(id)]
            self._claim(owners, id, ports)
        for service in view.find(Service):
            vips = [(vip.network_id, vip.addr) for vip in service.endpoint.virtual_ips]
            ports = [("ingress", "", p.published_port) for p in _ingress(service)]
            self._claim(owners, service.id, [*vips, *ports])
            self._check_job(service, tasks)

    def _host_ports(self, task_id: str) -> Iterable[PortConfig]:
        task = self.world.store.view().get(Task, task_id)
        return [p for p in task.ports if p.publish_mode == "host"] if task is not None else []

    def _claim(self, owners: dict[Hashable, str], owner: str, things: Iterable[Hashable]) -> None:
        for thing in things:
            other = owners.setdefault(thing, owner)
            if other != owner:
                self.broken.append(f"{thing} belongs to {other} and {owner}")

    def _check_job(self, service: Service, tasks: Iterable[Task]) -> None:
        job, status = service.spec.mode.replicated_job, service.job_status
        if job is None or status is None or not job.max_concurrent:
            return
        under_way = [
            task
            for task in tasks
            if task.service_id == service.id
            and task.desired_state <= S.COMPLETE
            and task.job_iteration == status.job_iteration
        ]
        if len(under_way) > job.max_concurrent:
            self.broken.append(f"{service.spec.name}: {len(under_way)} at once")


def live(world: AgentsWorld) -> Iterable[tuple[Machine, str, Task | None]]:
    """The containers that run, and their tasks."""
    view = world.store.view()
    for machine in world.machines:
        for id in machine.engine.tasks():
            seen = machine.engine.look(id)
            if seen is not None and seen.live:
                yield machine, id, view.get(Task, id)


def unsettled(world: ClusterWorld) -> list[str]:
    """What is not as it should be in the end."""
    view, found = world.store.view(), []
    wanted: set[tuple[str, str]] = set()
    for task in view.find(Task):
        if not view.get(Service, task.service_id):
            found.append(f"{task.id} is left of a service that is gone")
        if task.desired_state is S.RUNNING and task.status.state is S.RUNNING:
            wanted.add((task.node_id, task.id))
    for service in view.find(Service):
        found += _unsettled(service, view.find(Task, service_id=service.id))
    there = {(machine.id, id) for machine, id, _ in live(world)}
    found += [f"{at} runs, but should not" for at in sorted(there - wanted)]
    found += [f"{at} should run" for at in sorted(wanted - there)]
    return found


def _unsettled(service: Service, tasks: list[Task]) -> list[str]:
    name = service.spec.name
    if service.pending_delete:
        return [f"{name} is still being removed"]
    active = [task for task in tasks if task.desired_state <= S.COMPLETE]
    if _cannot_all_have_their_port(service, active):
        return []
    if is_under_way(service):
        return [f"{name} is still being updated: {service.update_status}"]
    job, mode = service.spec.mode.replicated_job, service.spec.mode.replicated
    if job is not None:
        done = {task.slot for task in active if task.status.state is S.COMPLETE}
        return [] if len(done) == len(active) == job.total_completions else [f"{name}: {done}"]
    replicas = mode.replicas if mode is not None else 0
    slots = sorted(task.slot for task in active if task.status.state is S.RUNNING)
    right = all(task.spec == service.spec.task_template for task in active)
    if len(slots) == len(set(slots)) == len(active) == replicas and right:
        return []
    return [f"{name}: {replicas} wanted, there are {[(t.slot, t.status.state) for t in active]}"]


def _starts_first(service: Service) -> bool:
    config = service.spec.update_config
    return config is not None and config.order == "start-first"


def _cannot_all_have_their_port(service: Service, active: list[Task]) -> bool:
    """More replicas than nodes, or another service with the same host port: some must wait."""
    waits = [task for task in active if task.status.state is S.PENDING and task.status.err]
    return bool(waits) and any("port" in task.status.err for task in waits)


def _ingress(service: Service) -> list[PortConfig]:
    return [port for port in service.endpoint.ports if port.publish_mode == "ingress"]


def _restarting(spec: Spec) -> Spec:
    policy = RestartPolicy(delay=SECOND // 2)
    return replace(spec, task_template=replace(spec.task_template, restart_policy=policy))


async def run(folder: Path, seed: int, steps: int) -> list[str]:
    """What was wrong, meanwhile or in the end."""
    world = ClusterWorld(folder, seed, nodes=5)
    async with world.running():
        work, checks = Workload(world), Checks(world)
        watching = asyncio.get_running_loop().create_task(checks.watch())
        try:
            for _ in range(steps):
                await work.step()
                await asyncio.sleep(work.rng.expovariate(2))
            await work.rest()
            return checks.broken + await _end(world, work)
        finally:
            watching.cancel()


async def _end(world: ClusterWorld, work: Workload) -> list[str]:
    for _ in range(240):
        work.finish_jobs(0.5)
        await asyncio.sleep(1)
        if world.term_failed:
            raise world.term_failed
        if not unsettled(world):
            break
    if found := unsettled(world):
        return found
    version = world.store.version
    await asyncio.sleep(QUIET_S)
    return [f"still writing after {QUIET_S} s"] if world.store.version > version + 5 else []
