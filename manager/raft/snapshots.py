"""What a driver does with snapshots: take them, send them, become them.

                  machine ──pieces──> disk ──chunks──> follower
    leader ──chunks──> core ──parts──> disk ──pieces──> machine

Each way is a stream: nowhere is more of an encoded state in memory than a few chunks.
"""

import asyncio
import logging
from collections.abc import Callable

from manager.raft.config import RaftConfig
from manager.raft.core import Raft
from manager.raft.disk import Disk
from manager.raft.errors import KeyMissing, LogDamaged, SealBroken, SnapshotGone
from manager.raft.leadership import ChunkRequest
from manager.raft.machine import StateMachine
from manager.raft.message import AnyMessage, Entry, SnapshotChunk, SnapshotMeta
from manager.raft.trigger import is_due

_LOG = logging.getLogger(__name__)

CHUNKS_MAX = 64


class SnapshotWork:
    """The tasks of one driver that concern snapshots, and how far its machine is."""

    def __init__(
        self,
        raft: Raft,
        config: RaftConfig,
        disk: Disk,
        machine: StateMachine,
        send: Callable[[AnyMessage], None],
        wake: asyncio.Event,
    ) -> None:
        """`wake` is set when the core has work again."""
        self.applied = 0  # what the machine holds; behind the log's while a snapshot is installed
        self._raft = raft
        self._config = config
        self._disk = disk
        self._machine = machine
        self._send = send
        self._wake = wake
        self._chunks: asyncio.Queue[ChunkRequest] = asyncio.Queue(CHUNKS_MAX)
        self._take = asyncio.Event()
        self._installed = asyncio.Event()
        self._index = 0  # of the last snapshot, taken or become
        self._bytes = 0  # applied since
        self._size = 0  # of the last one
        self._wanted = 0  # one with this entry is wanted, whether it is due or not; 0: none

    def applied_entry(self, entry: Entry) -> None:
        """The machine has applied `entry`."""
        self.applied = entry.index
        self._bytes += len(entry.data)

    def consider(self) -> None:
        """Take a snapshot if it is time to."""
        wanted = 0 < self._wanted <= self.applied
        if wanted or is_due(self._config, self.applied - self._index, self._bytes, self._size):
            self._take.set()

    def want(self, index: int) -> None:
        """Take a snapshot as soon as entry `index` is applied."""
        self._wanted = max(index, self._wanted, 1)
        self._wake.set()

    def request(self, chunk: ChunkRequest) -> None:
        """Read and send it soon; dropped if too many wait, and asked for again after a while."""
        if not self._chunks.full():
            self._chunks.put_nowait(chunk)

    def installed(self) -> None:
        """A received snapshot has replaced the log: the machine is to become its state."""
        self._installed.set()

    async def become(self, meta: SnapshotMeta) -> None:
        """Let the machine become the state of a snapshot on disk."""
        restoring = self._machine.restoring(meta.index)
        await self._disk.feed_snapshot(meta, restoring)
        restoring.become()
        self._index = self.applied = meta.index
        self._bytes, self._size = 0, meta.size

    # Tasks

    async def restore(self) -> None:
        """Become what was received. The log goes on meanwhile; nothing is applied."""
        while True:
            await self._installed.wait()
            self._installed.clear()
            assert self._raft.snapshot
            await self.become(self._raft.snapshot)
            self._raft.restored()
            self._wake.set()

    async def save(self) -> None:
        """Take snapshots of the machine."""
        while True:
            await self._take.wait()
            self._take.clear()
            if self._raft.installing:  # the machine is about to be replaced
                continue
            if self._wanted <= self.applied:
                self._wanted = 0
            described = self._describe()
            pieces = self._machine.snapshot()
            self._index, self._bytes = self.applied, 0
            meta = await self._disk.save_snapshot(described, pieces, self._raft.pinned)
            self._size = meta.size
            self._raft.snapshot_saved(meta)

    def _describe(self) -> SnapshotMeta:
        """The machine's present state; size and CRC come when it is written."""
        log, index = self._raft.log, self.applied
        term = log.term(index)
        assert term is not None
        return SnapshotMeta(index, term, log.configuration_at(index), 0, 0)

    async def send(self) -> None:
        """Read parts of snapshots for followers that are far behind."""
        while True:
            asked = await self._chunks.get()
            try:
                data = await self._disk.read_snapshot(asked.meta, asked.offset, asked.length)
            except SnapshotGone:
                self._raft.snapshot_missing(asked.target, asked.meta)
                self._wake.set()
                continue
            except (LogDamaged, KeyMissing, SealBroken) as error:
                # The state itself is in memory, and good: what is on disk of it is made anew.
                _LOG.error("a snapshot on disk is damaged", extra={"reason": str(error)})
                self._raft.snapshot_damaged(asked.meta)
                self.want(self.applied)
                continue
            self._send(
                SnapshotChunk(
                    self._raft.id, asked.target, asked.term, asked.meta, asked.offset, data
                )
            )
