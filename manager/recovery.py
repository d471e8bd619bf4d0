"""Going on with one manager when too many are lost: what that would cost, and doing it.

The CA, tokens, networks, services, tasks and nodes stay. The other managers' nodes become workers
(when they come back they can be promoted again), and their tasks are replaced when they stay down.
"""

import collections
import datetime as dt
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from common.clock import Clock
from common.errors import Conflict
from common.model.base import Model
from common.model.node import ManagerStatus, Node, Role
from manager.raft.disk import FileDisk
from manager.raft.message import Entry, EntryKind, Member
from manager.raft.survivor import force, survey
from manager.store.change import Put, decode_entry, encode_change, encode_entry
from manager.store.store import Store, View
from manager.store.tables import KINDS

if TYPE_CHECKING:
    from manager.manager import Manager


class LostManager(Model, frozen=True, kw_only=True):
    """One that would be dropped."""

    node_id: str
    hostname: str = ""
    addr: str = ""


class Prospect(Model, frozen=True, kw_only=True):
    """What `swarm init --force-new-cluster` would keep and drop, from this manager's log."""

    node_id: str
    raft_id: str
    term: int
    last_index: int
    last_term: int  # of two survivors the one with the higher (last term, last index) has more
    committed_index: int
    uncommitted_entries: int = msgspec.field(default_factory=int)
    uncommitted_changes: dict[str, int] = msgspec.field(default_factory=dict)  # "service put": 2
    dropped_managers: tuple[LostManager, ...] = msgspec.field(default_factory=tuple)
    objects: dict[str, int] = msgspec.field(default_factory=dict)
    last_change: str = ""  # of the newest object here, RFC 3339
    leader_silent_seconds: float | None = None  # None: heard of none since the daemon's start


def prospect(manager: "Manager") -> Prospect:
    """What forcing a new cluster from `manager` would do. Raises Conflict where it is refused."""
    check_lost(manager)
    raft, view = manager.raft.raft, manager.store.view()
    found = survey(raft.log, raft.term)
    hostnames = {node.id: node.description.hostname for node in view.find(Node)}
    return Prospect(
        node_id=manager.node_id,
        raft_id=manager.raft.member_id,
        term=found.term,
        last_index=found.last_index,
        last_term=found.last_term,
        committed_index=found.commit,
        uncommitted_entries=len(found.tail),
        uncommitted_changes=_changes(found.tail),
        dropped_managers=tuple(
            LostManager(
                node_id=one.node_id, hostname=hostnames.get(one.node_id, ""), addr=one.address
            )
            for one in found.members
            if one.id != manager.raft.member_id
        ),
        objects=_count(view),
        last_change=_last_change(view),
        leader_silent_seconds=manager.raft.silence_s,
    )


def check_lost(manager: "Manager") -> None:
    """Raises Conflict while the cluster has a leader and others: it would be torn in two."""
    status = manager.raft.status
    others = len(status.members) > 1
    if others and (manager.is_leader or manager.leader_address):
        raise Conflict(
            "this cluster has a leader, so nothing has to be forced; take out managers with "
            "`node demote` and `node rm`"
        )
    if not status.members:
        raise Conflict("this manager has no log yet to go on with; use another manager's")


async def make_survivor(disk: FileDisk, survivor: Member, clock: Clock) -> None:
    """Make the log on `disk` that of a cluster of `survivor` alone; closes `disk`.

    Raises Conflict, LogDamaged or DiskFailed; then the old cluster is as it was.
    """
    store = Store(clock)
    try:
        await force(disk, survivor, store, lambda: _alone(store.view(), survivor, clock.now()))
    finally:
        await disk.close()


def _alone(view: View, survivor: Member, now: dt.datetime) -> bytes:
    """The entry after which the survivor's node is the only manager."""
    changes = []
    for node in view.find(Node):
        changed = _as_manager(node, survivor) if node.id == survivor.node_id else _as_worker(node)
        if changed != node:
            changed = msgspec.structs.replace(changed, updated_at=now)
            changes.append(encode_change(Put(changed)))
    return encode_entry(changes) if changes else b""


def _as_manager(node: Node, survivor: Member) -> Node:
    spec = msgspec.structs.replace(node.spec, role=Role.MANAGER)
    status = ManagerStatus(addr=survivor.address, raft_id=survivor.id)
    return msgspec.structs.replace(node, spec=spec, role=Role.MANAGER, manager_status=status)


def _as_worker(node: Node) -> Node:
    spec = msgspec.structs.replace(node.spec, role=Role.WORKER)
    return msgspec.structs.replace(node, spec=spec, role=Role.WORKER, manager_status=None)


def _changes(tail: Iterable[Entry]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for entry in tail:
        if entry.kind is EntryKind.DATA:
            for change in decode_entry(entry.data):
                kind = type(change.object) if isinstance(change, Put) else change.kind
                verb = "written" if isinstance(change, Put) else "deleted"
                counts[f"{kind.__name__.lower()} {verb}"] += 1
    return dict(counts)


def _count(view: View) -> dict[str, int]:
    counts = {kind.type.__name__.lower(): len(view.find(kind.type)) for kind in KINDS}
    return {name: count for name, count in counts.items() if count}


def _last_change(view: View) -> str:
    moments = [object.updated_at for kind in KINDS for object in view.find(kind.type)]
    return max(moments).isoformat() if moments else ""
