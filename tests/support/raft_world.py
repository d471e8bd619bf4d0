"""A cluster of real Raft drivers in a simulated world, with a checker that sees every step.

The world is a network that loses, delays, repeats and reorders, disks that lose what was not
synced, and processes that are killed. All of it follows from one seed. The rules that are
checked all the time are those of figure 3.2 of the thesis.
"""

import asyncio
import collections
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from manager.raft.config import RaftConfig
from manager.raft.core import Raft
from manager.raft.driver import Driver, bootstrap
from manager.raft.errors import DiskFailed
from manager.raft.machine import StateMachine
from manager.raft.membership import AddLearner, Promote
from manager.raft.message import Entry, Member, Vote, decode
from manager.raft.work import Role
from tests.support.faulty_files import FaultyFiles
from tests.support.raft_disk import FakeDisk, Platter
from tests.support.raft_file_disk import FaultyFileDisk

SimulatedDisk = FakeDisk | FaultyFileDisk

SIM_CONFIG = RaftConfig(
    snapshot_entries=40, keep_entries=8, chunk_bytes=256, append_bytes=400, window=4
)
RATES = (8, 10, 10, 14)  # tenths: how long a second of a clock that drifts may take
TRACE_LINES = 60
LINE_MAX = 180


class Violation(AssertionError):
    """A rule of Raft was broken."""


class Machine:
    """Applies entries to a list; its snapshot is the list."""

    def __init__(self, node: str, checker: "Checker") -> None:
        self.values: list[tuple[int, bytes]] = []
        self.digest = 0
        self.changing = False  # into another state: nothing may be applied
        self._node = node
        self._checker = checker

    def apply(self, index: int, data: bytes) -> None:
        assert not self.changing, "applied to a state that is about to be replaced"
        self.values.append((index, data))
        self.digest = zlib.crc32(data, zlib.crc32(b"%d" % index, self.digest))
        self._checker.applied(self._node, index, data, self.digest)

    def snapshot(self) -> Iterator[bytes]:
        return _pieces(self.digest, tuple(self.values))

    def restoring(self, index: int) -> "_Restoring":
        self.changing = True
        return _Restoring(self._become)

    def _become(self, data: bytes) -> None:
        kind = tuple[int, list[tuple[int, bytes]]]
        self.digest, self.values = msgspec.msgpack.decode(data, type=kind)
        self.changing = False
        self._checker.restored(self._node, self.values, self.digest)


def _pieces(digest: int, values: tuple[tuple[int, bytes], ...]) -> Iterator[bytes]:
    whole = msgspec.msgpack.encode((digest, values))
    for begin in range(0, len(whole), 100):
        yield whole[begin : begin + 100]


class _Restoring:
    """A state on its way into a machine."""

    def __init__(self, become: Callable[[bytes], None]) -> None:
        self._become = become
        self._data = bytearray()
        self._ended = False

    def add(self, piece: bytes | memoryview) -> None:
        self._data += piece

    def end(self) -> Iterator[None]:
        yield
        self._ended = True

    def become(self) -> None:
        assert self._ended
        self._become(self._data)


class Checker:
    """Watches all members. The first broken rule is kept in `violation`."""

    def __init__(self) -> None:
        self.violation: Violation | None = None
        self.trace: collections.deque[tuple[float, object]] = collections.deque(maxlen=TRACE_LINES)
        self.digest = 0  # of everything that happened
        self.recovery_s = 0.0  # from healing until everything works, everywhere
        self.leaders: dict[int, str] = {}
        self.committed: dict[int, tuple[bytes, int]] = {}  # index -> data, digest of the state
        self.acknowledged: dict[bytes, int] = {}
        self._logs: dict[tuple[int, int], tuple[int, Entry]] = {}  # -> term before, entry
        self._committed_terms: dict[int, int] = {}

    def note(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        self.trace.append((now, what))
        self.digest = zlib.crc32(f"{now:.9f} {what}".encode(), self.digest)

    def require(self, holds: bool, rule: str) -> None:
        if not holds and self.violation is None:
            self.violation = Violation(rule)

    def applied(self, node: str, index: int, data: bytes, digest: int) -> None:
        self.note(f"{node} applies {index} {data!r}")
        known = self.committed.setdefault(index, (data, digest))
        self.require(known == (data, digest), f"state machine safety: {node} at {index}")

    def restored(self, node: str, values: list[tuple[int, bytes]], digest: int) -> None:
        if values:
            index, data = values[-1]
            known = self.committed.get(index)
            self.require(known == (data, digest), f"{node} restored another state at {index}")

    def wrote(self, node: str, entries: Iterable[Entry], raft: Raft) -> None:
        """Log matching (3.5), by induction: an entry and its predecessor's term go together."""
        for entry in entries:
            before = raft.log.term(entry.index - 1)
            if raft.log.term(entry.index) != entry.term or before is None:
                continue
            known = self._logs.setdefault((entry.index, entry.term), (before, entry))
            self.require(known == (before, entry), f"log matching: {node} at {entry.index}")

    def looked_at(self, node: str, raft: Raft) -> None:
        """Election safety (3.4) and leader completeness (3.6.3)."""
        if raft.role is Role.LEADER and self.leaders.get(raft.term) != node:
            self.note(f"{node} leads term {raft.term}")
            first = self.leaders.setdefault(raft.term, node)
            self.require(first == node, f"election safety: {first}, {node} lead {raft.term}")
            for index, term in self._committed_terms.items():
                has = raft.log.term(index) == term or index <= raft.log.base_index
                self.require(has or term > raft.term, f"leader completeness: {node} lacks {index}")
        log = raft.log
        for index in range(max(self._highest + 1, log.base_index), log.applied + 1):
            self._committed_terms[index] = log.term(index) or 0

    @property
    def _highest(self) -> int:
        return next(reversed(self._committed_terms), 0)


class _PausableDriver(Driver):
    """A driver whose time can stand still, as in a machine that is suspended."""

    def __init__(self, *, running: asyncio.Event, **rest: Any) -> None:
        super().__init__(**rest)
        self._awake = running
        self._asleep = asyncio.Event()

    def pause(self) -> None:
        self._awake.clear()
        self._asleep.set()

    def resume(self) -> None:
        self._asleep.clear()
        self._awake.set()

    async def _tick(self) -> None:
        while True:
            await self._awake.wait()
            async with asyncio.TaskGroup() as group:
                ticking = group.create_task(super()._tick())
                await self._asleep.wait()
                ticking.cancel()


class Process:
    """One member from its start to its crash."""

    def __init__(self, world: "World", member: Member, run: int) -> None:
        self.member = member
        self.alive = True
        name = f"{world.seed}/{member.id}/{run}"
        self.disk = world.make_disk(member.id, random.Random(f"{name}/disk"))
        self.machine = world.make_machine(member.id)
        self.around: list[asyncio.Task[None]] = []  # what ends with it
        self.paused = False
        self._inbox: list[bytes] = []  # what came while it was paused
        self.driver = _PausableDriver(
            running=self.disk.running,
            member_id=member.id,
            config=world.config_at_start(),
            disk=self.disk,
            network=_Port(world, self),
            machine=self.machine,
            rng=random.Random(f"{name}/raft"),
        )
        self._world = world
        self._task = world.group.create_task(self._run(), name=member.id)

    async def _run(self) -> None:
        try:
            await self.driver.run()
        except DiskFailed:
            self._world.checker.note(f"{self.member.id} ends: its disk failed")
        except Exception as error:  # noqa: BLE001 - any error of a driver is the finding
            if self.alive:
                problem = f"{self.member.id} ended: {error!r}"
                self._world.checker.require(False, problem)
        self._end()

    def crash(self) -> None:
        self.disk.crash()
        self._task.cancel()
        self._end()

    def _end(self) -> None:
        self.alive = False
        for task in self.around:
            task.cancel()

    def pause(self) -> None:
        """Stop its clock and its disk; messages wait. Its peers see only silence."""
        self.paused = True
        self.driver.pause()

    def resume(self) -> None:
        """Go on as if no time had passed, with all that has come meanwhile."""
        self.paused = False
        self.driver.resume()
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            self.receive(message)

    def receive(self, message: bytes) -> None:
        if self.paused:
            self._inbox.append(message)
        elif self.alive:
            self.driver.receive(message)
            self.look()

    def has_applied(self, index: int) -> Callable[[], bool]:
        return lambda: self.driver.status.applied >= index

    def look(self) -> None:
        raft = self.driver.raft
        self._world.checker.looked_at(self.member.id, raft)
        if self.disk.written:
            self._world.checker.wrote(self.member.id, self.disk.written, raft)
            self.disk.written.clear()


class _Port:
    """One process's end of the network."""

    def __init__(self, world: "World", process: Process) -> None:
        self._world = world
        self._process = process

    def send(self, member: Member, message: bytes) -> None:
        if self._process.alive:
            self._process.look()
            self._world.carry(self._process.member.id, member.id, message)


class World:
    """Members, their disks, and the network between them."""

    def __init__(
        self,
        seed: str,
        group: asyncio.TaskGroup,
        *,
        config: RaftConfig = SIM_CONFIG,
        files: FaultyFiles | None = None,
        drift: bool = False,
    ) -> None:
        """With `files`, members write real files, by the product's own code.

        With `drift`, clocks do not go equally fast.
        """
        self.seed = seed
        self.group = group
        self.config = config
        self.files = files
        self._disks: dict[str, FaultyFileDisk] = {}
        self._rates = random.Random(f"{seed}/clocks") if drift else None
        self.checker = self.make_checker()
        self.processes: dict[str, Process] = {}
        self.platters: dict[str, Platter] = {}
        self.loss = 0.0
        self.duplication = 0.0
        self.delay_s = (0.0005, 0.003)
        self.cut: dict[tuple[str, str], None] = {}
        self.heard_vote: Callable[[Process], None] | None = None  # told of requests for a vote
        self._rng = random.Random(f"{seed}/network")
        self._runs = 0

    def make_checker(self) -> Checker:
        return Checker()

    def config_at_start(self) -> RaftConfig:
        """With slow or fast clocks, all that a process takes for so many milliseconds differs."""
        config = self.config
        if self._rates is None:
            return config
        rate = self._rates.choice(RATES)
        return msgspec.structs.replace(
            config,
            tick_ms=config.tick_ms * rate // 10,
            heartbeat_ms=config.heartbeat_ms * rate // 10,
            election_min_ms=config.election_min_ms * rate // 10,
            election_max_ms=config.election_max_ms * rate // 10,
        )

    def make_disk(self, member_id: str, rng: random.Random) -> SimulatedDisk:
        """The disk of `member_id`, with what its last run has left."""
        if self.files is None:
            platter = self.platters.setdefault(member_id, Platter())
            return FakeDisk(platter, rng)
        before = self._disks.get(member_id)
        path, folder = self.files.folder(before.left() if before else {}, rng)
        disk = self._disks[member_id] = FaultyFileDisk(path, folder, member_id, rng)
        return disk

    def wipe(self, member_id: str) -> None:
        """The machine of `member_id` breaks down, and its disk is lost."""
        self.processes.pop(member_id).crash()
        self.platters.pop(member_id, None)
        self._disks.pop(member_id, None)

    def make_machine(self, member_id: str) -> StateMachine:
        """What a process of `member_id` applies the log to."""
        return Machine(member_id, self.checker)

    def compare(self, member_ids: Iterable[str]) -> None:
        """Require that all of them hold the same, and everything that was acknowledged."""
        machines = [self.processes[member_id].machine for member_id in member_ids]
        values = [dict(m.values) for m in machines if isinstance(m, Machine)]
        self.checker.require(all(v == values[0] for v in values), "state machines differ")
        for value, index in self.checker.acknowledged.items():
            self.checker.require(values[0].get(index) == value, f"acknowledged {value!r} is lost")

    # Processes

    def start(self, member_id: str) -> Process:
        """Start member `member_id` on what its disk holds."""
        self._runs += 1
        self.checker.note(f"{member_id} starts")
        process = Process(self, member(member_id), self._runs)
        self.processes[member_id] = process
        return process

    def crash(self, member_id: str) -> None:
        self.checker.note(f"{member_id} crashes")
        self.processes[member_id].crash()

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive]

    def leader(self) -> Process | None:
        """The leader of the newest term among the living."""
        leading = [process for process in self.alive if process.driver.raft.role is Role.LEADER]
        return max(leading, key=lambda process: process.driver.raft.term, default=None)

    async def found(self, count: int) -> Process:
        """A cluster of `count` voters, m1 leading."""
        disk = self.make_disk("m1", random.Random(self.seed))
        await bootstrap(disk, member("m1"))
        await disk.close()
        first = self.start("m1")
        for number in range(2, count + 1):
            await self.add(f"m{number}")
        await self.await_leader()
        return first

    async def add(self, member_id: str) -> None:
        """Start a new member, and make it a voter once it has caught up."""
        self.start(member_id)
        leader = await self.await_leader()
        await leader.driver.change_members(AddLearner(member(member_id)))
        await until(lambda: self._caught_up(leader, member_id))
        await leader.driver.change_members(Promote(member_id))

    def _caught_up(self, leader: Process, member_id: str) -> bool:
        status = leader.driver.status
        return any(f.id == member_id and f.match >= status.commit for f in status.followers)

    async def await_leader(self) -> Process:
        """The leader, as soon as there is one."""
        await until(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader
        return leader

    async def await_applied(self, member_ids: Iterable[str], index: int) -> None:
        """Until all of `member_ids` have applied entry `index`."""
        for member_id in member_ids:
            await until(self.processes[member_id].has_applied(index))

    # Network

    def carry(self, source: str, target: str, message: bytes) -> None:
        """Take a message, and deliver it never, once or twice."""
        self.checker.digest = zlib.crc32(message, self.checker.digest)
        rng = self._rng
        if (source, target) in self.cut or rng.random() < self.loss:
            return
        loop = asyncio.get_running_loop()
        loop.call_later(rng.uniform(*self.delay_s), self._deliver, source, target, message)
        if rng.random() < self.duplication:
            later = rng.uniform(*self.delay_s) * 5
            loop.call_later(later, self._deliver, source, target, message)

    def _deliver(self, source: str, target: str, message: bytes) -> None:
        process = self.processes.get(target)
        if process is None or not process.alive or (source, target) in self.cut:
            return
        now = asyncio.get_running_loop().time()
        self.checker.trace.append((now, _Line(source, target, message)))
        process.receive(message)
        if self.heard_vote and process.alive and _is_vote(message):
            self.heard_vote(process)

    def partition(self, side: Iterable[str], *, one_way: bool = False) -> None:
        """Cut `side` off from all others; with `one_way` it hears nothing but is heard."""
        side = list(side)
        others = [m for m in self.processes if m not in side]
        for inner in side:
            for outer in others:
                self.cut[outer, inner] = None
                if not one_way:
                    self.cut[inner, outer] = None

    def heal(self) -> None:
        self.cut.clear()
        self.loss = self.duplication = 0.0
        self.delay_s = (0.0005, 0.003)
        for process in self.processes.values():
            process.disk.slowness_s = 0.0
            process.disk.broken = False
            if process.paused:
                process.resume()


def _is_vote(message: bytes) -> bool:
    vote = decode(message).message
    return isinstance(vote, Vote) and not vote.pre


class _Line:
    """A delivered message, put into words only if somebody wants to read it."""

    def __init__(self, source: str, target: str, message: bytes) -> None:
        self._parts = (source, target, message)

    def __str__(self) -> str:
        source, target, message = self._parts
        return f"{source} -> {target}: {decode(message).message}"


async def until(holds: Callable[[], bool]) -> None:
    """Look every hundredth of a (virtual) second whether something holds."""
    while not holds():  # noqa: ASYNC110 - there is no event; virtual time costs nothing
        await asyncio.sleep(0.01)


def member(member_id: str, *, learner: bool = False) -> Member:
    """Member "m1" of node "node-m1" at m1.example:2377."""
    return Member(member_id, f"node-{member_id}", f"{member_id}.example:2377", learner)


def story(checker: Checker) -> str:
    """The last events, to be read."""
    return "\n".join(f"{now:9.4f}  {what}"[:LINE_MAX] for now, what in checker.trace)
