"""Nodes: the machines of a cluster."""

import datetime as dt
import enum

import msgspec

from common.model.base import Annotations, Model, Object
from common.model.task import Platform, Resources


class Role(enum.Enum):
    WORKER = "worker"
    MANAGER = "manager"


class Availability(enum.Enum):
    ACTIVE = "active"
    PAUSE = "pause"  # no new tasks
    DRAIN = "drain"  # tasks move away


class NodeState(enum.Enum):
    UNKNOWN = "unknown"
    DOWN = "down"
    READY = "ready"
    DISCONNECTED = "disconnected"


class NodeSpec(Annotations, frozen=True, kw_only=True):
    role: Role = msgspec.field(default_factory=lambda: Role.WORKER)
    availability: Availability = msgspec.field(default_factory=lambda: Availability.ACTIVE)


class EnginePlugin(Model, frozen=True, kw_only=True):
    type: str
    name: str


class EngineDescription(Model, frozen=True, kw_only=True):
    engine_version: str = ""
    labels: dict[str, str] = {}
    plugins: tuple[EnginePlugin, ...] = ()


class TLSInfo(Model, frozen=True, kw_only=True):
    trust_root: str = ""
    cert_issuer_subject: str = ""
    cert_issuer_public_key: str = ""


class NodeDescription(Model, frozen=True, kw_only=True):
    """What the node says of itself when it opens a session."""

    hostname: str = ""
    platform: Platform = msgspec.field(default_factory=Platform)
    resources: Resources = msgspec.field(default_factory=Resources)
    engine: EngineDescription = msgspec.field(default_factory=EngineDescription)
    tls_info: TLSInfo = msgspec.field(default_factory=TLSInfo)
    networks: tuple[str, ...] = ()  # ranges of the networks that it is in
    routes: tuple[str, ...] = ()  # ranges to which it has a route
    warnings: tuple[str, ...] = ()  # what does not work there, a sentence each


class NodeStatus(Model, frozen=True, kw_only=True):
    """`addr` is the node's address on the underlay, also its VTEP; `down_since` of one that is
    down when its tasks were lost."""

    state: NodeState = msgspec.field(default_factory=lambda: NodeState.UNKNOWN)
    message: str = ""
    addr: str = ""
    down_since: dt.datetime | None = None


class ManagerStatus(Model, frozen=True, kw_only=True):
    """Filled in by the API from Raft's membership; stored only as raft_id and addr."""

    leader: bool = False
    reachability: str = ""  # reachable, unreachable, unknown
    addr: str = ""  # HOST:PORT of the cluster listener
    raft_id: str = ""


class Node(Object, frozen=True, kw_only=True):
    """`role` is what the node's certificate says, `spec.role` what the operator wants."""

    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    description: NodeDescription = msgspec.field(default_factory=NodeDescription)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)
    role: Role = msgspec.field(default_factory=lambda: Role.WORKER)
    manager_status: ManagerStatus | None = None
    index: int = 0  # 1 … 4094: gives the node its own subnet; 0: not allocated yet
    certificate_issued_at: str = ""
    boot_id: str = ""  # as it said when it last opened a session
