"""Services: what the user asks for."""

import datetime as dt

import msgspec

from common.model.base import Annotations, Model, Object, Version
from common.model.task import NetworkAttachmentConfig, PortConfig, TaskSpec


class ReplicatedService(Model, frozen=True, kw_only=True):
    replicas: int | None = None  # stored as 1 when not given


class GlobalService(Model, frozen=True, kw_only=True):
    pass


class ReplicatedJob(Model, frozen=True, kw_only=True):
    """Tasks that run to their end, `total_completions` in all; both are stored when not given."""

    max_concurrent: int | None = None  # stored as 1
    total_completions: int | None = None  # stored as max_concurrent


class GlobalJob(Model, frozen=True, kw_only=True):
    pass


class ServiceMode(Model, frozen=True, kw_only=True):
    """Just one is set."""

    replicated: ReplicatedService | None = None
    global_: GlobalService | None = msgspec.field(default=None, name="Global")
    replicated_job: ReplicatedJob | None = None
    global_job: GlobalJob | None = None

    @property
    def name(self) -> str:
        """As `service ls` shows it."""
        if self.replicated_job is not None:
            return "replicated-job"
        if self.global_job is not None:
            return "global-job"
        return "global" if self.global_ is not None else "replicated"

    @property
    def is_job(self) -> bool:
        """Whether tasks are to come to an end by themselves."""
        return self.replicated_job is not None or self.global_job is not None


class UpdateConfig(Model, frozen=True, kw_only=True):
    """How an update or a rollback goes. Durations in nanoseconds.

    Docker's trap is kept out: a block without parallelism means 1 here, not "all at once";
    0 that is sent means all at once.
    """

    parallelism: int | None = None
    delay: int = 0
    failure_action: str = ""  # pause, continue, rollback (updates only)
    monitor: int | None = None  # None: 5 s
    max_failure_ratio: float = msgspec.field(default_factory=float)
    order: str = ""  # stop-first, start-first


class EndpointSpec(Model, frozen=True, kw_only=True):
    mode: str = ""  # vip (default) or dnsrr
    ports: tuple[PortConfig, ...] = ()


class ServiceSpec(Annotations, frozen=True, kw_only=True):
    task_template: TaskSpec = msgspec.field(default_factory=TaskSpec)
    mode: ServiceMode = msgspec.field(default_factory=ServiceMode)
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: tuple[NetworkAttachmentConfig, ...] = ()  # older clients; moved to task_template
    endpoint_spec: EndpointSpec | None = None


class VirtualIP(Model, frozen=True, kw_only=True):
    network_id: str
    addr: str  # CIDR


class Endpoint(Model, frozen=True, kw_only=True):
    """What the allocator gave a service."""

    spec: EndpointSpec = msgspec.field(default_factory=EndpointSpec)
    ports: tuple[PortConfig, ...] = ()
    virtual_ips: tuple[VirtualIP, ...] = ()


class UpdateStatus(Model, frozen=True, kw_only=True):
    """`state`: updating, paused, completed, rollback_started, rollback_paused,
    rollback_completed."""

    state: str = ""
    started_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    message: str = ""
    rebalancing: bool = False  # the spec is the same: tasks are moved to other nodes


class JobStatus(Model, frozen=True, kw_only=True):
    """Which run of a job this is: each change of its spec begins another, or its schedule does.

    Of scheduled jobs: when the next run is due, and which moment was passed over last because the
    run before had not ended. One that never ran has no `last_execution`.
    """

    job_iteration: Version = msgspec.field(default_factory=lambda: Version(index=0))
    last_execution: dt.datetime | None = None
    next_execution: dt.datetime | None = None
    skipped_at: dt.datetime | None = None


class AutoscaleStatus(Model, frozen=True, kw_only=True):
    """The last change of the replicas that the cluster made by itself."""

    at: dt.datetime
    replicas_before: int
    replicas: int
    message: str = ""


class Revision(Model, frozen=True, kw_only=True):
    """One of the specs that a service had, and what made it so (`manager/revisions.py`)."""

    number: int  # of this service, from 1 on
    at: dt.datetime  # when it was asked for
    cause: str  # create, update, rollback, …
    packed: bytes = b""  # the spec; empty for the present one


class Service(Object, frozen=True, kw_only=True):
    spec: ServiceSpec
    previous_spec: ServiceSpec | None = None
    spec_version: Version | None = None  # moves only when `spec` changes; tasks carry it
    previous_spec_version: Version | None = None
    endpoint: Endpoint = msgspec.field(default_factory=Endpoint)
    update_status: UpdateStatus | None = None
    job_status: JobStatus | None = None  # of jobs
    autoscale: AutoscaleStatus | None = None
    pending_delete: bool = False
    revision: Revision | None = None  # the present one; None: the first
    revisions: tuple[Revision, ...] = ()  # earlier ones, oldest first; the API has them apart
