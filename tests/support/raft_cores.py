"""Raft cores in one hand: no time, no tasks; messages wait until they are delivered."""

import random
from collections.abc import Callable, Iterable

from manager.raft.config import RaftConfig
from manager.raft.core import Raft
from manager.raft.leadership import ChunkRequest
from manager.raft.log import Log
from manager.raft.message import (
    AnyMessage,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    SnapshotChunk,
    encode_configuration,
)
from manager.raft.work import Ready, Role
from tests.support.raft_world import member

CONFIG = RaftConfig()


def core(
    member_id: str = "a",
    members: str = "abc",
    terms: Iterable[int] = (),
    *,
    hard_state: HardState | None = None,
    config: RaftConfig = CONFIG,
    learners: str = "",
) -> Raft:
    """A member whose log holds the configuration and then one entry of each of `terms`."""
    configuration = Configuration(tuple(member(m, learner=m in learners) for m in members))
    entries = [Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(configuration))]
    if not members:
        entries = []
    for term in terms:
        index = len(entries) + 1
        entries.append(Entry(index, term, EntryKind.DATA, b"%d/%d" % (index, term)))
    last_term = entries[-1].term if entries else 0
    state = hard_state or HardState(last_term, "", min(len(entries), 1))
    return Raft(member_id, config, random.Random(member_id), Log(entries=entries), state)


class Cores:
    """Several cores, their messages, and what each has applied."""

    def __init__(self, *rafts: Raft) -> None:
        self.rafts = {raft.id: raft for raft in rafts}
        self.messages: list[AnyMessage] = []
        self.chunks: list[ChunkRequest] = []
        self.applied: dict[str, list[Entry]] = {raft.id: [] for raft in rafts}
        self.reads: list[tuple[int, int]] = []
        self.snapshots: dict[str, bytes] = {}

    def __getitem__(self, member_id: str) -> Raft:
        return self.rafts[member_id]

    def work(self, *member_ids: str) -> None:
        """Take out the work of all, or some, and do it, except for sending."""
        for member_id in member_ids or tuple(self.rafts):
            while self._do(member_id, self.rafts[member_id].ready()):
                pass

    def _do(self, member_id: str, ready: Ready) -> bool:
        self.messages.extend(ready.messages)
        self.applied[member_id].extend(ready.committed)
        self.reads.extend(ready.reads)
        for chunk in ready.chunks:
            data = self.snapshots[member_id][chunk.offset : chunk.offset + chunk.length]
            self.messages.append(
                SnapshotChunk(member_id, chunk.target, chunk.term, chunk.meta, chunk.offset, data)
            )
        if ready.write:
            for part in ready.write.parts:
                known = self.snapshots.get(member_id, b"")[: part.offset]
                self.snapshots[member_id] = known + part.data
            self.rafts[member_id].written(ready.write)
            if ready.write.install:
                self.rafts[member_id].restored()
            self.messages.extend(ready.write.messages)
        return bool(ready.write or ready.committed)

    def deliver(self, keep: Callable[[AnyMessage], bool] = lambda message: True) -> int:
        """Deliver what waits now, dropping what `keep` does not want; how many there were."""
        messages, self.messages = self.messages, []
        for message in messages:
            if keep(message) and message.target in self.rafts:
                self.rafts[message.target].step(message)
        self.work()
        return len(messages)

    def settle(self, keep: Callable[[AnyMessage], bool] = lambda message: True) -> None:
        """Deliver until nothing is on its way."""
        self.work()
        for _ in range(1000):
            if not self.deliver(keep):
                return
        raise AssertionError("the members never stop talking")

    def tick(self, member_id: str, count: int = 1) -> None:
        for _ in range(count):
            self.rafts[member_id].tick()

    def elect(self, member_id: str, keep: Callable[[AnyMessage], bool] = lambda m: True) -> None:
        """Let `member_id` alone run into its election time-out, and settle."""
        for raft in self.rafts.values():
            if raft.id != member_id and raft.role is Role.FOLLOWER:
                self.tick(raft.id, CONFIG.lease_ticks)
        self.tick(member_id, CONFIG.election_max_ticks)
        self.settle(keep)


def without(*member_ids: str) -> Callable[[AnyMessage], bool]:
    """Keep the messages that neither come from nor go to `member_ids`."""
    return lambda m: m.source not in member_ids and m.target not in member_ids
