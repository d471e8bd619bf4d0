"""The rest of a cluster around the orchestrators: places tasks and plays all agents.

Tasks are given to the node that has the fewest; those of an image in `fails` end when they
start. Times are those of the event loop, so that tests run in virtual time.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from common.ids import Ids
from common.model.node import Availability, Node, NodeState
from common.model.task import Task, TaskState, TaskStatus
from manager import constraint, control
from manager.control import Loop
from manager.orchestrator.dirty import constraints
from manager.orchestrator.enforcer import Enforcer
from manager.orchestrator.global_services import GlobalOrchestrator
from manager.orchestrator.jobs import GlobalJobOrchestrator, ReplicatedJobOrchestrator
from manager.orchestrator.reaper import Reaper
from manager.orchestrator.replicated import ReplicatedOrchestrator
from manager.store.store import Store, Tx, View
from tests.support.memory_proposer import LoopClock

DEADLINE_S = 3600.0  # virtual


class FakeAgents:
    """`stops_s`: from the order to stop to SHUTDOWN; None: never. `starts_s`: until RUNNING."""

    def __init__(self, store: Store, *, stops_s: float | None = 0.4, starts_s: float = 0.1) -> None:
        self.store = store
        self.stops_s = stops_s
        self.starts_s = starts_s
        self.fails: dict[str, TaskState] = {}  # image -> how its tasks end instead of running
        self.fails_in_preparation = False  # already while they wait to run
        self.works_s = 1.0  # how long the tasks of jobs take
        self.full = False  # nothing can be placed here; also for when the scheduler is at work
        self._under_way: set[tuple[str, TaskState]] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            with self.store.watch() as watcher:
                while True:
                    for task in self.store.view().find(Task):
                        self._consider(group, task)
                    await watcher.wait(None)
                    watcher.take()

    def _consider(self, group: asyncio.TaskGroup, task: Task) -> None:
        state, wait_s = self._next(self.store.view(), task)
        key = (task.id, state)
        if state is not task.status.state and key not in self._under_way:
            self._under_way.add(key)
            group.create_task(self._later(wait_s, task.id, state))

    def _next(self, view: View, task: Task) -> tuple[TaskState, float]:
        state, desired = task.status.state, task.desired_state
        if state > TaskState.RUNNING:
            return state, 0
        if state < TaskState.ASSIGNED:
            can = desired <= TaskState.COMPLETE and self._place(view, task)
            return (TaskState.ASSIGNED if can else state), 0
        node = view.get(Node, task.node_id)
        if node is None or node.status.state is NodeState.DOWN:
            return state, 0
        if desired > TaskState.COMPLETE:
            return (state, 0) if self.stops_s is None else (TaskState.SHUTDOWN, self.stops_s)
        end = self.fails.get(image_of(task))
        if desired is TaskState.READY:
            if end is not None and self.fails_in_preparation:
                return end, self.starts_s
            return max(state, TaskState.READY), 0
        if state is TaskState.RUNNING:
            if desired is TaskState.COMPLETE:
                return TaskState.COMPLETE, self.works_s
            return state, 0
        return (TaskState.RUNNING if end is None else end), self.starts_s

    async def _later(self, wait_s: float, id: str, state: TaskState) -> None:
        await asyncio.sleep(wait_s)

        def write(tx: Tx) -> None:
            task = tx.get(Task, id)
            if task is None or self._next(tx, task)[0] is not state:
                return
            node_id = self._place(tx, task) if state is TaskState.ASSIGNED else task.node_id
            tx.put(replace(task, node_id=node_id, status=TaskStatus(state=state)))

        await self.store.update(write)
        self._under_way.discard((id, state))

    def _place(self, view: View, task: Task) -> str:
        if self.full:
            return ""
        load = Counter(
            other.node_id
            for other in view.find(Task)
            if other.desired_state <= TaskState.COMPLETE and other.status.state <= TaskState.RUNNING
        )
        fit = [
            node
            for node in view.find(Node)
            if node.status.state is NodeState.READY
            and node.spec.availability is Availability.ACTIVE
            and constraint.fits(constraints(task.spec), node)
            and task.node_id in ("", node.id)
        ]
        return min(fit, key=lambda node: (load[node.id], node.id)).id if fit else ""


def image_of(task: Task) -> str:
    container = task.spec.container_spec
    return container.image if container is not None else ""


class Leader:
    """Terms of the orchestrators, and of `others`. `kill` ends one, `start` begins the next."""

    def __init__(self, store: Store, ids: Ids, others: Callable[[], list[Loop]] = list) -> None:
        self._store = store
        self._ids = ids
        self._others = others
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def kill(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        loops: list[Loop] = [
            ReplicatedOrchestrator(self._ids),
            GlobalOrchestrator(self._ids),
            ReplicatedJobOrchestrator(self._ids),
            GlobalJobOrchestrator(self._ids),
            Reaper(),
            Enforcer(),
            *self._others(),
        ]
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(control.run(loop, self._store, LoopClock()))


async def until(store: Store, condition: Callable[[View], bool], what: str = "") -> View:
    """The first view in which `condition` holds. Raises AssertionError after a virtual hour."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    with store.watch() as watcher:
        while not condition(store.view()):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await watcher.wait(left):
                raise AssertionError(f"never happened: {what or condition}")
            watcher.take()
    return store.view()


def running(tasks: Iterable[Task], image: str = "") -> list[Task]:
    """Those that run and should, and are of `image` if given."""
    return [
        task
        for task in tasks
        if task.status.state is TaskState.RUNNING
        and task.desired_state is TaskState.RUNNING
        and image in ("", image_of(task))
    ]
