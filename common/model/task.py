"""Tasks: one attempt to run one slot of a service on one node."""

import datetime as dt
import enum
import posixpath

import msgspec

from common.model.base import ZERO_TIME, Annotations, Model, Object, Version
from common.model.mounts import Mount

SECOND = 1_000_000_000  # durations are nanoseconds in Docker's JSON


class TaskState(enum.Enum):
    """Where a task is in its life. Only ever moves down this list."""

    NEW = "new"
    PENDING = "pending"
    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    PREPARING = "preparing"
    READY = "ready"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETE = "complete"
    SHUTDOWN = "shutdown"
    FAILED = "failed"
    REJECTED = "rejected"
    REMOVE = "remove"
    ORPHANED = "orphaned"

    # States are compared and looked up in every loop, for every task: hence no detours.

    def __init__(self, _: str) -> None:
        self.rank = len(type(self).__members__)

    def __lt__(self, other: "TaskState") -> bool:
        return self.rank < other.rank

    def __le__(self, other: "TaskState") -> bool:
        return self.rank <= other.rank

    def __gt__(self, other: "TaskState") -> bool:
        return self.rank > other.rank

    def __ge__(self, other: "TaskState") -> bool:
        return self.rank >= other.rank

    __hash__ = object.__hash__


class HealthConfig(Model, frozen=True, kw_only=True):
    """How a container's health is probed. Durations in nanoseconds; 0: the default."""

    test: tuple[str, ...] = ()  # [] inherit, ["NONE"], ["CMD", …], ["CMD-SHELL", command]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class DNSConfig(Model, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


SECRETS = "/run/secrets"  # where the files of secrets are, unless the target is a whole path
CONFIGS = "/"


class FileTarget(Model, frozen=True, kw_only=True):
    """Where a secret or config is in a container, and whose it is."""

    name: str
    uid: str = msgspec.field(default_factory=lambda: "0", name="UID")
    gid: str = msgspec.field(default_factory=lambda: "0", name="GID")
    mode: int = msgspec.field(default_factory=lambda: 0o444)

    def path(self, folder: str) -> str:
        """The whole path; a plain name is below `folder`."""
        return posixpath.normpath(posixpath.join(folder, self.name))


class SecretReference(Model, frozen=True, kw_only=True):
    file: FileTarget | None = None
    secret_id: str
    secret_name: str = ""


class ConfigReference(Model, frozen=True, kw_only=True):
    file: FileTarget | None = None
    runtime: dict[str, object] | None = None  # of plugins and Windows' credentials: not here
    config_id: str
    config_name: str = ""


class Ulimit(Model, frozen=True, kw_only=True):
    name: str
    soft: int
    hard: int


class ContainerSpec(Model, frozen=True, kw_only=True):
    """What a task runs. `command` is the entrypoint, `args` what follows it."""

    image: str = ""
    labels: dict[str, str] = {}
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    privileges: dict[str, object] | None = None
    init: bool | None = None
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    stop_signal: str = ""
    stop_grace_period: int | None = None
    healthcheck: HealthConfig | None = None
    hosts: tuple[str, ...] = ()  # "ADDRESS NAME…", as in hosts(5)
    dns_config: DNSConfig | None = None
    secrets: tuple[SecretReference, ...] = ()
    configs: tuple[ConfigReference, ...] = ()
    isolation: str = ""
    sysctls: dict[str, str] = {}
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()


class Resources(Model, frozen=True, kw_only=True):
    """An amount of a node: billionths of a CPU, bytes."""

    nano_cpus: int = msgspec.field(default=0, name="NanoCPUs")
    memory_bytes: int = 0
    pids: int = msgspec.field(default=0, name="Pids")
    generic_resources: tuple[dict[str, object], ...] = ()


class ResourceRequirements(Model, frozen=True, kw_only=True):
    """`limits` is what the kernel enforces, `reservations` what scheduling counts."""

    limits: Resources | None = None
    reservations: Resources | None = None


class RestartPolicy(Model, frozen=True, kw_only=True):
    """When another task takes a failed one's slot. Durations in nanoseconds; None: default."""

    condition: str = ""  # "", "none", "on-failure", "any"; "" means any
    delay: int | None = None
    max_attempts: int | None = None  # None and 0: no limit
    window: int | None = None


class SpreadOver(Model, frozen=True, kw_only=True):
    spread_descriptor: str


class PlacementPreference(Model, frozen=True, kw_only=True):
    spread: SpreadOver | None = None


class Platform(Model, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = ""


class Placement(Model, frozen=True, kw_only=True):
    constraints: tuple[str, ...] = ()
    preferences: tuple[PlacementPreference, ...] = ()
    max_replicas: int = 0
    platforms: tuple[Platform, ...] = ()


class NetworkAttachmentConfig(Model, frozen=True, kw_only=True):
    """A wish to be on a network: `target` is its id or name."""

    target: str
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = {}


class LogDriver(Model, frozen=True, kw_only=True):
    name: str = ""
    options: dict[str, str] = {}


class TaskSpec(Model, frozen=True, kw_only=True):
    """What each task of a service is."""

    container_spec: ContainerSpec | None = None
    plugin_spec: dict[str, object] | None = None
    network_attachment_spec: dict[str, object] | None = None
    resources: ResourceRequirements | None = None
    restart_policy: RestartPolicy | None = None
    placement: Placement | None = None
    force_update: int = msgspec.field(default_factory=int)
    runtime: str = ""
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    log_driver: LogDriver | None = None


class PortConfig(Model, frozen=True, kw_only=True):
    """One published port. `published_port` 0: the allocator chooses (30000-32767)."""

    name: str = ""
    protocol: str = msgspec.field(default_factory=lambda: "tcp")
    target_port: int = 0
    published_port: int = 0
    # "ingress": on every node; "host": where the task runs
    publish_mode: str = msgspec.field(default_factory=lambda: "ingress")
    # mode host: only at this address of the node; not in Docker's API for services
    host_ip: str = msgspec.field(default="", name="HostIp")


class ContainerStatus(Model, frozen=True, kw_only=True):
    container_id: str = ""
    pid: int = 0
    exit_code: int = msgspec.field(default_factory=int)


class PortStatus(Model, frozen=True, kw_only=True):
    """Host-mode ports that a task has on its node."""

    ports: tuple[PortConfig, ...] = ()


class TaskStatus(Model, frozen=True, kw_only=True):
    """What was observed. From ACCEPTED on only the agent writes it, through the dispatcher."""

    timestamp: dt.datetime = msgspec.field(default_factory=lambda: ZERO_TIME)
    state: TaskState
    message: str = ""
    err: str = ""
    container_status: ContainerStatus | None = None
    port_status: PortStatus = msgspec.field(default_factory=PortStatus)
    node_address: str = ""  # the task's address in its node's own subnet, for ingress
    boot_id: str = ""  # of the node when this was said: after a reboot nothing runs until said anew


class NetworkAttachment(Model, frozen=True, kw_only=True):
    """The allocator's record that a task has addresses on a network.

    `addresses` are CIDR ("10.0.1.5/24"); `mac` is derived from the first of them.
    """

    network_id: str
    network_name: str = ""
    addresses: tuple[str, ...] = ()
    mac: str = ""
    aliases: tuple[str, ...] = ()


class Task(Object, frozen=True, kw_only=True):
    """One attempt to run one slot of a service on one node. Never restarted, only replaced."""

    name: str = ""  # "web.3.<task id>": what DNS and `container ls` show
    labels: dict[str, str] = msgspec.field(default_factory=lambda: {})
    spec: TaskSpec
    service_id: str = ""
    slot: int = 0  # 0 for global services
    node_id: str = ""
    service_annotations: Annotations = msgspec.field(default_factory=Annotations)
    status: TaskStatus
    desired_state: TaskState
    spec_version: Version | None = None  # the service spec this task was made from
    job_iteration: Version | None = None  # of a job: the run this task belongs to
    networks_attachments: tuple[NetworkAttachment, ...] = ()
    ports: tuple[PortConfig, ...] = ()  # copy of the service's, for host-mode ports
    waits_for: str = ""  # other services; until that is empty the task stays NEW
    leaving: bool = False  # to be replaced on another node, for balance
    start_after: dt.datetime | None = None  # READY tasks wait until then (restart delay)
