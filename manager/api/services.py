"""What may be asked of services."""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

import msgspec
from msgspec.structs import replace

from common.clock import Clock
from common.errors import Conflict, Invalid, NotFound, NotImplementedHere
from common.ids import Ids
from common.model.base import Model
from common.model.cluster import Cluster
from common.model.network import Network
from common.model.node import Node, NodeState
from common.model.service import (
    JobStatus,
    ReplicatedJob,
    ReplicatedService,
    Revision,
    Service,
    ServiceMode,
    ServiceSpec,
    UpdateStatus,
)
from common.model.task import NetworkAttachmentConfig, PortConfig, Task, TaskState
from manager import revisions, wishes
from manager.api import defaults, validate
from manager.api.filters import Filters, Test, has_label, one_of, select
from manager.api.refs import resolve
from manager.api.secrets import check_references
from manager.orchestrator import ordering
from manager.orchestrator.timetable import run_again
from manager.store.store import Store, Tx, View

PREDEFINED = ("bridge", "host", "none", "null")


class ServiceStatus(Model, frozen=True, kw_only=True):
    """How many tasks of a service run, and how many should."""

    running_tasks: int = msgspec.field(default_factory=int)
    desired_tasks: int = msgspec.field(default_factory=int)
    completed_tasks: int = msgspec.field(default_factory=int)


class Services:
    """Validated operations on services. Services that are being removed are not there."""

    def __init__(self, store: Store, ids: Ids, clock: Clock) -> None:
        self._store = store
        self._ids = ids
        self._clock = clock

    def list(self, filters: Filters) -> Sequence[Service]:
        """The services that pass. Raises Invalid for an unknown filter."""
        return select(_live(self._store.view()), filters, _TESTS)

    def get(self, ref: str) -> Service:
        """Raises NotFound, Invalid (ambiguous)."""
        return find_service(self._store.view(), ref)

    def with_defaults(self, service: Service) -> Service:
        """`service` with the values in force where its spec says nothing."""
        return defaults.with_defaults(service)

    def history(self, ref: str) -> Sequence[tuple[Revision, ServiceSpec]]:
        """The revisions of a service, newest first. Raises NotFound, Invalid (ambiguous)."""
        return revisions.history(self.get(ref))

    def statuses(self) -> dict[str, ServiceStatus]:
        """The task counts of all services, by service id."""
        view = self._store.view()
        down = {node.id for node in view.find(Node) if node.status.state is NodeState.DOWN}
        return {
            service.id: _status(service, view.find(Task, service_id=service.id), down)
            for service in _live(view)
        }

    async def create(self, spec: ServiceSpec) -> Service:
        """Raises Invalid, NotFound (a network), Conflict (name or port taken).

        A service without a name is given one, as Docker does."""
        id, write = self.creation(spec)
        await self._store.update(write)
        return self._written(id)

    def creation(self, spec: ServiceSpec) -> tuple[str, Callable[[Tx], None]]:
        """The id of a service to be, and the transaction that creates it; raises as `create`."""
        if not spec.name:
            taken = {service.spec.name for service in _live(self._store.view())}
            spec = msgspec.structs.replace(spec, name=self._ids.name(taken))
        validate.service(spec)
        id = self._ids.new()

        def write(tx: Tx) -> None:
            full = _complete(tx, spec)
            check_references(tx, full)
            _check_ports(tx, full, id)
            ordering.check(tx, full, id)
            tx.put(Service(id=id, spec=full, job_status=_first_run(full, self._clock.now())))

        return id, write

    async def update(
        self,
        ref: str,
        version: int,
        spec: ServiceSpec,
        rollback: str = "",
        rollback_to: int | None = None,
    ) -> Service:
        """Give a service a new spec, or with `rollback` = "previous" the one before, or with
        `rollback_to` that of an earlier revision.

        `version` is what the caller saw; it may be older than the object as long as the spec
        did not change since, so that the cluster's own writes get in nobody's way. Raises
        Invalid, NotFound, Conflict ("update out of sequence"), NotImplementedHere.
        """
        write = self.change(ref, version, spec, rollback, rollback_to)
        return self._written(await self._store.update(write))

    def change(
        self,
        ref: str,
        version: int,
        spec: ServiceSpec,
        rollback: str = "",
        rollback_to: int | None = None,
    ) -> Callable[[Tx], str]:
        """The transaction of `update`, which gives the service's id; raises as that does."""
        if rollback not in ("", "previous"):
            raise Invalid(f"rollback = {rollback!r} is not known; the only value is previous")
        if rollback and rollback_to is not None:
            raise Invalid("rollback and rollbackTo exclude each other; give one of them")
        back = bool(rollback) or rollback_to is not None
        if not back:
            validate.service(spec)

        def write(tx: Tx) -> str:
            service = find_service(tx, ref)
            _check_version(service, version)
            now = self._clock.now()
            if back:
                changed = _rolled_back(tx, service, rollback_to, now)
            else:
                changed = _updated(tx, service, spec, now)
            check_references(tx, changed.spec)
            ordering.check(tx, changed.spec, service.id)
            tx.put(_run_again(service, changed, now) if changed is not service else service)
            return service.id

        return write

    async def remove(self, ref: str) -> None:
        """The service is gone at once for its users; its tasks end after that."""

        def write(tx: Tx) -> None:
            tx.put(replace(find_service(tx, ref), pending_delete=True))

        await self._store.update(write)

    def _written(self, id: str) -> Service:
        service = self._store.view().get(Service, id)
        if service is None:  # removed again in the same moment
            raise NotFound(f"service {id} not found")
        return service


def find_service(view: View, ref: str) -> Service:
    """The service that `ref` means, unless it is being removed. Raises NotFound, Invalid."""
    return resolve("service", ref, _live(view), lambda service: (service.spec.name,))


def _live(view: View) -> Iterable[Service]:
    return [service for service in view.find(Service) if not service.pending_delete]


def _check_version(service: Service, seen: int) -> None:
    spec_version = service.spec_version.index if service.spec_version is not None else 0
    if not spec_version <= seen <= service.version.index:
        raise Conflict(
            f"update out of sequence: service {service.spec.name} was changed since version {seen}"
            f" (now {service.version.index}); read it again and repeat the change"
        )


def _updated(tx: Tx, service: Service, spec: ServiceSpec, now: dt.datetime) -> Service:
    full = _complete(tx, _keeping_scale(service, spec))
    if full.name != service.spec.name:
        raise NotImplementedHere(
            f"renaming services is not supported: {service.spec.name} to {full.name}; "
            "create a new service"
        )
    if full.mode.name != service.spec.mode.name:
        raise NotImplementedHere(
            f"service {service.spec.name}: mode change is not allowed; create a new service"
        )
    _check_ports(tx, full, service.id)
    if full == service.spec:
        paused = service.update_status is not None and "paused" in service.update_status.state
        return replace(service, update_status=None) if paused else service
    changed = revisions.revised(service, full, "update", now)
    return replace(changed, previous_spec=service.spec, update_status=None)


def _rolled_back(tx: Tx, service: Service, to: int | None, now: dt.datetime) -> Service:
    """`service` on its way back to its previous spec, or to that of revision `to`.

    What the spec needs may be gone, or be another's by now: that is seen as for a new one."""
    spec = service.previous_spec if to is None else revisions.spec_of(service, to)
    if spec is None:
        raise Invalid(f"service {service.spec.name} has no previous spec to roll back to")
    full = _complete(tx, spec)
    _check_ports(tx, full, service.id)
    cause = "rollback" if to is None else f"rollback to {to}"
    changed = replace(revisions.revised(service, full, cause, now), previous_spec=service.spec)
    if service.spec.mode.is_job:
        return changed
    status = UpdateStatus(
        state="rollback_started", started_at=now, message="manually requested rollback"
    )
    return replace(changed, update_status=status)


def _first_run(spec: ServiceSpec, now: dt.datetime) -> JobStatus | None:
    """Of a job: it begins at once, unless it has a schedule."""
    if not spec.mode.is_job:
        return None
    scheduled = wishes.of(spec).schedule is not None
    return JobStatus() if scheduled else JobStatus(last_execution=now)


def _run_again(old: Service, service: Service, now: dt.datetime) -> Service:
    """`service`, changed; if it is a job, about to run once more. A scheduled one runs when its
    time comes, or if it is forced to."""
    status = service.job_status
    if status is None:
        return service
    status = replace(status, next_execution=None)
    forced = old.spec.task_template.force_update != service.spec.task_template.force_update
    if wishes.of(service.spec).schedule is None or forced:
        status = run_again(status, now)
    return replace(service, job_status=status)


def _complete(view: View, spec: ServiceSpec) -> ServiceSpec:
    """`spec` as it is stored: counts given, networks as ids and in their present place."""
    wishes = spec.task_template.networks or spec.networks
    validate.networks(wishes)
    template = replace(spec.task_template, networks=_resolve_networks(view, wishes))
    return replace(spec, mode=_counted(spec.mode), task_template=template, networks=())


def _keeping_scale(service: Service, spec: ServiceSpec) -> ServiceSpec:
    """`spec` with the replicas that an autoscaled service has, where it does not say how many."""
    mode = spec.mode.replicated
    unsaid = spec.mode.name == "replicated" and (mode is None or mode.replicas is None)
    if not unsaid or wishes.of(spec).autoscale is None:
        return spec
    replicas = defaults.replicas(service.spec)
    return replace(spec, mode=ServiceMode(replicated=ReplicatedService(replicas=replicas)))


def _counted(mode: ServiceMode) -> ServiceMode:
    if mode.name == "replicated" and (mode.replicated is None or mode.replicated.replicas is None):
        return ServiceMode(replicated=ReplicatedService(replicas=1))
    if (job := mode.replicated_job) is not None:
        at_once = 1 if job.max_concurrent is None else job.max_concurrent
        total = at_once if job.total_completions is None else job.total_completions
        return ServiceMode(
            replicated_job=ReplicatedJob(max_concurrent=at_once, total_completions=total)
        )
    return mode


def _resolve_networks(
    view: View, wishes: Iterable[NetworkAttachmentConfig]
) -> tuple[NetworkAttachmentConfig, ...]:
    found: dict[str, NetworkAttachmentConfig] = {}
    for wish in wishes:
        if wish.target == "ingress":
            continue  # every published port is on every node, without a network for it
        if wish.target in PREDEFINED:
            raise NotImplementedHere(
                f"services cannot use the node's own network {wish.target} yet; "
                "create an overlay with: network create -d overlay NAME"
            )
        network = find_network(view, wish.target)
        if network.id in found:
            raise Invalid(f"network {network.spec.name} is given twice; name it once")
        found[network.id] = replace(wish, target=network.id)
    return tuple(found.values())


def find_network(view: View, ref: str) -> Network:
    """The network that `ref` means, unless it is being removed. Raises NotFound, Invalid."""
    live = [network for network in view.find(Network) if not network.pending_delete]
    return resolve("network", ref, live, lambda network: (network.spec.name,))


def _check_ports(view: View, spec: ServiceSpec, own_id: str) -> None:
    """No other service may have a port that is published on all nodes. Raises Conflict."""
    wanted = {
        (port.protocol, port.published_port)
        for port in _ports(spec)
        if port.publish_mode == "ingress" and port.published_port
    }
    if not wanted:
        return
    _check_reserved(view, wanted)
    for other in _live(view):
        if other.id == own_id:
            continue
        for port in (*_ports(other.spec), *other.endpoint.ports):
            key = (port.protocol, port.published_port)
            if port.publish_mode == "ingress" and key in wanted:
                raise Conflict(
                    f"port {port.published_port}/{port.protocol} is already in use by service "
                    f"{other.spec.name}; publish another port, or remove it there"
                )


def _check_reserved(view: View, wanted: set[tuple[str, int]]) -> None:
    """The cluster's own ports. A service there would get what managers say to each other: the
    cluster would lose its quorum, and with it the means to remove the service."""
    own = {("udp", cluster.data_path_port) for cluster in view.find(Cluster)}
    for node in view.find(Node):
        if node.manager_status is not None:
            _, _, port = node.manager_status.addr.rpartition(":")
            own |= {("tcp", int(port))} if port.isdecimal() else set()
    for protocol, port_number in sorted(own & wanted):
        raise Conflict(f"port {port_number}/{protocol} is the cluster's own; publish another port")


def _ports(spec: ServiceSpec) -> tuple[PortConfig, ...]:
    return spec.endpoint_spec.ports if spec.endpoint_spec is not None else ()


def _status(service: Service, tasks: Iterable[Task], down: AbstractSet[str]) -> ServiceStatus:
    """What is on a node of `down` does not run for anybody."""
    mode = service.spec.mode
    run = service.job_status.job_iteration if service.job_status is not None else None
    wanted = [
        task
        for task in tasks
        if task.desired_state <= TaskState.COMPLETE and task.job_iteration == run
    ]
    running = sum(
        task.status.state is TaskState.RUNNING and task.node_id not in down for task in wanted
    )
    completed = sum(
        task.status.state is task.desired_state is TaskState.COMPLETE for task in wanted
    )
    desired = len(wanted)
    if mode.replicated_job is not None:
        desired = mode.replicated_job.max_concurrent or 0
    elif mode.global_job is not None:
        desired -= completed  # clients add the two up
    elif mode.name == "replicated":
        desired = defaults.replicas(service.spec)
    return ServiceStatus(running_tasks=running, desired_tasks=desired, completed_tasks=completed)


def _has_mode(service: Service, value: str) -> bool:
    modes = ("replicated", "global", "replicated-job", "global-job")
    return service.spec.mode.name == one_of("mode", value, modes)


def _has_runtime(service: Service, value: str) -> bool:
    return (service.spec.task_template.runtime or "container") == value


_TESTS: dict[str, Test[Service]] = {
    "id": lambda service, value: service.id.startswith(value),
    "name": lambda service, value: service.spec.name.startswith(value),
    "label": lambda service, value: has_label(service.spec.labels, value),
    "mode": _has_mode,
    "runtime": _has_runtime,
}
