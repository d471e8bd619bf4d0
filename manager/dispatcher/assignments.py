"""What each node should have, kept up to date event by event, and the differences to send.

No I/O and no clock. Events of the store go in through `observe`; `flush` takes out an increment
for each connected node that needs one, and the tasks whose stop must now wait (`stopping.py`).
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from common.model.base import ZERO_TIME, Object, Version
from common.model.network import Network
from common.model.node import Node, NodeState
from common.model.secret import Config, Secret
from common.model.service import Service
from common.model.task import Task, TaskState, TaskStatus
from common.protocol.dispatcher import Assign, task_mark
from common.protocol.network import Digest, NetworkChange
from manager.dispatcher import items
from manager.dispatcher.items import EVERYWHERE, NO_TOPICS, Topics
from manager.dispatcher.table import Deltas, Group, Table, delta_topics

_NO_STATUS = TaskStatus(state=TaskState.NEW)


class Hold(msgspec.Struct, frozen=True):
    """A task that must not hear of its stop before the nodes that follow `topics` know."""

    task_id: str
    topics: Topics


class Flush(msgspec.Struct, frozen=True):
    """What `Assignments.flush` found. The `sequence` of each Assign is the sender's to fill in."""

    increments: dict[str, Assign]  # by node id
    holds: tuple[Hold, ...]


class _Share:
    """What a connected node was sent."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.marks: dict[str, tuple[str, str]] = {}  # by task id
        self.digest = Digest()

    def mark(self, task_id: str, task: Task | None) -> None:
        old = self.marks.pop(task_id, None)
        if old is not None:
            self.digest.take(old)
        if task is not None:
            self.marks[task_id] = new = task_mark(task)
            self.digest.add(new)


class Assignments:
    """The assignments of all nodes."""

    def __init__(self) -> None:
        self._table = Table()
        self._tasks: dict[str, Task] = {}  # those that have a node
        self._of_node: dict[str, dict[str, None]] = {}
        self._of_service: dict[str, dict[str, None]] = {}
        self._networks_on: dict[str, Counter[str]] = {}  # unfinished attachments, by node
        self._services: dict[str, Service] = {}
        self._wishes: dict[str, dict[str, None]] = {}  # network id or name -> services
        self._network_names: dict[str, str] = {}  # network id -> name
        self._network_ids: dict[str, str] = {}  # name -> network id
        self._files: dict[str, Secret | Config] = {}
        self._ingress: set[str] = set()  # services that publish ports on all nodes
        self._nodes: dict[str, NodeState] = {}
        self._boots: dict[str, str] = {}  # boot ids of nodes
        self._held: dict[str, None] = {}
        self._new_holds: dict[str, None] = {}
        self._dirty: dict[str, dict[str, None]] = {}  # node id -> tasks to send or take back
        self._moved: dict[str, None] = {}  # nodes whose topics may have changed
        self._shares: dict[str, _Share] = {}  # connected nodes
        self._groups: dict[Topics, Group] = {}

    # Input

    def load(
        self,
        nodes: Iterable[Node],
        networks: Iterable[Network],
        services: Iterable[Service],
        tasks: Iterable[Task],
        files: Iterable[Secret | Config] = (),
    ) -> None:
        """Become this state, whatever was known before."""
        new: dict[type[Object], dict[str, Object]] = {
            Node: {node.id: node for node in nodes},
            Network: {network.id: network for network in networks},
            Service: {service.id: service for service in services},
            Task: {task.id: task for task in tasks},
        }
        known: dict[type[Object], Iterable[str]] = {
            Node: self._nodes,
            Network: self._network_names,
            Service: self._services,
            Task: self._tasks,
        }
        for kind, ids in known.items():
            for id in [id for id in ids if id not in new[kind]]:
                self._remove(kind, id)
        self._files = {file.id: file for file in files}
        for objects in new.values():
            for object in objects.values():
                self.observe(object, removed=False)

    def observe(self, object: Object, *, removed: bool) -> None:
        """Take in one event of the store."""
        if removed:
            self._remove(type(object), object.id)
            return
        match object:
            case Task():
                self._put_task(object)
            case Service():
                self._put_service(object)
            case Network():
                self._put_network(object)
            case Node():
                self._put_node(object)
            case Secret() | Config():
                self._files[object.id] = object

    def release(self, task_id: str) -> None:
        """Let the task's node hear of its stop."""
        if task_id in self._held:
            task = self._tasks[task_id]
            self._unhold(task_id)
            self._mark_dirty(task)

    # Questions

    @property
    def dirty(self) -> bool:
        """Whether `flush` may have something to send."""
        return bool(self._table.dirty or self._dirty or self._moved or self._new_holds)

    def node_of(self, task_id: str) -> str:
        """The node of a task, "" if it has none."""
        task = self._tasks.get(task_id)
        return "" if task is None else task.node_id

    def task(self, task_id: str) -> Task | None:
        """The task, if it has a node."""
        return self._tasks.get(task_id)

    def tasks_of_service(self, service_id: str) -> list[Task]:
        """Those that have a node."""
        return [self._tasks[id] for id in self._of_service.get(service_id, ())]

    def topics(self, node_id: str) -> Topics:
        """What the node should follow."""
        return frozenset((EVERYWHERE, *self._networks_on.get(node_id, ())))

    def digest(self, node_id: str) -> str:
        """Of the network table that was last sent to a node; "" if it was sent none."""
        share = self._shares.get(node_id)
        return "" if share is None else self._groups[share.topics].digest

    # Output

    def connect(self, node_id: str) -> Assign:
        """The complete set of a node, which gets increments from now on. Call `flush` before."""
        assert not self.dirty, "what is pending would be sent twice"
        self.disconnect(node_id)
        share = self._join(node_id, self.topics(node_id))
        tasks = [
            shown
            for id in self._of_node.get(node_id, ())
            if (shown := self._shown(self._tasks[id])) is not None
        ]
        for task in tasks:
            share.mark(task.id, task)
        network = self._groups[share.topics].complete(self._table, share.topics)
        return self._assign(share, tasks, [], network, complete=True)

    def disconnect(self, node_id: str) -> None:
        share = self._shares.pop(node_id, None)
        if share is not None:
            self._leave(node_id, share.topics)

    def flush(self) -> Flush:
        """What changed since the last call, for each connected node that it concerns."""
        deltas = self._table.drain()
        networks = self._advance(deltas)
        dirty, self._dirty = self._dirty, {}
        increments = {}
        for node_id in sorted({*networks, *(id for id in dirty if id in self._shares)}):
            share = self._shares[node_id]
            tasks, removed = self._task_changes(node_id, dirty.get(node_id, {}))
            network = networks.get(node_id, NetworkChange())
            if tasks or removed or network.puts or network.removes:
                increments[node_id] = self._assign(share, tasks, removed, network)
        holds, self._new_holds = self._new_holds, {}
        return Flush(
            increments,
            tuple(Hold(id, self._table.topics(_owner(Task, id))) for id in holds),
        )

    def _advance(self, deltas: Deltas) -> dict[str, NetworkChange]:
        """The step of the table for each connected node that has one."""
        changes: dict[str, NetworkChange] = {}
        moved, self._moved = self._moved, {}
        movers: dict[str, Topics] = {}
        for node_id in moved:
            share = self._shares.get(node_id)
            if share is not None and (after := self.topics(node_id)) != share.topics:
                changes[node_id] = self._table.moved(deltas, share.topics, after)
                movers[node_id] = after
                self._leave(node_id, share.topics)
        concerned = delta_topics(deltas)
        for topics, group in self._groups.items():
            if topics & concerned:
                change = group.advance(topics, deltas)
                if change.puts or change.removes:
                    changes |= dict.fromkeys(group.members, change)
        for node_id, after in movers.items():
            self._follow(self._shares[node_id], node_id, after)
        return changes

    def _task_changes(self, node_id: str, dirty: Iterable[str]) -> tuple[list[Task], list[str]]:
        share = self._shares[node_id]
        tasks, removed = [], []
        for id in dirty:
            task = self._tasks.get(id)
            here = task is not None and task.node_id == node_id
            shown = self._shown(task) if task is not None and here else None
            if shown is not None:
                tasks.append(shown)
            elif id in share.marks:
                removed.append(id)
            share.mark(id, shown)
        return tasks, removed

    def _assign(
        self,
        share: _Share,
        tasks: list[Task],
        removed: list[str],
        network: NetworkChange,
        *,
        complete: bool = False,
    ) -> Assign:
        files = [self._files[id] for id in items.files(tasks) if id in self._files]
        return Assign(
            sequence=0,
            complete=complete,
            secrets=tuple(file for file in files if isinstance(file, Secret)),
            configs=tuple(file for file in files if isinstance(file, Config)),
            tasks=tuple(tasks),
            removed_tasks=tuple(removed),
            network=network,
            digest=self._groups[share.topics].digest,
            tasks_digest=share.digest.text,
        )

    # Groups

    def _join(self, node_id: str, topics: Topics) -> _Share:
        share = self._shares[node_id] = _Share(topics)
        self._follow(share, node_id, topics)
        return share

    def _follow(self, share: _Share, node_id: str, topics: Topics) -> None:
        share.topics = topics
        group = self._groups.get(topics)
        if group is None:
            group = self._groups[topics] = Group(self._table.items(topics))
        group.members[node_id] = None

    def _leave(self, node_id: str, topics: Topics) -> None:
        members = self._groups[topics].members
        del members[node_id]
        if not members:
            del self._groups[topics]

    # Objects

    def _remove(self, kind: type[Object], id: str) -> None:
        if kind is Task:
            self._remove_task(id)
            return
        if kind in (Secret, Config):
            self._files.pop(id, None)
            return
        self._table.replace(_owner(kind, id), ())
        if kind is Node:
            self._nodes.pop(id, None)
            self._boots.pop(id, None)
            self._node_tasks_changed(id)
        elif kind is Network:
            name = self._network_names.pop(id, "")
            if self._network_ids.get(name) == id:
                del self._network_ids[name]
        elif kind is Service and (service := self._services.pop(id, None)) is not None:
            self._wish(service, wanted=False)
            self._set_ingress(id, False)

    def _put_node(self, node: Node) -> None:
        before = self._is_down(node.id), self._boots.get(node.id)
        self._nodes[node.id] = node.status.state
        self._boots[node.id] = node.boot_id
        self._table.replace(_owner(Node, node.id), items.node_entries(node))
        if (self._is_down(node.id), node.boot_id) != before:
            self._node_tasks_changed(node.id)

    def _is_down(self, node_id: str) -> bool:
        return self._nodes.get(node_id, NodeState.DOWN) is NodeState.DOWN

    def _node_tasks_changed(self, node_id: str) -> None:
        for id in self._of_node.get(node_id, ()):
            task = self._tasks[id]
            self._put_entries(task)
            if id in self._held and self._is_down(node_id):
                self.release(id)

    def _put_network(self, network: Network) -> None:
        self._network_names[network.id] = network.spec.name
        self._network_ids[network.spec.name] = network.id
        self._table.replace(_owner(Network, network.id), items.network_entries(network))
        for wish in (network.id, network.spec.name):
            for service_id in self._wishes.get(wish, ()):
                self._put_service_entries(self._services[service_id])

    def _put_service(self, service: Service) -> None:
        old = self._services.get(service.id)
        if old is not None:
            self._wish(old, wanted=False)
        self._services[service.id] = service
        self._wish(service, wanted=True)
        self._put_service_entries(service)
        has_ports = bool(items.ingress_ports(service)) and not service.pending_delete
        self._set_ingress(service.id, has_ports)

    def _put_service_entries(self, service: Service) -> None:
        entries = items.service_entries(service, self._network_id)
        self._table.replace(_owner(Service, service.id), entries)

    def _network_id(self, target: str) -> str:
        return target if target in self._network_names else self._network_ids.get(target, "")

    def _wish(self, service: Service, *, wanted: bool) -> None:
        for wish in service.spec.task_template.networks or service.spec.networks:
            if wanted:
                self._wishes.setdefault(wish.target, {})[service.id] = None
            else:
                self._wishes.get(wish.target, {}).pop(service.id, None)

    def _set_ingress(self, service_id: str, wanted: bool) -> None:
        if wanted == (service_id in self._ingress):
            return
        if wanted:
            self._ingress.add(service_id)
        else:
            self._ingress.discard(service_id)
        for id in self._of_service.get(service_id, ()):
            self._put_entries(self._tasks[id])

    # Tasks

    def _put_task(self, task: Task) -> None:
        if not task.node_id or task.status.state < TaskState.ASSIGNED:
            return
        old = self._tasks.get(task.id)
        before = None if old is None else self._shown(old)
        self._count(old, -1)
        self._count(task, 1)
        self._tasks[task.id] = task
        self._of_node.setdefault(task.node_id, {})[task.id] = None
        self._of_service.setdefault(task.service_id, {})[task.id] = None
        self._put_entries(task)
        self._judge_hold(old, task)
        if _essence(before) != _essence(self._shown(task)):
            self._mark_dirty(task)

    def _remove_task(self, id: str) -> None:
        old = self._tasks.pop(id, None)
        if old is None:
            return
        self._count(old, -1)
        _discard(self._of_node, old.node_id, id)
        _discard(self._of_service, old.service_id, id)
        self._unhold(id)
        self._table.replace(_owner(Task, id), ())
        self._mark_dirty(old)

    def _put_entries(self, task: Task) -> None:
        boot_id = self._boots.get(task.node_id, "")
        active = items.serving(task, boot_id) and not self._is_down(task.node_id)
        ingress = task.service_id in self._ingress
        entries = items.task_entries(task, ingress=ingress, active=active)
        self._table.replace(_owner(Task, task.id), entries)

    def _judge_hold(self, old: Task | None, task: Task) -> None:
        if task.id in self._held:
            if not self._may_hold(task):
                self._unhold(task.id)
        elif self._may_hold(task) and (old is None or not items.stopping(old)):
            self._held[task.id] = self._new_holds[task.id] = None

    def _may_hold(self, task: Task) -> bool:
        """Only a running task gets requests; one nobody can reach need not wait."""
        return (
            items.stopping(task)
            and task.status.state is TaskState.RUNNING
            and not self._is_down(task.node_id)
            and self._table.topics(_owner(Task, task.id)) != NO_TOPICS
        )

    def _unhold(self, task_id: str) -> None:
        self._held.pop(task_id, None)
        self._new_holds.pop(task_id, None)

    def _shown(self, task: Task) -> Task | None:
        """The task as its node may see it."""
        if task.status.state is TaskState.ORPHANED:
            return None
        if task.id in self._held:
            return msgspec.structs.replace(task, desired_state=TaskState.RUNNING)
        return task

    def _mark_dirty(self, task: Task) -> None:
        self._dirty.setdefault(task.node_id, {})[task.id] = None

    def _count(self, task: Task | None, step: int) -> None:
        """Keep count of the node's networks."""
        if task is None or not items.has_endpoints(task):
            return
        counts = self._networks_on.setdefault(task.node_id, Counter())
        for attachment in task.networks_attachments:
            counts[attachment.network_id] += step
            if not counts[attachment.network_id]:
                del counts[attachment.network_id]
        if not counts:
            del self._networks_on[task.node_id]
        self._moved[task.node_id] = None


def _owner(kind: type[Object], id: str) -> str:
    return f"{kind.__name__} {id}"


def _discard(index: dict[str, dict[str, None]], at: str, id: str) -> None:
    members = index.get(at, {})
    members.pop(id, None)
    if not members:
        index.pop(at, None)


def _essence(task: Task | None) -> Task | None:
    """What of a task its node needs to hear; its status is the node's own word."""
    if task is None:
        return None
    return msgspec.structs.replace(task, status=_NO_STATUS, version=Version(), updated_at=ZERO_TIME)
