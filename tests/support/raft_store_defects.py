"""Mistakes around the store, its watches and the log's files, each to be put in by a test."""

from collections.abc import Callable
from typing import Any

import msgspec

from common.errors import NotLeader
from manager.raft import driver
from manager.raft.leadership import Leadership
from manager.raft.log import Log
from manager.raft.message import Heartbeat, SnapshotMeta
from manager.store import store
from manager.store.change import Change, Event, apply_change
from manager.store.pipeline import Pipeline
from manager.store.store import Store
from manager.store.tables import Tables
from manager.store.watch import Ring
from tests.support.faulty_files import FaultyFolder
from tests.support.raft_defects import Patch
from tests.support.raft_world import World


def snapshot_leaves_the_log(patch: Patch) -> None:
    """A snapshot from the leader does not drop the entries behind it that disagree."""
    right = Log.restore

    def wrong(self: Log, meta: SnapshotMeta) -> None:
        first = meta.index + 1
        kept = self.slice(first, self.last_index) if self.last_index >= first else ()
        right(self, meta)
        self._extend(kept)
        self.stable = self._handed = self.last_index

    patch.setattr(Log, "restore", wrong)


def heartbeat_commits_what_is_not_there(patch: Patch) -> None:
    """A follower is told of the leader's commit index, whatever its own log holds."""

    def wrong(self: Leadership) -> None:
        for target in self.progress:
            self._send(Heartbeat(self._id, target, self._term, self._log.commit, self._round))

    patch.setattr(Leadership, "_send_heartbeats", wrong)


def wiped_member_keeps_its_id(patch: Patch) -> None:
    """Who lost its disk, and with it its votes, comes back as the member that it was."""
    right = World.wipe

    def wrong(self: World, member_id: str) -> None:
        right(self, member_id)
        self.start(member_id)

    patch.setattr(World, "wipe", wrong)


def uncertain_is_called_not_written(patch: Patch) -> None:
    patch.setattr(driver, "ProposalUncertain", NotLeader)


def transactions_ignore_those_on_their_way(patch: Patch) -> None:
    patch.setattr(Pipeline, "newest", lambda self: self._committed())


def refused_for_what_may_never_be(patch: Patch) -> None:
    async def wrong(self: Pipeline) -> None:
        pass

    patch.setattr(Pipeline, "settled", wrong)


def read_without_asking(patch: Patch) -> None:
    """Any member answers reads from what it has."""

    async def wrong(self: driver.Driver, **_: object) -> int:
        return self.status.applied

    patch.setattr(driver.Driver, "read_barrier", wrong)


def restore_without_events(patch: Patch) -> None:
    patch.setattr(Ring, "push", _without_many(Ring.push))


def _without_many(right: Callable[..., None]) -> Callable[..., None]:
    """More than three events at once come from a snapshot only."""

    def wrong(self: Ring, version: int, events: list[Event], *rest: Any) -> None:
        if len(events) <= 3:
            right(self, version, events, *rest)

    return wrong


def watch_goes_on_within_a_snapshot(patch: Patch) -> None:
    patch.setattr(Ring, "begin", lambda self, version: None)


def one_event_of_an_entry_is_lost(patch: Patch) -> None:
    right = Ring.push

    def wrong(self: Ring, version: int, events: list[Event], *rest: Any) -> None:
        right(self, version, events[:1], *rest)

    patch.setattr(Ring, "push", wrong)


def apply_looks_at_the_clock(patch: Patch) -> None:
    """The time is written by each manager, rather than by the one that proposed."""
    right = Store.apply

    def wrong(self: Store, index: int, data: bytes) -> None:
        def stamp(tables: Tables, change: Change, at: int) -> Event | None:
            event = apply_change(tables, change, at)
            if event is not None and event.action != "remove":
                new = msgspec.structs.replace(event.object, updated_at=self._clock.now())
                tables.put(new, event.object)
            return event

        with patch.context() as inner:
            inner.setattr(store, "apply_change", stamp)
            right(self, index, data)

    patch.setattr(Store, "apply", wrong)


def log_is_not_synced(patch: Patch) -> None:
    """No sync of a file, ever; that of a folder takes place."""
    right = FaultyFolder._keep
    begun: set[int] = set()

    def wrong(self: FaultyFolder, path: Any, inode: int) -> None:
        if inode not in begun:
            begun.add(inode)
            right(self, path, inode)

    patch.setattr(FaultyFolder, "_keep", wrong)


def names_are_not_synced(patch: Patch) -> None:
    """Segments are made, and their folder is not synced."""
    patch.setattr("manager.raft.files.sync_folder", lambda folder: None)
