"""Forming, joining and leaving a cluster.

    inactive ──init──────────► active ──leave──► inactive
        └─────join──► pending ──┘
    error: the node is in a cluster but cannot take part; leave says what it was
    locked: a manager with autolock after a restart; unlock makes it active

What is half-made when something fails is taken back: on disk, and at the managers.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from common.apart import run_apart
from common.errors import Conflict, Invalid, Locked, ShoalError, Unavailable
from common.keys import new_request
from common.protocol.ca import IssueRequest
from common.protocol.dispatcher import Manager as ManagerAddress
from common.tasks import end
from common.tls import MANAGER, Credentials
from manager.ca import tokens
from manager.manager import Manager, make_log
from manager.raft.keyring import LockedGuard, guard_of
from manager.raft.message import Member as RaftMember
from manager.recovery import Prospect, check_lost, prospect
from node.address import (
    advertised,
    bind,
    data_address,
    join_address,
    listening,
    machine_interfaces,
    source_address,
    split_port,
)
from node.forcing import check_force, go_on_alone, readdressed
from node.founding import InitRequest as InitRequest
from node.founding import JoinRequest as JoinRequest
from node.founding import (
    availability,
    check_init,
    first_certificate,
    first_cluster,
    first_node,
    unlock_key,
)
from node.identity import NodeState
from node.joining import introduce
from node.member import Member, Surroundings

log = logging.getLogger(__name__)

WELCOME_S = 20.0  # as long as Docker's client is made to wait for a join
STOP_S = 10.0
GOODBYE_S = 5.0  # what the others find out by themselves need not be waited for long


class Swarm:
    """This node's membership in a cluster, or that it has none."""

    def __init__(self, around: Surroundings, forget: Callable[[], Awaitable[None]]) -> None:
        """`forget` removes from the worker what is the cluster's: tasks, networks, journal."""
        self._around = around
        self._forget = forget
        self._member: Member | None = None
        self._running: asyncio.Task[None] | None = None
        self._busy = asyncio.Lock()
        self._joining = False
        self._locked = False
        self.error = ""

    # What others may know

    @property
    def state(self) -> str:
        """Docker's word: inactive, pending, active, locked or error."""
        if self.error:
            return "error"
        if self._locked:
            return "locked"
        if self._member is None or (self._joining and not self._member.welcomed.is_set()):
            return "pending" if self._joining else "inactive"
        return "active"

    @property
    def member(self) -> Member | None:
        return self._member

    @property
    def node_id(self) -> str:
        return self._member.state.node_id if self._member else ""

    @property
    def address(self) -> str:
        """This node's own address, without a port."""
        return self._member.state.address.rpartition(":")[0] if self._member else ""

    @property
    def is_manager(self) -> bool:
        return self._member is not None and self._member.manager is not None

    @property
    def is_between(self) -> bool:
        """Whether this node is a manager that has not read its log yet, or manages no more."""
        member = self._member
        if member is None or member.manager is not None or self.error:
            return False
        return member.trust.role == MANAGER

    @property
    def managers(self) -> list[tuple[str, str]]:
        """(node id, HOST:PORT) of the managers as last heard of."""
        found = self._member.state.managers if self._member else ()
        return [(manager.node_id, manager.address) for manager in found]

    def check_unlocked(self) -> None:
        """Raises Locked while nothing of the cluster can be had here."""
        if self._locked:
            raise Locked

    # Starting and ending

    async def start(self) -> None:
        """Be again the node that this one was. What is wrong with that becomes `error`."""
        files = self._around.files
        try:
            found = await asyncio.to_thread(files.load)
            if found is None:
                await asyncio.to_thread(files.wipe)  # of a join that was cut off
                return
            await self._resume(*found)
        except Locked as error:
            self._locked = True
            log.warning("locked", extra={"reason": str(error)})
        except ShoalError as error:
            self.error = str(error)
            log.error("cannot take part in the cluster", extra={"reason": self.error})

    async def _resume(self, state: NodeState, credentials: Credentials) -> None:
        if state.raft_id and not await asyncio.to_thread(self._around.files.has_log):
            # Its votes and promises are forgotten: under the old id it would break them.
            log.warning("this manager's log is gone; it asks for a new place among the others")
            state = msgspec.structs.replace(state, raft_id="")
        self._run(Member(self._around, state, credentials))

    async def close(self) -> None:
        """End the membership's tasks, handing over leadership first. The node stays a member."""
        member, running = self._member, self._running
        self._running = None
        if member is not None and running is not None and not running.done():
            with contextlib.suppress(TimeoutError, ShoalError):
                async with asyncio.timeout(STOP_S):
                    await member.stop()
        if running is not None:
            await end(running)

    def _run(self, member: Member) -> None:
        self._member = member
        self.error = ""
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._watch_over(member), name="membership")

    async def _watch_over(self, member: Member) -> None:
        try:
            await member.run()
        except* ShoalError as errors:
            self.error = str(_first(errors))
            log.error("cannot take part in the cluster", extra={"reason": self.error})
        except* Exception as errors:  # the containers and the API go on without the cluster
            self.error = f"internal error: {_first(errors)!r}; the daemon's log says more"
            log.exception("the membership failed")

    # Init

    async def init(self, asked: InitRequest) -> str:
        """Make a cluster with this node as its first manager; returns the node's id."""
        async with self._alone():
            check_init(asked)
            interfaces = await asyncio.to_thread(machine_interfaces)
            port = self._around.config.listen_port
            listen = listening(asked.listen_addr, port, interfaces)
            config = self._around.config
            given = asked.advertise_addr or config.advertise_addr
            data_path = asked.data_path_addr or config.data_path_addr
            host, advertised_port = advertised(given, listen[1], interfaces)
            state = NodeState(
                node_id=self._around.ids.new(),
                cluster_id=self._around.ids.new(),
                address=join_address(host, advertised_port),
                listen=join_address(*listen),
                data_address=data_address(data_path, host, interfaces),
                advertise=given,
                data_path=data_path,
                raft_id=self._around.ids.new(),
            )
            own = ManagerAddress(node_id=state.node_id, address=state.address)
            state = msgspec.structs.replace(state, managers=(own,))
            bound = bind(*listen)
            try:
                await self._found(asked, state, bound)
            except BaseException:
                bound.close()
                await self._take_back()
                raise
            return state.node_id

    async def _found(self, asked: InitRequest, state: NodeState, bound: socket.socket) -> None:
        files = self._around.files
        credentials, root = await first_certificate(
            state, self._around.clock.now(), self._around.rng
        )
        await asyncio.to_thread(files.wipe)
        key = unlock_key(asked, self._around.rng)
        await asyncio.to_thread(files.keyring.set_guard, guard_of(key))
        await asyncio.to_thread(files.save_credentials, credentials, sealed=True)
        raft_member = RaftMember(state.raft_id, state.node_id, state.address)
        await make_log(files.raft_folder, raft_member, files.keyring)
        member = Member(self._around, state, credentials, new=True)
        await member.listen(bound)
        self._run(member)
        cluster = first_cluster(asked, state, root, self._around.config, key)
        await self._while_running(
            member.found(cluster, first_node(asked, state, self._around.clock.now()))
        )
        await asyncio.to_thread(files.save_state, state)
        member.founded()
        log.info("cluster made", extra={"cluster": state.cluster_id, "node": state.node_id})

    # When the other managers are lost for good

    def prospect(self) -> Prospect:
        """What `force_new_cluster` would keep and drop. Raises ShoalError where it is refused."""
        return prospect(self._running_manager())

    async def force_new_cluster(self, asked: InitRequest) -> str:
        """Go on as the only manager of this node's cluster; returns the node's id.

        Raises ShoalError; then the cluster is as it was.
        """
        async with self._alone(member=True):
            check_force(asked)
            check_lost(self._running_manager())
            before = self._member
            assert before is not None
            interfaces = await asyncio.to_thread(machine_interfaces)
            state = before.state
            alone = readdressed(asked, state, self._around.config, interfaces)
            await self.close()
            try:
                await go_on_alone(self._around.files, alone, self._around.clock)
                await asyncio.to_thread(self._around.files.save_state, alone)
                state = alone
            finally:
                member = Member(self._around, state, before.trust.credentials)
                self._run(member)
            await self._while_running(member.leading())
            log.warning("a new cluster of this manager alone was forced")
            return state.node_id

    def _running_manager(self) -> Manager:
        self.check_unlocked()
        if self._member is None and not self.error:
            raise Unavailable(
                "This node is not part of a swarm, so there is nothing to go on with; leave out "
                "--force-new-cluster"
            )
        manager = self._member.manager if self._member else None
        if manager is None:
            why = f": {self.error}" if self.error else ""
            raise Conflict(f"this node runs no manager, so it cannot force a new cluster{why}")
        return manager

    # Join

    async def join(self, asked: JoinRequest) -> None:
        """Become a node of the cluster of `asked.join_token`, which decides the role."""
        async with self._alone():
            token = tokens.parse(asked.join_token)
            port = self._around.config.listen_port
            remotes = _remotes(asked.remote_addrs, port)
            interfaces = await asyncio.to_thread(machine_interfaces)
            listen = listening(asked.listen_addr, port, interfaces)
            config = self._around.config
            given = asked.advertise_addr or config.advertise_addr
            data_path = asked.data_path_addr or config.data_path_addr
            host, advertised_port = advertised(
                given or await asyncio.to_thread(source_address, remotes[0]), listen[1], interfaces
            )
            overlay_address = data_address(data_path, host, interfaces)
            key, request = await run_apart(new_request)
            body = IssueRequest(
                token=asked.join_token.strip(),
                request=request.decode(),
                availability=availability(asked.availability),
            )
            self._joining = True
            try:
                remote, root, issued = await introduce(remotes, token, body)
                state = NodeState(
                    node_id=issued.node_id,
                    cluster_id=issued.cluster_id,
                    address=join_address(host, advertised_port),
                    listen=join_address(*listen),
                    data_address=overlay_address,
                    advertise=given,
                    data_path=data_path,
                    managers=(ManagerAddress(node_id="", address=remote),),
                )
                credentials = Credentials(
                    root=root, certificate=issued.certificate.encode(), key=key
                )
                await self._enter(state, credentials)
            finally:
                self._joining = False

    async def _enter(self, state: NodeState, credentials: Credentials) -> None:
        files = self._around.files
        member = Member(self._around, state, credentials)
        try:
            await asyncio.to_thread(files.wipe)
            sealed = member.trust.role == MANAGER
            await asyncio.to_thread(files.save_credentials, credentials, sealed=sealed)
            if member.trust.role == MANAGER:
                await member.listen()
                await member.join_raft()
            else:
                await asyncio.to_thread(files.save_state, state)
        except BaseException:
            await _abandon(member)
            await member.close()
            await self._take_back()
            raise
        self._run(member)
        try:
            async with asyncio.timeout(WELCOME_S):
                await self._while_running(member.welcomed.wait())
        except TimeoutError as error:
            raise Unavailable(
                "Timeout was reached before node joined. The attempt to join the swarm will "
                'continue in the background. Use the "docker info" command to see the current '
                "swarm status of your node."
            ) from error
        log.info("joined a cluster", extra={"cluster": state.cluster_id, "node": state.node_id})

    async def _while_running(self, doing: Awaitable[object]) -> None:
        """Wait for `doing`; raises what ends the membership, should that come first."""
        running = self._running
        assert running is not None
        waiting = asyncio.get_running_loop().create_task(_await(doing))
        try:
            await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Unavailable(self.error or "the membership ended before it began")
            await waiting
        finally:
            await end(waiting)

    # Unlock

    async def unlock(self, key: str) -> None:
        """Open the keys of a locked manager and take part again; returns once it does.

        Raises Conflict if it is not locked, Invalid or Unauthorized for a wrong key.
        """
        async with self._alone(member=True):
            if not self._locked:
                raise Conflict("swarm is not locked")
            found = await asyncio.to_thread(self._around.files.load, LockedGuard(key))
            if found is None:
                raise Unavailable("This node is not part of a swarm")
            await self._resume(*found)
            self._locked = False
            assert self._member is not None
            with contextlib.suppress(TimeoutError):  # it goes on coming up by itself
                await self._while_running(self._member.managing())
            log.info("unlocked")

    # Leave

    async def leave(self, force: bool) -> None:
        """Be in no cluster any more: its containers and networks on this machine go as well.

        Raises Unavailable for a manager without `force`, saying what would be lost.
        """
        async with self._alone(member=True):
            if self._locked and not force:
                raise Unavailable(
                    "Swarm is encrypted and locked. Please unlock it first or use `--force` to "
                    "ignore this message."
                )
            member = self._member
            manager = member.manager if member else None
            if member is not None and manager is not None:
                # One that has just joined may not have the log yet.
                known = [one.node_id for one in manager.raft.status.members]
                known = known or [one.node_id for one in member.state.managers]
                others = [node_id for node_id in known if node_id != self.node_id]
                if not force:
                    raise Unavailable(_warning(len(others)))
                if others:
                    await self._leave_raft(member)
            await self.close()
            if member is not None:
                await self._say_goodbye(member)
            await self._take_back()
            await self._forget()
            log.info("left the cluster")

    async def _leave_raft(self, member: Member) -> None:
        """Ask to be taken out; a cluster that cannot is left all the same, that is `force`."""
        manager = member.manager
        assert manager is not None
        try:
            if manager.is_leader:
                await manager.raft.transfer()
            await manager.wait_leader(WELCOME_S / 4)
            leader = manager.leader_address
            await member.trust.client.call(leader, "POST", "/raft/leave", timeout_s=WELCOME_S)
        except ShoalError as error:
            log.warning("left without the other managers' consent", extra={"reason": str(error)})

    async def _say_goodbye(self, member: Member) -> None:
        """So that its tasks are replaced, and its containers get no more requests, at once."""
        client = member.trust.new_client()
        try:
            async with asyncio.timeout(GOODBYE_S):
                for address in member.state.manager_addresses:
                    if address != member.state.address:
                        with contextlib.suppress(Unavailable):
                            await client.call(address, "POST", "/node/leave")
                            return
        except (ShoalError, TimeoutError) as error:
            log.info("left without a goodbye", extra={"reason": str(error)})
        finally:
            await client.close()

    async def _take_back(self) -> None:
        """Be as if there never had been a cluster here."""
        await self.close()
        if self._member is not None:
            await self._member.close()
        self._member = None
        self._locked = False
        self.error = ""
        await asyncio.to_thread(self._around.files.wipe)

    @contextlib.asynccontextmanager
    async def _alone(self, *, member: bool = False) -> AsyncIterator[None]:
        """One of these at a time, from the right state."""
        if self._busy.locked():
            raise Conflict("another swarm command is under way on this node; wait for it")
        async with self._busy:
            inside = self._member is not None or self._locked or bool(self.error)
            if member and not inside:
                raise Unavailable("This node is not part of a swarm")
            if inside and not member:
                self.check_unlocked()
                raise Unavailable(
                    'This node is already part of a swarm. Use "docker swarm leave" to leave this '
                    "swarm and join another one."
                )
            yield


async def _await(doing: Awaitable[object]) -> None:
    await doing


def _remotes(given: tuple[str, ...], default_port: int) -> list[str]:
    if not given:
        raise Invalid("the address of a manager is missing: shoal swarm join --token T HOST:PORT")
    return [join_address(*split_port(one, default_port, "remote address")) for one in given]


async def _abandon(member: Member) -> None:
    """Let the managers forget a node that did not come."""
    with contextlib.suppress(ShoalError):
        await member.trust.ask(object, "/ca/abandon", {})


def _warning(others: int) -> str:
    start = "You are attempting to leave the swarm on a node that is participating as a manager. "
    if not others:
        return start + (
            "Removing the last manager erases all current state of the swarm. "
            "Use `--force` to ignore this message."
        )
    if others == 1:
        advice = "With one manager left nothing survives the loss of that one. "
    elif others == 2:
        advice = "Two managers are no safer than one: the loss of either stops the swarm. "
    else:
        advice = ""
    return start + (
        f"Removing this node leaves {others} managers out of {others + 1}. {advice}"
        "Demote it first (`node demote`), which waits until the others can do without it, or use "
        "`--force` to suppress this message."
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
