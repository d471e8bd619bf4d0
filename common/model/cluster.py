"""The cluster itself: one object of the store."""

import msgspec

from common.model.base import Annotations, Model, Object
from common.model.task import SECOND, LogDriver


class OrchestrationConfig(Model, frozen=True, kw_only=True):
    task_history_retention_limit: int = msgspec.field(default_factory=lambda: 5)


class DispatcherConfig(Model, frozen=True, kw_only=True):
    """How often agents say they live, nanoseconds. A node is down after three missed beats."""

    heartbeat_period: int = msgspec.field(default_factory=lambda: SECOND)


class CAConfig(Model, frozen=True, kw_only=True):
    node_cert_expiry: int = msgspec.field(default_factory=lambda: 90 * 24 * 3600 * SECOND)
    force_rotate: int = 0


class EncryptionConfig(Model, frozen=True, kw_only=True):
    auto_lock_managers: bool = msgspec.field(default_factory=bool)


class TaskDefaults(Model, frozen=True, kw_only=True):
    log_driver: LogDriver | None = None


class RaftConfig(Model, frozen=True, kw_only=True):
    """Reported for Docker's clients; the timing in force is each daemon's own setting."""

    snapshot_interval: int = msgspec.field(default_factory=lambda: 10_000)
    keep_old_snapshots: int = msgspec.field(default_factory=int)
    log_entries_for_slow_followers: int = msgspec.field(default_factory=lambda: 500)
    election_tick: int = msgspec.field(default_factory=lambda: 10)
    heartbeat_tick: int = msgspec.field(default_factory=lambda: 1)


class ClusterSpec(Annotations, frozen=True, kw_only=True):
    orchestration: OrchestrationConfig = msgspec.field(default_factory=OrchestrationConfig)
    raft: RaftConfig = msgspec.field(default_factory=RaftConfig)
    dispatcher: DispatcherConfig = msgspec.field(default_factory=DispatcherConfig)
    ca_config: CAConfig = msgspec.field(default_factory=CAConfig)
    task_defaults: TaskDefaults = msgspec.field(default_factory=TaskDefaults)
    encryption_config: EncryptionConfig = msgspec.field(default_factory=EncryptionConfig)


class RootCA(Model, frozen=True, kw_only=True):
    """Never leaves the managers: the API sends `TLSInfo` instead."""

    certificate: str  # PEM
    key: str  # PEM
    join_token_worker: str
    join_token_manager: str


class Cluster(Object, frozen=True, kw_only=True):
    """There is just one. `removed_nodes` are refused for as long as their certificates live."""

    spec: ClusterSpec
    root_ca: RootCA
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 24
    data_path_port: int = 4789
    node_pool: str = "10.192.0.0/10"
    unlock_key: str = ""  # of managers that autolock; "" while they do not. Managers only
    removed_nodes: dict[str, str] = {}  # node id -> time until which it is refused, ISO 8601
