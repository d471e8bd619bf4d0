"""Gives networks, services, tasks and nodes what there is only one of.

    Network   VNI and subnets
    Service   endpoint: a VIP on each of its networks, published ports
    Task      addresses on its networks; NEW becomes PENDING
    Node      index, from which its own subnet follows

Whatever cannot be served waits for its cause (a full subnet, a port in use, a network that does
not exist) and says so; it is tried again when, and only when, that cause may have ended.
"""

import datetime as dt
import itertools
from collections.abc import Hashable, Iterable

from msgspec.structs import replace

from common.model.base import Object
from common.model.cluster import Cluster
from common.model.network import Network
from common.model.node import Node
from common.model.service import Endpoint, Service
from common.model.task import Task, TaskState
from manager.allocator.books import (
    INDEXES,
    SUBNETS,
    Blocked,
    Books,
    holds_addresses,
    is_allocated,
    is_current,
)
from manager.allocator.surroundings import around, changed
from manager.allocator.waiting import Waiting
from manager.store.change import Event
from manager.store.view import Tx, View

PER_TX = 1000  # objects looked at in one transaction: keeps an entry well below its limit
PENDING_MESSAGE = "pending task scheduling"
WAITING_MESSAGE = "waiting for network resources"


class Allocator:
    """The loop. It alone writes what it gives out, so its books need no events to be right."""

    def __init__(self) -> None:
        self._books = Books(None)
        self._waiting = Waiting()
        self._reasons: dict[str, str] = {}  # service id -> why its endpoint is not ready
        # Networks before services before tasks: each needs what the one before gets.
        self._dirty: dict[type[Object], dict[str, None]] = {}
        self._clear()

    def _clear(self) -> None:
        self._waiting = Waiting()
        self._reasons = {}
        self._dirty = {kind: {} for kind in (Node, Network, Service, Task)}

    def restore(self, view: View) -> None:
        self._clear()
        self._books = Books.restored(view)
        for node in view.find(Node):
            self._note_node(node)
        for network in view.find(Network):
            self._note_network(network)
        for service in view.find(Service):
            self._dirty[Service][service.id] = None
        for task in view.find(Task):
            self._note_task(task)

    def observe(self, event: Event) -> None:
        gone = event.action == "remove"
        match event.object:
            case Cluster() if event.old is None:
                self._books.use_pools(event.object)
            case Node() as node:
                self._forget_node(node) if gone else self._note_node(node)
                if gone or changed(event.old, node):
                    self._wake(SUBNETS)
            case Network() as network:
                self._forget_network(network) if gone else self._note_network(network)
            case Service() as service:
                self._forget_service(service) if gone else self._note_service(service)
            case Task() as task:
                if gone or not holds_addresses(task):
                    self._forget_task(task)
                else:
                    self._note_task(task)

    @property
    def dirty(self) -> bool:
        return any(self._dirty.values())

    @property
    def wake_at(self) -> dt.datetime | None:
        """Never: everything that waits here waits for an event."""
        return None

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        left = PER_TX
        for kind, dirty in self._dirty.items():
            for id in list(itertools.islice(dirty, left)):
                if tx.is_full:
                    return
                del dirty[id]
                left -= 1
                found = tx.get(kind, id)
                if found is not None:
                    self._allocate(tx, found, now)

    # What events put out of order

    def _note_node(self, node: Node) -> None:
        if not node.index:
            self._dirty[Node][node.id] = None

    def _forget_node(self, node: Node) -> None:
        self._drop(node)
        self._books.indexes.release(node.index)
        self._wake(INDEXES)

    def _note_network(self, network: Network) -> None:
        if is_allocated(network):
            self._wake_network(network)
        elif (Network, network.id) not in self._waiting:
            self._dirty[Network][network.id] = None

    def _forget_network(self, network: Network) -> None:
        self._drop(network)
        self._books.release_network(network)
        self._wake(SUBNETS)

    def _note_service(self, service: Service) -> None:
        self._dirty[Service][service.id] = None

    def _forget_service(self, service: Service) -> None:
        self._drop(service)
        self._reasons.pop(service.id, None)
        self._wake(("service", service.id))
        self._wake_all(self._books.release_leftover(service, Endpoint()))

    def _note_task(self, task: Task) -> None:
        if _wants_addresses(task):
            if (Task, task.id) not in self._waiting:
                self._dirty[Task][task.id] = None
        else:
            self._drop(task)

    def _forget_task(self, task: Task) -> None:
        self._drop(task)
        self._wake_all(self._books.release_task(task))

    def _drop(self, object: Object) -> None:
        self._dirty[type(object)].pop(object.id, None)
        self._waiting.discard((type(object), object.id))

    def _wake(self, cause: Hashable) -> None:
        for kind, id in self._waiting.wake(cause):
            self._dirty[kind][id] = None

    def _wake_all(self, causes: Iterable[Hashable]) -> None:
        for cause in causes:
            self._wake(cause)

    def _wake_network(self, network: Network) -> None:
        self._wake(("network", network.id))
        self._wake(("network", network.spec.name))

    # What is given

    def _allocate(self, tx: Tx, object: Object, now: dt.datetime) -> None:
        self._waiting.discard((type(object), object.id))
        match object:
            case Node():
                self._allocate_node(tx, object)
            case Network():
                self._allocate_network(tx, object)
            case Service():
                self._allocate_service(tx, object)
            case Task():
                self._allocate_task(tx, object, now)

    def _allocate_node(self, tx: Tx, node: Node) -> None:
        if node.index:
            return
        index = self._books.indexes.take()
        if index is None:
            self._waiting.add((Node, node.id), INDEXES)
        else:
            tx.put(replace(node, index=index))

    def _allocate_network(self, tx: Tx, network: Network) -> None:
        if is_allocated(network) or network.pending_delete:
            return
        try:
            allocated = self._books.allocate_network(network, list(around(tx)))
        except Blocked as blocked:
            self._waiting.add((Network, network.id), blocked.cause)
            allocated = replace(network, allocation_error=blocked.reason)
        if allocated != network:
            tx.put(allocated)
            self._wake_network(network)

    def _allocate_service(self, tx: Tx, service: Service) -> None:
        """A service that is leaving keeps what it has until it is gone."""
        if service.pending_delete:
            return
        if not is_current(service, tx):
            try:
                endpoint = self._books.allocate_endpoint(service, tx)
            except Blocked as blocked:
                self._waiting.add((Service, service.id), blocked.cause)
                self._reasons[service.id] = blocked.reason
                self._wake(("service", service.id))  # so that its tasks tell the reason
                return
            tx.put(replace(service, endpoint=endpoint))
            self._wake_all(self._books.release_leftover(service, endpoint))
        self._reasons.pop(service.id, None)
        self._wake(("service", service.id))

    def _allocate_task(self, tx: Tx, task: Task, now: dt.datetime) -> None:
        if not _wants_addresses(task):
            return
        try:
            service = self._ready_service(tx, task)
            attachments = self._books.attach(task, tx)
        except Blocked as blocked:
            self._waiting.add((Task, task.id), blocked.cause)
            _tell(tx, task, blocked.reason, now)
            return
        status = replace(
            task.status,
            state=TaskState.PENDING,
            message=PENDING_MESSAGE,
            err="",
            timestamp=now,
        )
        ports = service.endpoint.ports if service is not None else ()
        tx.put(replace(task, status=status, networks_attachments=attachments, ports=ports))

    def _ready_service(self, tx: Tx, task: Task) -> Service | None:
        """The task's service, its endpoint ready. Raises Blocked."""
        service = tx.get(Service, task.service_id) if task.service_id else None
        if service is None or service.pending_delete or is_current(service, tx):
            return service
        if service.id not in self._reasons:
            self._allocate_service(tx, service)
            service = tx.get(Service, service.id)
        if service is not None and service.id in self._reasons:
            raise Blocked(("service", service.id), self._reasons[service.id])
        return service


def _wants_addresses(task: Task) -> bool:
    """A task that waits for another service takes nothing yet."""
    new = task.status.state is TaskState.NEW and not task.waits_for
    return new and task.desired_state <= TaskState.COMPLETE


def _tell(tx: Tx, task: Task, reason: str, now: dt.datetime) -> None:
    """Write why the task waits, if that is news."""
    if task.status.err != reason:
        status = replace(task.status, message=WAITING_MESSAGE, err=reason, timestamp=now)
        tx.put(replace(task, status=status))
