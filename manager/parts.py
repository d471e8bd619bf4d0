"""What a manager is made of besides its log and store, and what of it runs while it leads."""

import random

from common.clock import Clock
from common.config import DaemonConfig
from common.ids import Ids
from manager.allocator.allocator import Allocator
from manager.api.api import Api
from manager.api.managers import managers_of
from manager.ca.tokens import new_token
from manager.control import Loop
from manager.dispatcher.dispatcher import Dispatcher
from manager.orchestrator.autoscale import Autoscaler
from manager.orchestrator.enforcer import Enforcer
from manager.orchestrator.global_services import GlobalOrchestrator
from manager.orchestrator.jobs import GlobalJobOrchestrator, ReplicatedJobOrchestrator
from manager.orchestrator.reaper import Reaper
from manager.orchestrator.rebalance import Rebalancer
from manager.orchestrator.replicated import ReplicatedOrchestrator
from manager.orchestrator.timetable import Timetable
from manager.raft.driver import Driver
from manager.raft.keyring import new_unlock_key
from manager.scheduler.scheduler import Scheduler
from manager.store.store import Store
from manager.term import Term


class ManagerParts:
    """The real ones."""

    def __init__(
        self, store: Store, raft: Driver, clock: Clock, ids: Ids, rng: random.Random
    ) -> None:
        self._store = store
        self._raft = raft
        self._clock = clock
        self._ids = ids
        self._rng = rng
        self.api = Api(
            store,
            ids,
            clock,
            managers=lambda: managers_of(raft.status),
            new_token=lambda root: new_token(root.encode(), rng),
            new_unlock_key=lambda: new_unlock_key(rng),
        )

    def term(self) -> Term:
        dispatcher = Dispatcher(
            self._store,
            self._clock,
            self._rng,
            silent_elsewhere=lambda node_id: self._raft.status.is_silent(node_id),
        )
        scheduler = Scheduler()
        loops: list[Loop] = [
            ReplicatedOrchestrator(self._ids),
            GlobalOrchestrator(self._ids),
            ReplicatedJobOrchestrator(self._ids),
            GlobalJobOrchestrator(self._ids),
            Timetable(),
            Enforcer(),
            Reaper(),
            Allocator(),
            scheduler,
            Autoscaler(dispatcher.usage),
            Rebalancer(lambda: scheduler.nodes),
        ]
        return Term(dispatcher, loops)


def make_parts(
    store: Store, raft: Driver, config: DaemonConfig, clock: Clock, ids: Ids, rng: random.Random
) -> ManagerParts:
    return ManagerParts(store, raft, clock, ids, rng)
