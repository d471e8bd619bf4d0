"""What the objects of the store mean for the endpoint table. Pure functions.

Each item carries topics: a node has an item if it follows one of the item's topics. All nodes
follow EVERYWHERE; a node follows a network as long as it has an unfinished task on it.
"""

from collections.abc import Callable, Iterable

import msgspec

from common.model.network import Network
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from common.protocol.network import (
    IngressBackend,
    NetworkItem,
    OverlayEndpoint,
    OverlayNetwork,
    Peer,
    PublishedPort,
    ServiceEntry,
    Subnet,
)

EVERYWHERE = ""  # the topic of what all nodes need; the other topics are network ids
Topics = frozenset[str]
ON_ALL_NODES: Topics = frozenset((EVERYWHERE,))
NO_TOPICS: Topics = frozenset()


class Entry(msgspec.Struct, frozen=True):
    """An item and who needs it."""

    item: NetworkItem
    topics: Topics


def node_entries(node: Node) -> list[Entry]:
    """A node is a peer once it has an index and has said its address."""
    if not node.index or not node.status.addr:
        return []
    peer = Peer(node_id=node.id, index=node.index, address=node.status.addr)
    return [Entry(peer, ON_ALL_NODES)]


def network_entries(network: Network) -> list[Entry]:
    """A network can be built once the allocator has given it a VNI."""
    if not network.vni:
        return []
    item = OverlayNetwork(
        id=network.id,
        name=network.spec.name,
        vni=network.vni,
        subnets=tuple(
            Subnet(subnet=config.subnet, gateway=config.gateway)
            for config in network.ipam.config
            if config.subnet
        ),
        internal=network.spec.internal,
        mtu=_mtu(network),
    )
    return [Entry(item, frozenset((network.id,)))]


def service_entries(service: Service, network_id: Callable[[str], str]) -> list[Entry]:
    """`network_id` turns the name or id of a network into its id, or into "".

    A service on its way out is gone at once: its name may belong to another by now.
    """
    if service.pending_delete:
        return []
    ports = ingress_ports(service)
    aliases = _aliases(service, network_id)
    vips = {vip.network_id: bare(vip.addr) for vip in service.endpoint.virtual_ips}
    topics = frozenset((*vips, *aliases, *((EVERYWHERE,) if ports else ())))
    if not topics:
        return []
    item = ServiceEntry(
        service_id=service.id,
        name=service.spec.name,
        vips=vips,
        aliases={network: names for network, names in aliases.items() if names},
        ports=ports,
    )
    return [Entry(item, topics)]


def task_entries(task: Task, *, ingress: bool, active: bool) -> list[Entry]:
    """A task's endpoints, and its ingress backend if its service publishes ports (`ingress`)."""
    if not has_endpoints(task):
        return []
    entries = [
        Entry(_endpoint(task, index, active), frozenset((attachment.network_id,)))
        for index, attachment in enumerate(task.networks_attachments)
        if attachment.addresses
    ]
    if ingress and task.status.node_address:
        backend = IngressBackend(
            task_id=task.id,
            service_id=task.service_id,
            node_id=task.node_id,
            address=task.status.node_address,
            active=active,
        )
        entries.append(Entry(backend, ON_ALL_NODES))
    return entries


def has_endpoints(task: Task) -> bool:
    """On a node and not finished."""
    return bool(task.node_id) and TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING


def stopping(task: Task) -> bool:
    """Whether the task should end. COMPLETE is how far a job goes by itself."""
    return task.desired_state >= TaskState.SHUTDOWN


def serving(task: Task, boot_id: str = "") -> bool:
    """Whether requests may go to the task, as far as the task itself is concerned.

    What was said before its node's boot `boot_id` does not hold any more; "": not known.
    """
    said = not boot_id or task.status.boot_id == boot_id
    return said and task.status.state is TaskState.RUNNING and not stopping(task)


def files(tasks: Iterable[Task]) -> list[str]:
    """The ids of the secrets and configs that `tasks` may need to start, also after a reboot."""
    found: dict[str, None] = {}
    for task in tasks:
        container = task.spec.container_spec
        if container is None or stopping(task) or task.status.state > TaskState.RUNNING:
            continue
        found |= dict.fromkeys(secret.secret_id for secret in container.secrets)
        found |= dict.fromkeys(config.config_id for config in container.configs)
    return list(found)


def ingress_ports(service: Service) -> tuple[PublishedPort, ...]:
    """What is published on every node."""
    return tuple(
        PublishedPort(
            protocol=port.protocol, published=port.published_port, target=port.target_port
        )
        for port in service.endpoint.ports
        if port.publish_mode == "ingress" and port.published_port
    )


def bare(address: str) -> str:
    """An address without its prefix length."""
    return address.partition("/")[0]


def _endpoint(task: Task, index: int, active: bool) -> OverlayEndpoint:
    attachment = task.networks_attachments[index]
    return OverlayEndpoint(
        task_id=task.id,
        network_id=attachment.network_id,
        node_id=task.node_id,
        address=bare(attachment.addresses[0]),
        mac=attachment.mac,
        task_name=task.name,
        service_id=task.service_id,
        aliases=attachment.aliases,
        active=active,
    )


def _aliases(service: Service, network_id: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """The service's further names on each of its networks."""
    wishes = service.spec.task_template.networks or service.spec.networks
    found: dict[str, tuple[str, ...]] = {}
    for wish in wishes:
        if id := network_id(wish.target):
            found[id] = _merged(found.get(id, ()), wish.aliases)
    return found


def _merged(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _mtu(network: Network) -> int:
    text = (network.spec.options or {}).get("com.docker.network.driver.mtu", "")
    return int(text) if text.isdecimal() else 0
