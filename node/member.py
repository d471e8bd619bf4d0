"""What runs while a node is in a cluster: its agent, its certificate, its manager if it has one.

The role is the certificate's. When a manager tells the agent of another role, the certificate is
renewed until it says so too; then the manager part starts or ends.
"""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from aiohttp import web

from common.clock import Clock
from common.config import DaemonConfig
from common.errors import Invalid, ShoalError, Unavailable
from common.ids import Ids
from common.model.cluster import Cluster
from common.model.node import Node, TLSInfo
from common.protocol.ca import RaftJoin, RaftJoined
from common.protocol.dispatcher import SessionUpdate, Welcome
from common.streams import Stream
from common.tasks import end, own
from common.tls import MANAGER, WORKER, Credentials
from manager.ca.authority import removed
from manager.manager import Manager
from manager.raft.keyring import guard_of
from manager.term import MakeParts
from node.address import (
    Interface,
    advertised,
    bind,
    machine_interfaces,
    source_address,
    split_port,
)
from node.identity import IdentityFiles, NodeState
from node.listener import Listener
from node.locking import LockFollower
from node.moving import moved
from node.trust import Trust

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0
FOUND_S = 15.0
STRANDED_S = 5.0


class Agent(Protocol):
    """The worker's part in the cluster."""

    async def run(self) -> None: ...


class AgentSeams(Protocol):
    """What an agent asks of the membership that runs it."""

    @property
    def state(self) -> NodeState: ...
    @property
    def tls_info(self) -> TLSInfo: ...
    async def connect(self, address: str) -> Stream: ...
    def on_role(self, update: "SessionUpdate | Welcome") -> None: ...


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a membership needs of the daemon around it."""

    config: DaemonConfig
    files: IdentityFiles
    clock: Clock
    ids: Ids
    rng: random.Random
    make_agent: Callable[[AgentSeams], Agent]
    make_api: Callable[[], web.Application]
    make_parts: MakeParts


class Member:
    """One membership, from joining or start to leaving or stop."""

    def __init__(
        self,
        around: Surroundings,
        state: NodeState,
        credentials: Credentials,
        *,
        new: bool = False,
    ) -> None:
        """With `new` the cluster has still to be made, by `found`.

        Raises Invalid if the credentials are no good, as when they have expired."""
        self._around = around
        self.state = state
        self.trust = Trust(
            credentials,
            around.files,
            lambda: self.state.manager_addresses,
            around.clock,
            around.rng,
        )
        self.manager: Manager | None = None
        self.lock = LockFollower()
        self.welcomed = asyncio.Event()
        self._role_wanted = self.trust.role
        self._news = asyncio.Event()  # a manager was made
        self._role_news = asyncio.Event()
        self._unsaved = asyncio.Event()
        self._saving = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._founded = asyncio.Event()
        if not new:
            self._founded.set()
        self._listener: Listener | None = None
        self._place = ""  # a raft id that is ours, while the log is still that of another

    @property
    def tls_info(self) -> TLSInfo:
        return self.trust.tls_info

    # Running

    async def run(self) -> None:
        """Until cancelled or `stop`; raises what makes going on impossible, as a damaged log."""
        await self.follow_address()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._run_roles(), name="role")
                group.create_task(self.trust.renew_in_time(), name="renewal")
                group.create_task(self._save_news(), name="save")
                group.create_task(self._run_agent(), name="agent")
        finally:
            await self.close()

    async def _run_agent(self) -> None:
        await self._founded.wait()
        await self._around.make_agent(self).run()
        raise removed(self.state.node_id)

    async def found(self, cluster: Cluster, node: Node) -> None:
        """Make the cluster of which this is the first node, while `run` runs. Raises ShoalError."""
        await (await self.managing()).found(cluster, node)

    async def managing(self) -> Manager:
        """The manager, once it runs. Raises TimeoutError."""
        async with asyncio.timeout(FOUND_S):
            while self.manager is None:
                self._news.clear()
                await self._news.wait()
        return self.manager

    async def leading(self) -> None:
        """Until there is a leader, while `run` runs. Raises Unavailable or TimeoutError."""
        async with asyncio.timeout(FOUND_S):
            while self.manager is None:
                self._news.clear()
                await self._news.wait()
        await self.manager.wait_leader(FOUND_S)

    def founded(self) -> None:
        """The new cluster is made and on disk: be a node of it."""
        self._founded.set()

    async def stop(self) -> None:
        """Hand over, if this node leads. Cancel `run` then."""
        if self.manager is not None:
            await self.manager.stop()

    async def close(self) -> None:
        """Let go of connections and sockets. Safe to repeat."""
        self.manager = None
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()
        await self.trust.close()

    async def _run_roles(self) -> None:
        while True:
            if self.trust.role == MANAGER:
                await own(self._manage_while_manager())
            else:
                await self._forget_log()
                await self._until_role(MANAGER)

    async def _manage_while_manager(self) -> None:
        async with asyncio.TaskGroup() as group:
            managing = group.create_task(self._manage(), name="managing")
            await self._until_role(WORKER)
            if self.manager is not None:
                await self.manager.stop()
                await managing
            await end(managing)

    async def _forget_log(self) -> None:
        """A worker has no log: what is left of one is a former manager's."""
        await asyncio.to_thread(self._around.files.wipe_raft)
        if self.trust.role == WORKER:
            await asyncio.to_thread(self._around.files.wipe_keyring)
        if self.state.raft_id:
            await self._keep(msgspec.structs.replace(self.state, raft_id=""))

    # The manager part

    async def listen(self, bound: socket.socket | None = None) -> None:
        """Start the cluster listener, on `bound` if given. Raises Invalid for a port in use."""
        host, port = split_port(self.state.listen, self._around.config.listen_port, "listen")
        listener = Listener(
            self.state.cluster_id, self.trust.root, self.trust.client, self._around.make_api
        )
        await listener.start(bound or bind(host, port), self.trust.server_context)
        self._listener = listener

    async def _manage(self) -> None:
        """Be a manager, until `stop`.

        Removed from Raft, it asks for a new place: it may have been promoted again meanwhile.
        """
        while self.trust.role == MANAGER and not await own(self._manage_once()):
            await self._forget_log()

    async def _manage_once(self) -> bool:
        """Whether this ended because somebody wanted it, rather than by removal from Raft."""
        if self._listener is None:
            await self.listen()
        listener = self._listener
        assert listener is not None
        try:
            await self._enter_raft()
            if not self.state.raft_id:
                return True
            await self.trust.seal()
            manager = self._make_manager()
            self.manager = listener.manager = manager
            self._news.set()
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep_place(manager), name="place")
                keyring = self._around.files.keyring
                locking = group.create_task(
                    self.lock.run(manager, keyring, self.trust.renew), name="autolock"
                )
                await manager.run()
                await end(keeping, locking)
            return not (manager.raft.status.removed or self._place)
        finally:
            self.manager = listener.manager = self._listener = None
            await listener.close()

    def _make_manager(self) -> Manager:
        around = self._around
        return Manager(
            node_id=self.state.node_id,
            raft_id=self.state.raft_id,
            address=self.state.address,
            folder=around.files.raft_folder,
            keyring=around.files.keyring,
            config=around.config,
            client=self.trust.client,
            clock=around.clock,
            ids=around.ids,
            rng=around.rng,
            make_parts=around.make_parts,
        )

    async def _enter_raft(self) -> None:
        """Have a place in the log, which a node that was just promoted must ask for."""
        if self._place:
            await self._keep(msgspec.structs.replace(self.state, raft_id=self._place))
            self._place = ""
        backoff_s = RETRY_MIN_S
        while not self.state.raft_id and self.trust.role == MANAGER:
            try:
                await self.join_raft()
            except ShoalError as error:
                log.warning("cannot join the managers yet", extra={"reason": str(error)})
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, RETRY_MAX_S)

    async def join_raft(self) -> None:
        """Ask the leader once for a place in the log; the listener must be up."""
        asked = RaftJoin(address=self.state.address)
        joined = await self.trust.ask(RaftJoined, "/raft/join", asked)
        files = self._around.files
        await asyncio.to_thread(files.wipe_raft)
        if joined.unlock_key:
            guard = guard_of(joined.unlock_key)
            if files.keyring.would_change(guard, joined.lock_version):
                await asyncio.to_thread(files.keyring.set_guard, guard, joined.lock_version)
        await self._keep(msgspec.structs.replace(self.state, raft_id=joined.raft_id))

    # Where this node is

    async def follow_address(self) -> None:
        """Note if this machine is reached elsewhere than before; what is done with that follows
        from `state`. A machine without any address keeps its old one."""
        async with self._looking:
            before = self.state
            try:
                interfaces = await asyncio.to_thread(machine_interfaces)
                found = await asyncio.to_thread(
                    moved, before, self._around.config, interfaces, lambda: self._source(interfaces)
                )
            except (ShoalError, OSError) as error:
                log.warning("cannot tell this node's address", extra={"reason": str(error)})
                return
            if found == before:
                return
            log.warning("this node has moved", extra={"to": found.address, "was": before.address})
            if found.listen != before.listen and self._listener is not None:
                log.warning("restart the daemon to listen there", extra={"address": found.listen})
            kept = found if self.state is before else _at(self.state, found)
            if self.manager is not None:
                self.manager.address = kept.address
            await self._keep(kept)

    def _source(self, interfaces: Sequence[Interface]) -> str:
        """From where the other managers, or any one, would be reached. Blocking; raises Invalid."""
        for manager in self.state.managers:
            if manager.node_id != self.state.node_id:
                with contextlib.suppress(Invalid):
                    return source_address(manager.address)
        return advertised("", 1, interfaces)[0]

    async def _keep_place(self, manager: Manager) -> None:
        """Have the log say where this manager is, whenever that has changed.

        One that is no voter yet does not campaign, so that nobody tells it that it was removed
        while it was away: when it hears of no leader, it asks. Ends `manager` if it has to begin
        anew under another id.
        """
        status = manager.raft.status
        while True:
            own = next((one for one in status.members if one.id == self.state.raft_id), None)
            stranded = (own is None or own.learner) and not manager.patience_s(STRANDED_S)
            if stranded or (own is not None and own.address != self.state.address):
                with contextlib.suppress(ShoalError):
                    self._place = await self._tell_managers(manager)
                if self._place:
                    log.info("this manager's place in the log is another's; it begins anew")
                    await manager.raft.stop()
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_MAX_S):
                    status = await manager.raft.wait_change(status)

    async def _tell_managers(self, manager: Manager) -> str:
        """The leader may look for us where we were: any manager hands this on to it.

        Returns a new raft id if ours is no member's any more.
        """
        asked = RaftJoin(address=self.state.address, raft_id=self.state.raft_id)
        if manager.is_leader:
            await manager.raft.update_address(self.state.address)
            return ""
        for one in self.state.managers:
            if one.node_id != self.state.node_id:
                with contextlib.suppress(Unavailable):
                    path = "/raft/join"
                    found = await self.trust.client.ask(RaftJoined, one.address, path, asked)
                    return "" if found.raft_id == asked.raft_id else found.raft_id
        return ""

    # Role and managers, as the dispatcher tells them

    async def _until_role(self, role: str) -> None:
        """Until the certificate says `role`; renews it when the managers want another."""
        backoff_s = RETRY_MIN_S
        while self.trust.role != role:
            if self._role_wanted == self.trust.role:
                self._role_news.clear()
                await self._role_news.wait()
                backoff_s = RETRY_MIN_S
                continue
            try:
                await self.trust.renew()
            except ShoalError as error:
                log.info("cannot renew the certificate yet", extra={"reason": str(error)})
            if self.trust.role != role:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, RETRY_MAX_S)

    def on_role(self, update: "SessionUpdate | Welcome") -> None:
        """What the dispatcher says: the role this node should have, and who the managers are."""
        self.welcomed.set()
        self._role_wanted = update.role
        self._role_news.set()
        if update.managers and update.managers != self.state.managers:
            self.state = msgspec.structs.replace(self.state, managers=update.managers)
            self._unsaved.set()

    async def _save_news(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            await self._keep(self.state)

    async def _keep(self, state: NodeState) -> None:
        self.state = state
        async with self._saving:  # two at once would use one temporary file
            await asyncio.to_thread(self._around.files.save_state, self.state)

    async def connect(self, address: str) -> Stream:
        """A session with the manager at `address`. Raises ShoalError."""
        await self.follow_address()  # what broke the last session may be that we have moved
        return await self.trust.client.stream(address, "/session")


def _at(state: NodeState, found: NodeState) -> NodeState:
    """`state`, which was changed meanwhile, with the addresses of `found`."""
    return msgspec.structs.replace(
        state, address=found.address, data_address=found.data_address, listen=found.listen
    )
