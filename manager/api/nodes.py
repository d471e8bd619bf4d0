"""What may be asked of nodes."""

import datetime as dt
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from common.clock import Clock
from common.errors import Conflict
from common.model.cluster import Cluster
from common.model.node import ManagerStatus, Node, NodeSpec, NodeState, Role
from common.model.task import Task, TaskState
from manager.api.defaults import duration
from manager.api.filters import Filters, Test, has_label, one_of, select
from manager.api.managers import Managers
from manager.api.refs import resolve
from manager.store.store import Store, Tx, View

# Added to the life of a removed node's certificate, for clocks that disagree; Swarm's number.
EXPIRY_MARGIN = dt.timedelta(days=7)


class Nodes:
    """Validated operations on nodes. `managers` tells how the managers stand right now."""

    def __init__(self, store: Store, clock: Clock, managers: Managers) -> None:
        self._store = store
        self._clock = clock
        self._managers = managers

    def list(self, filters: Filters) -> Sequence[Node]:
        """The nodes that pass. Raises Invalid for an unknown filter or value."""
        nodes = select(self._store.view().find(Node), filters, _TESTS)
        return [self._shown(node) for node in nodes]

    def get(self, ref: str) -> Node:
        """Raises NotFound, Invalid (ambiguous)."""
        return self._shown(find_node(self._store.view(), ref))

    async def update(self, ref: str, version: int, spec: NodeSpec) -> Node:
        """Give a node other labels, another availability or role.

        Raises NotFound, Conflict ("update out of sequence", the last manager, a lost quorum).
        """
        return self.get(await self._store.update(self.change(ref, version, spec)))

    def change(self, ref: str, version: int, spec: NodeSpec) -> Callable[[Tx], str]:
        """The transaction of `update`, which gives the node's id; raises as that does."""

        def write(tx: Tx) -> str:
            node = find_node(tx, ref)
            if node.version.index != version:
                raise Conflict(
                    f"update out of sequence: node {node.id} is at version {node.version.index}, "
                    f"not {version}; read it again and repeat the change"
                )
            if node.spec.role is Role.MANAGER and spec.role is Role.WORKER:
                self._check_demotion(tx, node)
            tx.put(replace(node, spec=spec))
            return node.id

        return write

    async def remove(self, ref: str, force: bool = False) -> None:
        """Put a node out of the cluster. What ran there is replaced elsewhere (behaviour 224).

        Raises NotFound, Conflict (a manager; a node that is not down, unless forced).
        """
        now = self._clock.now()

        def write(tx: Tx) -> None:
            node = find_node(tx, ref)
            _check_removal(node, force)
            for task in tx.find(Task, node_id=node.id):
                if task.status.state <= TaskState.RUNNING:
                    tx.put(_orphaned(task, now))
            for cluster in tx.find(Cluster):
                tx.put(_banning(cluster, node.id, now))
            tx.delete(Node, node.id)

        await self._store.update(write)

    def _shown(self, node: Node) -> Node:
        """`node` with what only Raft knows of a manager."""
        for info in self._managers():
            if info.node_id == node.id:
                status = ManagerStatus(
                    leader=info.leader,
                    reachability=info.reachability,
                    addr=info.address,
                    raft_id=info.raft_id,
                )
                return replace(node, manager_status=status)
        return replace(node, manager_status=None)

    def _check_demotion(self, view: View, node: Node) -> None:
        """The others have to be able to go on without `node` (behaviours 220, 223)."""
        wanted = [n for n in view.find(Node) if n.spec.role is Role.MANAGER and n.id != node.id]
        if not wanted:
            raise Conflict(
                f"attempting to demote the last manager of the swarm, node {node.id}; "
                "promote another node first"
            )
        others = [info for info in self._managers() if info.votes and info.node_id != node.id]
        reachable = [info for info in others if info.reachability != "unreachable"]
        if others and len(reachable) <= len(others) // 2:
            raise Conflict(
                f"can't demote node {node.id}: this would result in a loss of quorum, since only "
                f"{len(reachable)} of the {len(others)} other managers can be reached; bring one "
                "back first"
            )


def find_node(view: View, ref: str) -> Node:
    """The node that `ref` means: id, hostname or name. Raises NotFound, Invalid."""
    return resolve("node", ref, view.find(Node), _names)


def _names(node: Node) -> tuple[str, ...]:
    return tuple(name for name in (node.description.hostname, node.spec.name) if name)


def _check_removal(node: Node, force: bool) -> None:
    if Role.MANAGER in (node.spec.role, node.role):
        raise Conflict(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. It must be "
            f"demoted to worker before removal: node demote {node.id}"
        )
    if not force and node.status.state is not NodeState.DOWN:
        raise Conflict(
            f"node {node.id} is not down ({node.status.state.value}) and can't be removed; "
            "stop it or let it leave first, or use --force"
        )


def _orphaned(task: Task, now: dt.datetime) -> Task:
    status = replace(
        task.status, state=TaskState.ORPHANED, timestamp=now, message="its node was removed"
    )
    return replace(task, status=status)


def _banning(cluster: Cluster, node_id: str, now: dt.datetime) -> Cluster:
    """`cluster` refusing the node until its certificate has expired for sure."""
    until = now + duration(cluster.spec.ca_config.node_cert_expiry) + EXPIRY_MARGIN
    current = {
        id: time
        for id, time in cluster.removed_nodes.items()
        if dt.datetime.fromisoformat(time) > now
    }
    return replace(cluster, removed_nodes=current | {node_id: until.isoformat()})


def _has_membership(node: Node, value: str) -> bool:
    """Nodes are accepted when they join, so none is ever pending."""
    return one_of("membership", value, ("accepted", "pending")) == "accepted"


_TESTS: dict[str, Test[Node]] = {
    "id": lambda node, value: node.id.startswith(value),
    "name": lambda node, value: any(name.startswith(value) for name in _names(node)),
    "label": lambda node, value: has_label(node.description.engine.labels, value),
    "node.label": lambda node, value: has_label(node.spec.labels, value),
    "role": lambda node, value: node.role.value == one_of("role", value, ("manager", "worker")),
    "membership": _has_membership,
}
