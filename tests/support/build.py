"""Objects for tests. What a test sets is what it is about; all else has a default."""

from collections.abc import Iterable
from typing import Any

from common.model.base import Annotations, Version
from common.model.cluster import Cluster, ClusterSpec, RootCA
from common.model.network import IPAM, IPAMConfig, Network, NetworkSpec
from common.model.node import (
    Availability,
    EngineDescription,
    EnginePlugin,
    Node,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    Role,
)
from common.model.service import (
    EndpointSpec,
    GlobalService,
    ReplicatedService,
    Service,
    ServiceMode,
    ServiceSpec,
    UpdateConfig,
)
from common.model.task import (
    ContainerSpec,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    Platform,
    PortConfig,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    SpreadOver,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

GIB = 1 << 30
CPU = 1_000_000_000


def task_spec(
    image: str = "web:1",
    *,
    cpus: float = 0,
    memory: int = 0,
    networks: Iterable[str] = (),
    constraints: Iterable[str] = (),
    preferences: Iterable[str] = (),
    max_replicas: int = 0,
    platforms: Iterable[Platform] = (),
    restart: RestartPolicy | None = None,
    **more: Any,
) -> TaskSpec:
    """`cpus` and `memory` are reservations; `preferences` are spread descriptors."""
    reservations = Resources(nano_cpus=int(cpus * CPU), memory_bytes=memory)
    spread = [
        PlacementPreference(spread=SpreadOver(spread_descriptor=label)) for label in preferences
    ]
    placement = Placement(
        constraints=tuple(constraints),
        preferences=tuple(spread),
        max_replicas=max_replicas,
        platforms=tuple(platforms),
    )
    return TaskSpec(
        container_spec=more.pop("container_spec", ContainerSpec(image=image)),
        resources=ResourceRequirements(reservations=reservations) if cpus or memory else None,
        placement=None if placement == Placement() else placement,
        networks=tuple(NetworkAttachmentConfig(target=target) for target in networks),
        restart_policy=restart,
        **more,
    )


def service(
    name: str = "web",
    *,
    replicas: int = 1,
    global_: bool = False,
    id: str = "",
    ports: Iterable[PortConfig] = (),
    mode: str = "",
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
    labels: dict[str, str] | None = None,
    spec_version: int = 1,
    task: TaskSpec | None = None,
    **template: Any,
) -> Service:
    """`template` is passed to `task_spec`; `mode` is the endpoint's: vip or dnsrr."""
    ports = tuple(ports)
    return Service(
        id=id or f"service-{name}",
        spec=ServiceSpec(
            name=name,
            labels=labels or {},
            task_template=task or task_spec(**template),
            mode=ServiceMode(global_=GlobalService())
            if global_
            else ServiceMode(replicated=ReplicatedService(replicas=replicas)),
            update_config=update,
            rollback_config=rollback,
            endpoint_spec=EndpointSpec(mode=mode, ports=ports) if ports or mode else None,
        ),
        spec_version=Version(index=spec_version),
    )


def node(
    name: str = "node-1",
    *,
    id: str = "",
    state: NodeState = NodeState.READY,
    availability: Availability = Availability.ACTIVE,
    role: Role = Role.WORKER,
    cpus: float = 4,
    memory: int = 8 * GIB,
    labels: dict[str, str] | None = None,
    engine_labels: dict[str, str] | None = None,
    plugins: Iterable[tuple[str, str]] = (),
    os: str = "linux",
    arch: str = "x86_64",
    addr: str = "",
    index: int = 0,
) -> Node:
    """A node of hostname `name`, ready and active unless the test says otherwise."""
    return Node(
        id=id or name,
        spec=NodeSpec(role=role, availability=availability, labels=labels or {}),
        description=NodeDescription(
            hostname=name,
            platform=Platform(architecture=arch, os=os),
            resources=Resources(nano_cpus=int(cpus * CPU), memory_bytes=memory),
            engine=EngineDescription(
                labels=engine_labels or {},
                plugins=tuple(EnginePlugin(type=type, name=name) for type, name in plugins),
            ),
        ),
        status=NodeStatus(state=state, addr=addr),
        role=role,
        index=index,
    )


def task(
    of: Service | None = None,
    *,
    slot: int = 1,
    id: str = "",
    node: Node | str = "",
    state: TaskState = TaskState.NEW,
    desired: TaskState = TaskState.RUNNING,
    spec: TaskSpec | None = None,
    **more: Any,
) -> Task:
    """A task of service `of`, or of none."""
    name = of.spec.name if of is not None else "alone"
    node_id = node.id if isinstance(node, Node) else node
    id = id or f"task-{name}-{slot}"
    return Task(
        id=id,
        name=f"{name}.{slot or node_id}.{id}",
        service_id=of.id if of is not None else "",
        slot=slot,
        node_id=node_id,
        spec=spec or (of.spec.task_template if of is not None else task_spec()),
        spec_version=more.pop("spec_version", of.spec_version if of is not None else None),
        service_annotations=Annotations(name=name),
        status=more.pop("status", TaskStatus(state=state)),
        desired_state=desired,
        **more,
    )


def network(
    name: str = "net",
    *,
    id: str = "",
    subnets: Iterable[str] = (),
    gateway: str = "",
    ip_range: str = "",
    ingress: bool = False,
    attachable: bool = False,
) -> Network:
    """An overlay network, not yet allocated."""
    wishes = tuple(
        IPAMConfig(subnet=subnet, gateway=gateway, ip_range=ip_range) for subnet in subnets
    )
    return Network(
        id=id or f"network-{name}",
        spec=NetworkSpec(
            name=name,
            driver="overlay",
            ingress=ingress,
            attachable=attachable,
            ipam=IPAM(config=wishes) if wishes else None,
        ),
    )


def cluster(**settings: Any) -> Cluster:
    """The cluster object, with a certificate authority that is good for nothing."""
    return Cluster(
        id="cluster-1",
        spec=settings.pop("spec", ClusterSpec(name="default")),
        root_ca=RootCA(
            certificate="CERT", key="KEY", join_token_worker="W", join_token_manager="M"
        ),
        default_addr_pool=settings.pop("default_addr_pool", ("10.0.0.0/8",)),
        **settings,
    )


def port(target: int = 80, published: int = 0, **more: Any) -> PortConfig:
    """A published port; `publish_mode="host"`, `protocol="udp"`, …"""
    return PortConfig(target_port=target, published_port=published, **more)
