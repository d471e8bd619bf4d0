"""What the dispatcher writes of nodes, and reads of the whole store. Transactions and queries."""

import datetime as dt
from collections.abc import Iterable

from msgspec.structs import replace

from common.model.network import Network
from common.model.node import Node, NodeState, NodeStatus, Role
from common.model.secret import Config, Secret
from common.model.service import Service
from common.model.task import Task, TaskState, TaskStatus
from common.protocol.dispatcher import Hello, Manager
from manager.store.store import Tx, View

HEARTBEAT_FAILURE = "heartbeat failure"
LEFT = "the node left the cluster"
MESSAGE_MAX = 1000  # characters of what a node says that it cannot do


def all_unknown(tx: Tx) -> bool:
    """A new leader knows nothing yet of the nodes it did not already hold for down.

    Returns whether there are more than one entry of the log should have: call it again."""
    for node in tx.find(Node):
        if tx.is_full:
            return True
        if node.status.state not in (NodeState.DOWN, NodeState.UNKNOWN):
            status = replace(
                node.status,
                state=NodeState.UNKNOWN,
                message="the leader changed; waiting for the node",
            )
            tx.put(replace(node, status=status))
    return False


def set_ready(tx: Tx, node_id: str, hello: Hello) -> None:
    """The node has opened a session and said what it is."""
    node = tx.get(Node, node_id)
    if node is not None:
        described = hello.description
        message = "; ".join(described.warnings)[:MESSAGE_MAX]
        status = NodeStatus(state=NodeState.READY, message=message, addr=hello.address)
        tx.put(replace(node, status=status, description=described, boot_id=hello.boot_id))


def set_down(
    tx: Tx, node_ids: Iterable[str], now: dt.datetime, why: str = HEARTBEAT_FAILURE
) -> None:
    for node_id in node_ids:
        node = tx.get(Node, node_id)
        if node is not None:
            since = node.status.down_since or now
            status = replace(node.status, state=NodeState.DOWN, message=why, down_since=since)
            tx.put(replace(node, status=status))


def orphan(tx: Tx, node_id: str, now: dt.datetime) -> None:
    """Give up the unfinished tasks of a node that has been down for long."""
    for task in tx.find(Task, node_id=node_id):
        if TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING:
            status = TaskStatus(
                state=TaskState.ORPHANED,
                timestamp=now,
                message="the node has been down for too long",
                container_status=task.status.container_status,
            )
            tx.put(replace(task, status=status))


def assigned(
    view: View,
) -> tuple[list[Network], list[Service], list[Task], list[Secret | Config]]:
    """What assignments are made of, besides the nodes."""
    tasks = [task for task in view.find(Task) if task.node_id]
    files: list[Secret | Config] = [*view.find(Secret), *view.find(Config)]
    return view.find(Network), view.find(Service), tasks, files


def manager_of(node: Node) -> Manager | None:
    """How agents reach the node's manager, if it has one."""
    status = node.manager_status
    if node.role is not Role.MANAGER or status is None or not status.addr:
        return None
    return Manager(node_id=node.id, address=status.addr)


def managers(view: View) -> tuple[Manager, ...]:
    found = (manager_of(node) for node in view.find(Node))
    return tuple(manager for manager in found if manager is not None)
