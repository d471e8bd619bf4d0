"""What may be asked of where tasks are: to be spread over the nodes again."""

import asyncio
from collections.abc import Container, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from common.errors import Conflict
from common.model.base import Model
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task
from manager import wishes
from manager.api.nodes import find_node
from manager.api.services import find_service
from manager.orchestrator import rebalance
from manager.scheduler.nodeset import NodeSet, is_ready
from manager.scheduler.rebalance import Move, moves
from manager.store.store import Store, Tx, View

MOVES_MAX = 1000  # of one request: what an entry of the log may hold


class Moved(Model, frozen=True, kw_only=True):
    """A task that is to leave `from_node`; `to_node` is where there is most room for it now."""

    service_id: str
    service: str
    slot: int = msgspec.field(default_factory=int)
    task_id: str
    from_node: str
    to_node: str


class Rebalancing:
    """Tasks are not moved at once: the update of each service replaces them step by step."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def service(self, ref: str, *, force: bool = False, dry: bool = False) -> Sequence[Moved]:
        """Spread the tasks of one service. Raises NotFound, Invalid, and Conflict if it cannot be
        moved: it is global or a job, an update is under way, or (unless `force`) it has volumes."""
        service = find_service(self._store.view(), ref)
        name = service.spec.name
        if not rebalance.is_replicated(service):
            raise Conflict(f"service {name} is not replicated: its tasks are where they must be")
        if rebalance.is_busy(service):
            raise Conflict(f"an update of service {name} is under way or paused; end that first")
        if not (force or rebalance.is_movable(service)):
            why = "its label says so" if wishes.of(service.spec).rebalance is False else "volumes"
            raise Conflict(
                f"service {name} is not to be moved ({why}), and data in volumes and folders of a "
                "node stays behind; use --force if that does not matter"
            )
        return await self._spread([service], None, dry=dry)

    async def node(self, ref: str, *, dry: bool = False) -> Sequence[Moved]:
        """Move tasks of any services to one node. Raises NotFound, Invalid, Conflict (the node
        takes none)."""
        view = self._store.view()
        node = find_node(view, ref)
        if not is_ready(node):
            raise Conflict(f"node {ref} takes no tasks: it is not ready, or paused, or drained")
        services = [s for s in view.find(Service) if rebalance.is_movable(s)]
        chosen = [service for service in services if not rebalance.is_busy(service)]
        return await self._spread(chosen, {node.id}, dry=dry)

    async def _spread(
        self, services: Sequence[Service], targets: Container[str] | None, *, dry: bool
    ) -> Sequence[Moved]:
        view = self._store.view()
        found = await asyncio.to_thread(_find, view, services, targets)
        if not dry:
            await self._store.update(lambda tx: _mark(tx, found))
        return [_shown(view, move) for move in found]


def _find(view: View, services: Iterable[Service], targets: Container[str] | None) -> list[Move]:
    """Runs in a thread: it looks at all tasks of the cluster."""
    nodes = NodeSet()
    for node in view.all(Node):
        nodes.put_node(node)
    for task in view.all(Task):
        nodes.put_task(task)
    found: list[Move] = []
    for service in services:
        left = MOVES_MAX - len(found)
        for move in moves(nodes, rebalance.movable_tasks(view, service), left, targets):
            nodes.put_task(replace(move.task, node_id=move.target))
            found.append(move)
    return found


def _mark(tx: Tx, found: Iterable[Move]) -> None:
    for move in found:
        task = tx.get(Task, move.task.id)
        if task is not None and task.desired_state is move.task.desired_state:
            tx.put(replace(task, leaving=True))


def _shown(view: View, move: Move) -> Moved:
    return Moved(
        service_id=move.task.service_id,
        service=move.task.service_annotations.name,
        slot=move.task.slot,
        task_id=move.task.id,
        from_node=_host(view, move.source),
        to_node=_host(view, move.target),
    )


def _host(view: View, id: str) -> str:
    node = view.get(Node, id)
    return (node.description.hostname if node is not None else "") or id
