"""All that may be asked of the cluster, one part for each kind of object."""

from collections.abc import Callable

from common.clock import Clock
from common.ids import Ids
from manager.api.cluster import Clusters
from manager.api.managers import Managers
from manager.api.networks import Networks
from manager.api.nodes import Nodes
from manager.api.rebalancing import Rebalancing
from manager.api.secrets import configs, secrets
from manager.api.services import Services
from manager.api.tasks import Tasks
from manager.plan.plan import Planner
from manager.store.store import Store


class Api:
    """Reads work on every manager, writes on the leader; elsewhere they raise NotLeader."""

    def __init__(
        self,
        store: Store,
        ids: Ids,
        clock: Clock,
        managers: Managers,
        new_token: Callable[[str], str],
        new_unlock_key: Callable[[], str],
    ) -> None:
        self.services = Services(store, ids, clock)
        self.nodes = Nodes(store, clock, managers)
        self.tasks = Tasks(store)
        self.networks = Networks(store, ids)
        self.secrets = secrets(store, ids)
        self.configs = configs(store, ids)
        self.rebalancing = Rebalancing(store)
        self.planner = Planner(store, clock)
        self.cluster = Clusters(store, clock, new_token, new_unlock_key)
