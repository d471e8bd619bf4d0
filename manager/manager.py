"""One manager: the log, the store on it, and while it leads the loops that decide.

    driver ──applies──► store ◄──reads── api, dispatcher, authority
       │                  ▲
       └─ leads in term ──┴── loops, role manager (`_term`), fenced by that term

Whoever leads runs one task group; losing the lead cancels it, and a loop that fails gives the
lead away.
"""

import asyncio
import contextlib
import logging
import random
from pathlib import Path
from typing import Any

import msgspec

from common import rpc
from common.clock import Clock
from common.config import DaemonConfig
from common.errors import Conflict, Forbidden, Invalid, NotLeader, ShoalError, Unavailable
from common.ids import Ids
from common.model.cluster import Cluster
from common.model.node import Node, Role
from common.protocol import dispatcher as protocol
from common.protocol.ca import RaftJoin, RaftJoined, ReadIndex
from common.streams import Stream
from common.tasks import end, own
from common.tls import Identity
from manager import leader
from manager.ca.authority import Authority, removed
from manager.raft.config import RaftConfig
from manager.raft.disk import FileDisk
from manager.raft.driver import Driver, bootstrap
from manager.raft.keyring import Keyring
from manager.raft.membership import AddLearner, Remove, UpdateAddress
from manager.raft.message import Member
from manager.raft.network import Peers
from manager.roles import RoleManager
from manager.store.store import Store, Tx
from manager.term import MakeParts, Term
from manager.transport import dialler

log = logging.getLogger(__name__)

CALL_BACK_S = 3.0
LET_GO_S = 10.0
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 30.0
# Docker's words, which clients look for, and what to do.
NO_LEADER = (
    "The swarm does not have a leader. It's possible that too few managers are online. Make sure "
    "more than half of the managers are online. What is stored can still be listed; if the others "
    "are lost for good, see: shoal swarm init --force-new-cluster --dry-run"
)


class Lead:
    """The store's way into the log for one term: nothing gets in after it."""

    def __init__(self, driver: Driver, term: int) -> None:
        self._driver = driver
        self._term = term

    async def propose(self, data: bytes) -> int:
        return await self._driver.propose(data, term=self._term)

    async def confirm(self) -> None:
        await self._driver.read_barrier(term=self._term)


async def make_log(folder: Path, member: Member, keyring: Keyring) -> None:
    """Make in `folder` the log of a new cluster with `member` alone. Raises Conflict."""
    disk = FileDisk(folder, member.id, keyring=keyring)
    try:
        await bootstrap(disk, member)
    finally:
        await disk.close()


class Manager:
    """Runs while the node has the manager role."""

    def __init__(
        self,
        *,
        node_id: str,
        raft_id: str,
        address: str,
        folder: Path,
        keyring: Keyring,
        config: DaemonConfig,
        client: rpc.Client,
        clock: Clock,
        ids: Ids,
        rng: random.Random,
        make_parts: MakeParts,
    ) -> None:
        """`address` is where this manager's listener is reached, HOST:PORT."""
        self.node_id = node_id
        self.store = Store(clock)
        self._peers = Peers(dialler(client))
        self._disk = FileDisk(folder, raft_id, keyring=keyring)
        self.raft = Driver(
            member_id=raft_id,
            config=RaftConfig.of(config.raft),
            disk=self._disk,
            network=self._peers,
            machine=self.store,
            rng=rng,
        )
        self.raft.address = address
        self.authority = Authority(self.store, clock, ids)
        self._parts = make_parts(self.store, self.raft, config, clock, ids, rng)
        self.api = self._parts.api
        self._client = client
        self._clock = clock
        self._ids = ids
        self._term: Term | None = None
        self._ended = asyncio.Event()
        self._news = asyncio.Event()  # replaced whenever leadership changes
        self._leaderless_since: float | None = None  # on the loop's clock

    @property
    def address(self) -> str:
        """Where this manager's listener is reached, HOST:PORT."""
        return self.raft.address

    @address.setter
    def address(self, address: str) -> None:
        self.raft.address = address

    # Who leads

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and can write."""
        return self._term is not None and self.raft.status.is_leader

    @property
    def dispatcher(self) -> Any:
        """That of this term. Raises NotLeader."""
        if self._term is None:
            raise NotLeader("this manager does not lead", self.leader_address)
        return self._term.dispatcher

    @property
    def leader_address(self) -> str:
        """HOST:PORT of the manager that leads; "" if none is known, or it is this one."""
        found = self.raft.status.leader
        return found.address if found is not None and found.id != self.raft.member_id else ""

    def patience_s(self, most_s: float) -> float:
        """How long to wait for a leader still, of `most_s` seconds since there was one."""
        if self._leaderless_since is None:
            return most_s
        gone_s = asyncio.get_running_loop().time() - self._leaderless_since
        return max(most_s - gone_s, 0.0)

    async def wait_leader(self, timeout_s: float) -> None:
        """Until somebody leads and can be asked. Raises Unavailable after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_leader and not self.leader_address:
                    await self._next_news()
        except TimeoutError as error:
            raise Unavailable(NO_LEADER) from error

    async def catch_up(self) -> None:
        """Hold here, leading or not, every write that was acknowledged before.

        Asks a majority. Raises Unavailable where there is no leader, or it is lost meanwhile.
        """
        if self.is_leader:
            await self.raft.read_barrier()
        elif leader := self.leader_address:
            found = await self._client.ask(ReadIndex, leader, "/raft/read-index", {})
            await self.raft.wait_applied(found.index)
        else:
            raise Unavailable(NO_LEADER)

    async def wait_other_leader(self, than: str) -> None:
        """Until the manager at address `than` is known not to lead."""
        while than == (self.address if self.is_leader else self.leader_address):
            await self._next_news()

    async def _next_news(self) -> None:
        await self._news.wait()

    def _tell(self) -> None:
        if self.is_leader or self.leader_address:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = asyncio.get_running_loop().time()
        news, self._news = self._news, asyncio.Event()
        news.set()

    # Running

    async def run(self) -> None:
        """Take part until stopped, or removed from the cluster's managers.

        Raises what must not be passed over, as a damaged log.
        """
        try:
            async with asyncio.TaskGroup() as group:
                around = [
                    group.create_task(self._peers.run(), name="raft peers"),
                    group.create_task(self._follow_raft(), name="raft status"),
                ]
                await own(self.raft.run())
                await end(*around)
        finally:
            self._term = None
            self._ended.set()
            self._tell()

    async def stop(self) -> None:
        """Hand over if this manager leads, then end `run`; returns when its files are closed."""
        await self.raft.stop()
        await self._ended.wait()

    def drop_old_keys(self) -> None:
        """Take a snapshot soon, and with it the last need for data keys but the newest."""
        self.raft.snapshot_soon()

    async def _follow_raft(self) -> None:
        status = self.raft.status
        while True:
            self._tell()
            if status.removed:
                log.info("this manager was removed from the cluster's managers")
                await self.raft.stop()
                return
            if status.is_leader:
                await own(self._lead_until_lost(status.term))
            now = self.raft.status
            status = await self.raft.wait_change(status) if now == status else now

    async def _lead_until_lost(self, term: int) -> None:
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(self._lead(term), name="lead")
            status = self.raft.status
            while status.is_leader and status.term == term:
                self._tell()
                status = await self.raft.wait_change(status)
            self._tell()
            log.info("leadership lost", extra={"term": term})
            await end(leading)

    async def _lead(self, term: int) -> None:
        """Lead; when a part fails give the lead away, or try again if nobody takes it."""
        backoff_s = BACKOFF_MIN_S
        while True:
            try:
                await own(self._lead_once(term))
            except* (NotLeader, Unavailable):
                log.debug("a part ended since leadership is lost", extra={"term": term})
            except* Exception:  # whatever fails in a part ends the term and not the manager
                log.exception("a part of the leader failed", extra={"term": term})
            with contextlib.suppress(ShoalError):
                await self.raft.transfer()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _lead_once(self, term: int) -> None:
        await self.raft.read_barrier()  # all that was ever acknowledged is applied here
        self.store.lead(Lead(self.raft, term))
        parts = self._term = self._parts.term()
        self._tell()
        log.info("leading", extra={"term": term})
        try:
            async with asyncio.TaskGroup() as group:
                roles = RoleManager(self.store, self.raft, self._clock)
                group.create_task(roles.run(), name="roles")
                group.create_task(parts.dispatcher.run(), name="dispatcher")
                group.create_task(self._until_refused(), name="writes")
                await leader.lead(self.store, parts.loops, self._clock)
        finally:
            self._term = None
            self._tell()
            await self.store.close()

    async def _until_refused(self) -> None:
        """End this attempt when a write was refused, also if no loop happens to write.

        As during a hand-over: if that fails, this manager leads on, in the same term.
        """
        await self.store.wait_refused()
        raise NotLeader("a write was refused; leading begins anew")

    async def serve_agent(self, node_id: str, stream: Stream) -> None:
        """Serve the agent of `node_id` while this manager leads, or tell it who does."""
        if self._term is not None:
            await self._term.dispatcher.serve(node_id, stream)
            return
        found = self.raft.status.leader
        known = None
        if found is not None and found.id != self.raft.member_id:
            known = protocol.Manager(node_id=found.node_id, address=found.address)
        await stream.send(protocol.encode(protocol.Redirect(leader=known)))

    # Membership, asked of the leader by the nodes themselves

    def receive_raft(self, node_id: str, message: bytes) -> None:
        """Take in a message of the Raft of another manager, `node_id` by its certificate."""
        self.raft.receive(message, node_id)

    async def admit(self, caller: Identity, asked: RaftJoin) -> RaftJoined:
        """Give the manager of `caller` its place in the log, as a learner at first.

        Raises Invalid if it cannot be called back, Forbidden if it should be no manager.
        """
        node = self.store.view().get(Node, caller.node_id)
        if node is None:
            raise removed(caller.node_id)
        if node.spec.role is not Role.MANAGER:
            raise Forbidden(f"node {caller.node_id} should be a worker; promote it first")
        await self._call_back(caller.node_id, asked.address)
        known = self._member_of(caller.node_id)
        if known is not None and known.id == asked.raft_id:
            if known.address != asked.address:
                await self.raft.change_members(UpdateAddress(known.id, asked.address))
            return RaftJoined(raft_id=known.id)
        if known is not None:  # it has lost its log, and with that the right to its old votes
            await self.raft.change_members(Remove(known.id))
        raft_id = self._ids.new()
        member = Member(raft_id, caller.node_id, asked.address, learner=True)
        await self.raft.change_members(AddLearner(member))
        log.info("manager admitted", extra={"admitted": caller.node_id, "address": asked.address})
        cluster = next(iter(self.store.view().find(Cluster)), None)
        if cluster is None:
            return RaftJoined(raft_id=raft_id)
        lock = (cluster.unlock_key, cluster.version.index)
        return RaftJoined(raft_id=raft_id, unlock_key=lock[0], lock_version=lock[1])

    async def _call_back(self, node_id: str, address: str) -> None:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal()):
            raise Invalid(f"address {address[:80]!r} is not HOST:PORT")
        try:
            await self._client.call(address, "GET", "/ping", host=node_id, timeout_s=CALL_BACK_S)
        except ShoalError as error:
            raise Invalid(
                f"the leader cannot reach the new manager at {address}: {error}. "
                "Check its --advertise-addr and the firewalls between them"
            ) from error

    async def read_index(self) -> ReadIndex:
        """What another manager must have applied to read from its store. Raises NotLeader."""
        return ReadIndex(index=await self.raft.read_barrier())

    async def let_go(self, caller: Identity) -> None:
        """Make the manager of `caller` a worker because it leaves; returns once Raft is without it.

        Raises Conflict for the last manager, Unavailable if it takes too long.
        """
        members = self.raft.status.members
        if not [member for member in members if member.node_id != caller.node_id]:
            raise Conflict("this is the last manager; leaving with force destroys the cluster")

        def demote(tx: Tx) -> None:
            node = tx.get(Node, caller.node_id)
            if node is not None:
                spec = msgspec.structs.replace(node.spec, role=Role.WORKER)
                tx.put(msgspec.structs.replace(node, spec=spec))

        await self.store.update(demote)
        try:
            async with asyncio.timeout(LET_GO_S):
                status = self.raft.status
                while any(member.node_id == caller.node_id for member in status.members):
                    status = await self.raft.wait_change(status)
        except TimeoutError as error:
            raise Unavailable("the managers did not let this one go in time; try again") from error

    async def node_left(self, caller: Identity) -> None:
        """Do not wait for the heartbeats of a node that says goodbye."""
        if self.store.view().get(Node, caller.node_id) is not None:
            await self.dispatcher.left(caller.node_id)

    def _member_of(self, node_id: str) -> Member | None:
        members = self.raft.status.members
        return next((member for member in members if member.node_id == node_id), None)

    async def found(self, cluster: Cluster, node: Node) -> None:
        """Write the first objects of a new cluster, of which this is the first manager."""
        await self.wait_leader(LET_GO_S)

        def write(tx: Tx) -> None:
            tx.put(cluster)
            tx.put(node)

        await self.store.update(write)
