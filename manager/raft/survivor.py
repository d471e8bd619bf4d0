"""A new cluster from the disk of one survivor, when the others are lost for good.

Raft has no safe way on without a majority; this is the operator's word that the others do not
come back. The survivor keeps its id, its state and *all* of its log: what is behind the last index
that it knows to be committed may have been acknowledged by the others, and throwing away what
somebody was told is written would be worse than keeping what nobody was. The other members' ids
are among the removed for good, so that, should they come back after all, they are told so and
disturb nobody (Raft thesis 4.2.3, 6.4; RAF 184).

One snapshot holds all of it, state and membership, one entry ahead of the log, and the disk keeps
it whole or not at all: a crash leaves the old cluster or the new one.
"""

from collections.abc import Callable

import msgspec

from common.errors import Conflict
from manager.raft.disk import Disk, Stored
from manager.raft.log import Log
from manager.raft.machine import StateMachine
from manager.raft.message import Configuration, Entry, EntryKind, Member, SnapshotMeta


class Survey(msgspec.Struct, frozen=True):
    """What a survivor's log holds. Two survivors compare by (last_term, last_index)."""

    term: int
    last_index: int
    last_term: int
    commit: int  # all up to here is committed for sure
    tail: tuple[Entry, ...]  # what came behind that, to the last
    members: tuple[Member, ...]  # by the newest configuration, committed or not


def survey(log: Log, term: int) -> Survey:
    """`term` is the newest that the member has seen."""
    return Survey(
        term=term,
        last_index=log.last_index,
        last_term=log.last_term,
        commit=log.commit,
        tail=log.slice(log.commit + 1, log.last_index),
        members=log.configuration.members,
    )


def forced(configuration: Configuration, survivor: Member) -> Configuration:
    """`survivor` alone; all others that ever were are removed. Raises Conflict."""
    if configuration.find(survivor.id) is None:
        raise Conflict(
            "this manager is no member of the cluster by its own log, so it cannot go on alone: "
            "use another manager's"
        )
    others = (member.id for member in configuration.members if member.id != survivor.id)
    alone = msgspec.structs.replace(survivor, learner=False)
    return Configuration((alone,), (*configuration.removed, *others))


async def force(
    disk: Disk, survivor: Member, machine: StateMachine, change: Callable[[], bytes]
) -> SnapshotMeta:
    """Make `disk`, which no driver uses, that of a cluster of `survivor` alone.

    `machine` is empty, and holds the new state afterwards. `change` is asked when it holds the old
    one, for what has to change with it: the data of one more entry, or b"".
    Raises Conflict, LogDamaged or DiskFailed; then the old cluster is as it was.
    """
    stored = await disk.load()
    log = _log(stored)
    configuration = forced(log.configuration, survivor)
    await _replay(disk, stored, machine)
    index = log.last_index + 1
    if data := change():
        machine.apply(index, data)
    term = max(stored.hard_state.term, log.last_term)
    meta = SnapshotMeta(index, term, configuration, 0, 0)
    return await disk.save_snapshot(meta, machine.snapshot())


def _log(stored: Stored) -> Log:
    meta = stored.snapshot
    if meta is None:
        return Log(entries=stored.entries)
    return Log(meta.index, meta.term, meta.configuration, stored.entries)


async def _replay(disk: Disk, stored: Stored, machine: StateMachine) -> None:
    if stored.snapshot is not None:
        restoring = machine.restoring(stored.snapshot.index)
        await disk.feed_snapshot(stored.snapshot, restoring)
        restoring.become()
    for entry in stored.entries:
        if entry.kind is EntryKind.DATA:
            machine.apply(entry.index, entry.data)
