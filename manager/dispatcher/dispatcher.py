"""The leader's end of all agents' sessions: liveness, assignments, statuses, logs.

    store ──events──► Assignments ──flush──► Connection ──► agent      (assignments.py)
    agent ──Applied──► StopBarrier ──release──► Assignments            (stopping.py)
    agent ──StatusReport──► StatusIntake ──► store                     (statuses.py)
    agent ──anything──► Liveness ──silence──► node DOWN                (sessions.py)

Lives as long as this manager leads: `run` in the leader's task group, `serve` in the handler of
each agent's stream.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

import msgspec

from common.clock import Clock
from common.ids import Ids
from common.model.cluster import Cluster, DispatcherConfig
from common.model.node import Node, NodeState
from common.model.task import SECOND, Task
from common.protocol.dispatcher import (
    Applied,
    Assign,
    FromAgent,
    Heartbeat,
    Hello,
    LogChunk,
    LogEnd,
    LogLine,
    LogRequest,
    Manager,
    Redirect,
    Refused,
    Resync,
    SessionUpdate,
    StatusReport,
    ToAgent,
    Welcome,
    decode_from_agent,
    encode,
)
from common.protocol.execs import ExecEnd, ExecOutput, ExecTaken
from common.protocol.usage import UsageReport
from common.streams import Stream, StreamClosed
from manager.dispatcher import nodes
from manager.dispatcher.admission import Admission
from manager.dispatcher.assignments import Assignments, Hold
from manager.dispatcher.connection import Connection, LogMessage
from manager.dispatcher.execs import ExecRelay
from manager.dispatcher.logs import LogRelay
from manager.dispatcher.sessions import Liveness
from manager.dispatcher.statuses import StatusIntake
from manager.dispatcher.stopping import DEADLINE_S, DRAIN_S, StopBarrier
from manager.dispatcher.usage import UsageBook
from manager.store.store import Event, Store, View, Watcher
from manager.store.store import Resync as MissedEvents

log = logging.getLogger(__name__)

COALESCE_S = 0.002  # commits of one burst come closer together than this
HELLO_S = 10.0
RESYNC_S = 1.0  # an agent that wants complete sets faster has to reconnect
HOUR_S = 3600.0
DOWN_AT_ONCE = 200  # nodes in one transaction
NAMED_MAX = 20  # nodes in one line of the daemon's log


class Dispatcher:
    """Serves the agents of the cluster while this manager leads."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rng: random.Random,
        *,
        drain_s: float = DRAIN_S,
        stop_deadline_s: float = DEADLINE_S,
        orphan_s: float = 24 * HOUR_S,
        silent_elsewhere: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`drain_s`: from the last node's word that a task gets no new requests to its stop.
        `stop_deadline_s`: how long a node that does not answer may delay that.
        `orphan_s`: how long a node is down until its tasks are given up.
        `silent_elsewhere`: whether a node is a manager that Raft does not hear either."""
        self._store = store
        self._clock = clock
        self._ids = Ids(rng)
        self._orphan_s = orphan_s
        self._assignments = Assignments()
        self._barrier = StopBarrier(stop_deadline_s, drain_s)
        self._liveness = Liveness(1.0, silent_elsewhere)
        self._admission = Admission(store, self._ids, self._on_registered, lambda: self._managers)
        self._intake = StatusIntake(store, self._assignments.node_of, self._on_stored)
        self._relay = LogRelay(self._ids, self._relay_to, self._now_ns)
        self.execs = ExecRelay(self._ids, self._relay_to)
        self.usage = UsageBook(self._relay_to, clock.now)
        self._connections: dict[str, Connection] = {}
        self._sequences: dict[str, int] = {}  # last assignment sent, by node; spans sessions
        self._applied: dict[str, int] = {}
        self._resynced: dict[str, float] = {}
        self._down_since: dict[str, float] = {}
        self._seen_tasks: dict[str, Task] = {}  # since the last flush
        self._managers: tuple[Manager, ...] = ()
        self._turns: asyncio.Queue[Connection] = asyncio.Queue()  # one place for each session
        self._serving = asyncio.Event()
        self._dirty = asyncio.Event()
        self._timers = asyncio.Event()
        self._over = False
        self._mismatches = 0
        self._unanswered = 0

    @property
    def unanswered(self) -> int:
        """How often tasks were stopped before a node had said that it sends them no requests."""
        return self._unanswered

    @property
    def mismatches(self) -> int:
        """How often a node had another network table than it was sent, since the term began."""
        return self._mismatches

    # The term

    async def run(self) -> None:
        """Serve until cancelled. What the store raises ends it."""
        try:
            with self._store.watch() as watcher:
                await self._begin()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch(watcher), name="dispatcher events")
                    group.create_task(self._flush_often(), name="dispatcher flush")
                    group.create_task(self._keep_time(), name="dispatcher timers")
                    group.create_task(self._grant_turns(), name="dispatcher turns")
                    group.create_task(self._intake.run(), name="dispatcher statuses")
        finally:
            self._over = True
            self._serving.set()  # whoever waits to be served is turned away
            for connection in self._connections.values():
                connection.end(Redirect(leader=None))

    async def _begin(self) -> None:
        """Nodes are not lost because the leader changed: they get time to find this one."""
        while await self._store.update(nodes.all_unknown):
            pass
        view = self._store.view()
        self._set_period(view)
        now = self._now()
        for node in view.find(Node):
            if node.status.state is NodeState.DOWN:
                since_at = node.status.down_since or node.updated_at
                since = (self._clock.now() - since_at).total_seconds()
                self._down_since[node.id] = now - max(since, 0.0)
            else:
                self._liveness.expect(node.id, now)
        self._load(view)
        self._serving.set()

    def _load(self, view: View) -> None:
        self._managers = nodes.managers(view)
        self._assignments.load(view.find(Node), *nodes.assigned(view))
        self._dirty.set()

    async def _watch(self, watcher: Watcher) -> None:
        while True:
            try:
                for event in await watcher.next():
                    self._observe(event)
            except MissedEvents:
                view = self._store.view()
                self._set_period(view)
                self._load(view)
                self._drop_removed(view)
                self._update_sessions()
            if self._assignments.dirty:
                self._dirty.set()

    def _observe(self, event: Event) -> None:
        removed = event.action == "remove"
        self._assignments.observe(event.object, removed=removed)
        match event.object:
            case Task() if not removed and event.object.node_id:
                self._seen_tasks[event.object.id] = event.object
            case Node() if removed:
                self._node_removed(event.object.id)
            case Node():
                self._node_changed(event.object, event.old)
            case Cluster():
                self._set_period(self._store.view())
                self._update_sessions()

    def _set_period(self, view: View) -> None:
        cluster = next(iter(view.find(Cluster)), None)
        config = DispatcherConfig() if cluster is None else cluster.spec.dispatcher
        period_s = max(config.heartbeat_period / SECOND, 0.05)
        self._liveness.period_s = period_s
        self._admission.set_period(period_s)

    # Nodes

    def _node_changed(self, node: Node, old: object) -> None:
        if nodes.manager_of(node) != (nodes.manager_of(old) if isinstance(old, Node) else None):
            self._managers = nodes.managers(self._store.view())
            self._update_sessions()
        elif isinstance(old, Node) and old.spec.role is not node.spec.role:
            self._update_session(node.id)

    def _node_removed(self, node_id: str) -> None:
        if connection := self._connections.get(node_id):
            connection.end(Refused(reason="the node was removed from the cluster", removed=True))
        self._liveness.forget(node_id)
        self._barrier.forget(node_id, self._now())
        self._admission.forget(node_id)
        for memory in (self._sequences, self._applied, self._resynced, self._down_since):
            memory.pop(node_id, None)
        self._managers = nodes.managers(self._store.view())
        self._update_sessions()

    def _drop_removed(self, view: View) -> None:
        for node_id in {*self._liveness.alive(), *self._connections, *self._down_since}:
            if view.get(Node, node_id) is None:
                self._node_removed(node_id)

    def _update_sessions(self) -> None:
        for node_id in self._connections:
            self._update_session(node_id)

    def _update_session(self, node_id: str) -> None:
        node = self._store.view().get(Node, node_id)
        if node is not None and (connection := self._connections.get(node_id)) is not None:
            update = SessionUpdate(
                role=node.spec.role.value,
                managers=self._managers,
                heartbeat_s=self._liveness.period_s,
            )
            connection.update(update)

    # Assignments

    async def _flush_often(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(COALESCE_S)
            self._dirty.clear()
            self._flush()

    async def _grant_turns(self) -> None:
        """One complete set in a turn of the loop: when thousands of agents come at once, timers and
        heartbeats are served between them."""
        while True:
            (await self._turns.get()).grant()
            await asyncio.sleep(0)

    def _flush(self) -> None:
        flush = self._assignments.flush()
        for node_id, increment in flush.increments.items():
            self._connections[node_id].assign(self._numbered(node_id, increment))
        # After the increments: an agent is asked for lines of tasks that it knows.
        seen, self._seen_tasks = self._seen_tasks, {}
        for task in seen.values():
            self._relay.observe(task)
        by_topics: dict[frozenset[str], list[Hold]] = {}
        for hold in flush.holds:
            by_topics.setdefault(hold.topics, []).append(hold)
        for topics, holds in by_topics.items():
            waits = self._waits(topics)
            self._barrier.begin((hold.task_id for hold in holds), waits, self._now())
            self._timers.set()

    def _waits(self, topics: frozenset[str]) -> dict[str, int]:
        """Up to which assignment each node that follows `topics` must have applied.

        A node whose stream is broken may still send requests: it counts until it is down.
        """
        waits = {}
        for node_id in self._liveness.alive():
            if self._assignments.topics(node_id) & topics:
                last = self._sequences.get(node_id, 0)
                if node_id not in self._connections:
                    last += 1
                if self._applied.get(node_id, 0) < last:
                    waits[node_id] = last
        return waits

    def _numbered(self, node_id: str, assign: Assign) -> Assign:
        sequence = self._sequences[node_id] = self._sequences.get(node_id, 0) + 1
        return msgspec.structs.replace(assign, sequence=sequence)

    def _complete(self, node_id: str) -> Assign:
        self._flush()
        return self._numbered(node_id, self._assignments.connect(node_id))

    # Time

    async def _keep_time(self) -> None:
        while True:
            await self._until_due()
            now = self._now()
            for task_id in self._barrier.due(now):
                self._assignments.release(task_id)
            self._note_silent()
            if self._assignments.dirty:
                self._dirty.set()
            if lost := self._liveness.lost(now):
                await self._nodes_down(lost)
            await self._orphan()

    def _note_silent(self) -> None:
        """Tell of the nodes for which tasks waited in vain before they were stopped."""
        silent, self._barrier.given_up = self._barrier.given_up, []
        if silent:
            self._unanswered += len(silent)
            names = " ".join(sorted(set(silent)))
            log.warning("tasks are stopped although these nodes may send requests: %s", names)

    async def _until_due(self) -> None:
        """Until the next moment of anybody's, or until the moments change."""
        moments = [self._barrier.wake_at, self._liveness.wake_at]
        moments += [since + self._orphan_s for since in self._down_since.values()]
        at = min((moment for moment in moments if moment is not None), default=None)
        self._timers.clear()
        try:
            async with asyncio.timeout_at(at):
                await self._timers.wait()
        except TimeoutError:
            return

    async def _nodes_down(self, lost: list[str]) -> None:
        now = self._now()
        for node_id in lost:
            self._down_since[node_id] = now
            self._barrier.forget(node_id, now)
            if connection := self._connections.get(node_id):
                connection.end()
        # One that has come back meanwhile is in `_liveness` again and must stay READY.
        for first in range(0, len(lost), DOWN_AT_ONCE):
            some = lost[first : first + DOWN_AT_ONCE]
            gone = (id for id in some if id not in self._liveness)
            await self._store.update(
                lambda tx, gone=gone: nodes.set_down(tx, gone, self._clock.now())  # type: ignore[misc]
            )
        more = f" and {len(lost) - NAMED_MAX} more" if len(lost) > NAMED_MAX else ""
        log.warning("nodes are down: %s%s", " ".join(lost[:NAMED_MAX]), more)

    async def left(self, node_id: str) -> None:
        """The node's agent has ended and says that it will not come back: do not wait for it."""
        now = self._now()
        self._liveness.forget(node_id)
        self._barrier.forget(node_id, now)
        self._down_since[node_id] = now
        self._timers.set()
        if connection := self._connections.get(node_id):
            connection.end()
        await self._store.update(
            lambda tx: nodes.set_down(tx, [node_id], self._clock.now(), nodes.LEFT)
        )
        log.info("node left the cluster", extra={"left": node_id})

    async def _orphan(self) -> None:
        now = self._now()
        for node_id, since in list(self._down_since.items()):
            if since + self._orphan_s <= now:
                del self._down_since[node_id]
                await self._store.update(
                    lambda tx, id=node_id: nodes.orphan(tx, id, self._clock.now())  # type: ignore[misc]
                )

    # Sessions

    async def serve(self, node_id: str, stream: Stream) -> None:
        """Serve the agent of `node_id`, whose identity is proved, until its stream ends."""
        try:
            async with asyncio.timeout(HELLO_S):
                hello = decode_from_agent(await stream.receive())
            answer = await self._admit(node_id, hello)
            if isinstance(answer, Welcome):
                await self._session(node_id, stream, answer)
            else:
                await _say(stream, answer)
        except (StreamClosed, TimeoutError, msgspec.MsgspecError) as error:
            log.info("session of node %s ended: %s", node_id, error or type(error).__name__)
        finally:
            await stream.close()

    async def _admit(self, node_id: str, hello: FromAgent) -> Welcome | Refused | Redirect:
        await self._serving.wait()
        answer = (
            Redirect(leader=None) if self._over else await self._admission.admit(node_id, hello)
        )
        return Redirect(leader=None) if self._over else answer

    def _on_registered(self, node_id: str) -> None:
        self._liveness.heard(node_id, self._now())
        self._down_since.pop(node_id, None)
        self._timers.set()

    async def _session(self, node_id: str, stream: Stream, welcome: Welcome) -> None:
        old = self._connections.get(node_id)
        if old is not None:
            old.end()
        connection = Connection(
            node_id,
            welcome.session_id,
            stream,
            lambda: self._complete(node_id),
            self._turns.put_nowait,
        )
        self._connections[node_id] = connection
        self._liveness.heard(node_id, self._now())
        self._relay.disconnected(node_id)
        self.execs.disconnected(node_id)
        self._relay.connected(node_id)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(connection, stream))
                await connection.run(welcome)
                reader.cancel()
        except* (StreamClosed, msgspec.MsgspecError) as errors:
            log.info("session of node %s ended: %s", node_id, errors.exceptions[0])
        finally:
            if self._connections.get(node_id) is connection:
                del self._connections[node_id]
                self._assignments.disconnect(node_id)
                self._relay.disconnected(node_id)
                self.execs.disconnected(node_id)

    async def _read(self, connection: Connection, stream: Stream) -> None:
        while True:
            message = decode_from_agent(await stream.receive())
            if self._connections.get(connection.node_id) is not connection:
                raise StreamClosed("the node has registered again")
            self._liveness.heard(connection.node_id, self._now())
            self._take(connection, message)

    def _take(self, connection: Connection, message: FromAgent) -> None:
        node_id = connection.node_id
        match message:
            case Heartbeat():
                self._on_heartbeat(connection, message)
            case Applied():
                self._on_applied(node_id, message.sequence)
            case StatusReport():
                if refused := self._intake.take(node_id, connection.session_id, message):
                    log.warning("node %s reported tasks not its own: %s", node_id, refused[:5])
            case Resync():
                self._mismatches += message.digest
                log.warning("node %s wants a complete set: %s", node_id, message.reason)
                self._resync(connection)
            case LogChunk():
                self._relay.chunk(node_id, message)
            case LogEnd():
                self._relay.end(node_id, message)
            case ExecOutput() | ExecTaken() | ExecEnd():
                self.execs.take(node_id, message)
            case UsageReport():
                self.usage.take(node_id, message)
            case Hello():
                raise StreamClosed("hello in the middle of a session")

    def _on_heartbeat(self, connection: Connection, beat: Heartbeat) -> None:
        connection.alive()
        node_id = connection.node_id
        if beat.digest and beat.sequence == self._sequences.get(node_id):
            expected = self._assignments.digest(node_id)
            if expected and beat.digest != expected:
                log.warning("node %s has another network table than was sent", node_id)
                self._mismatches += 1
                self._resync(connection)

    def _on_applied(self, node_id: str, sequence: int) -> None:
        if self._applied.get(node_id, 0) < sequence <= self._sequences.get(node_id, 0):
            self._applied[node_id] = sequence
            self._barrier.applied(node_id, sequence, self._now())
            self._timers.set()

    def _resync(self, connection: Connection) -> None:
        now = self._now()
        if now - self._resynced.get(connection.node_id, -RESYNC_S) < RESYNC_S:
            connection.end(Refused(reason="complete sets are asked for too often"))
        self._resynced[connection.node_id] = now
        connection.resync()

    def _on_stored(self, node_id: str, session_id: str, number: int) -> None:
        connection = self._connections.get(node_id)
        if connection is not None and connection.session_id == session_id:
            connection.stored(number)

    # Logs

    async def logs(
        self,
        *,
        service_id: str = "",
        task_id: str = "",
        follow: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        since_ns: int = 0,
        until_ns: int = 0,
        tail: int = -1,
    ) -> AsyncIterator[LogLine]:
        """Lines of one task, or of all tasks of a service; `tail` counts for each task.

        What cannot be had is said in a line of its own. Close the iterator when done.
        """
        request = LogRequest(
            request_id="",
            task_ids=(),
            follow=follow,
            tail=tail,
            since_ns=since_ns,
            until_ns=until_ns,
            stdout=stdout,
            stderr=stderr,
        )
        task = self._assignments.task(task_id)
        found = self._assignments.tasks_of_service(service_id) if service_id else []
        lines = self._relay.read(request, found if task is None else [task], service_id)
        try:
            async for line in lines:
                yield line
        finally:
            await lines.aclose()  # type: ignore[attr-defined]

    def _relay_to(self, node_id: str, message: LogMessage) -> bool:
        connection = self._connections.get(node_id)
        if connection is None:
            return False
        connection.log(message)
        return True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _now_ns(self) -> int:
        return int(self._clock.now().timestamp() * SECOND)


async def turn_away(stream: Stream, leader: Manager | None) -> None:
    """What a manager that does not lead does with an agent: tells it who does."""
    try:
        await _say(stream, Redirect(leader=leader))
    finally:
        await stream.close()


async def _say(stream: Stream, message: ToAgent) -> None:
    try:
        async with asyncio.timeout(HELLO_S):
            await stream.send(encode(message))
    except (StreamClosed, TimeoutError):
        return
