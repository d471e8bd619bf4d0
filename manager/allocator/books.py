"""All that is given out in the cluster, as it follows from the store, and how it is given.

The books hold no decision of their own: after `restore` they are the same, whoever kept them
before. A task keeps its addresses until it is gone or was *seen* to have ended; only then can
nobody else be answered at them.
"""

from collections.abc import Collection, Hashable, Iterator

from msgspec.structs import replace

from common.model.cluster import Cluster
from common.model.network import IPAM, Network
from common.model.node import Node
from common.model.service import Endpoint, EndpointSpec, Service, VirtualIP
from common.model.task import NetworkAttachment, NetworkAttachmentConfig, Task, TaskState
from manager.allocator.ipam import Addresses, BadSubnet, SubnetPool, mac, parse, plan_ipam
from manager.allocator.numbering import node_indexes, vnis
from manager.allocator.ports import Ports, PortTaken
from manager.allocator.surroundings import Around
from manager.store.view import View

SUBNETS = "subnets"  # causes of waiting, besides ("network", id or name) and ("service", id)
PORTS = "ports"
INDEXES = "indexes"


class Blocked(Exception):
    """It must wait for `cause`; the text is for the user."""

    def __init__(self, cause: Hashable, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


def holds_addresses(task: Task) -> bool:
    """Whether something may still be answering at the task's addresses."""
    return task.status.state <= TaskState.RUNNING


def is_allocated(network: Network) -> bool:
    return bool(network.vni and network.ipam.config)


class Books:
    """Who has which VNI, subnet, address, port and node index."""

    def __init__(self, cluster: Cluster | None) -> None:
        self.subnets = _pool(cluster)
        self.vnis = vnis()
        self.indexes = node_indexes()
        self.ports = Ports()
        self._networks: dict[str, Addresses] = {}

    @classmethod
    def restored(cls, view: View) -> "Books":
        """The books as the store has them."""
        books = cls(next(iter(view.find(Cluster)), None))
        for node in view.find(Node):
            if node.index:
                books.indexes.claim(node.index)
        for network in view.find(Network):
            books.claim_network(network)
        for service in view.find(Service):
            books.ports.claim(service.id, service.endpoint.ports)
            for vip in service.endpoint.virtual_ips:
                books._claim_address(service.id, vip.network_id, vip.addr)
        for task in view.find(Task):
            books.claim_task(task)
        books._resume()
        return books

    def _resume(self) -> None:
        for rotation in (self.vnis, self.indexes, self.ports, self.subnets):
            rotation.resume()
        for addresses in self._networks.values():
            addresses.resume()

    def use_pools(self, cluster: Cluster) -> None:
        """Take subnets from the pools of `cluster`, which was not known before."""
        pool = _pool(cluster)
        pool.adopt(self.subnets)
        self.subnets = pool

    def claim_network(self, network: Network) -> None:
        """Note what a network has already, even if it is not all that it needs."""
        if network.vni:
            self.vnis.claim(network.vni)
        if network.ipam.config:
            self._networks[network.id] = Addresses(network.ipam.config)
            for config in network.ipam.config:
                self.subnets.claim(parse(config.subnet), network.spec.name)

    def claim_task(self, task: Task) -> None:
        if holds_addresses(task):
            for attachment in task.networks_attachments:
                for address in attachment.addresses:
                    self._claim_address(task.id, attachment.network_id, address)

    def _claim_address(self, owner: str, network_id: str, cidr: str) -> None:
        if network_id in self._networks:
            self._networks[network_id].claim(owner, cidr)

    # Networks

    def allocate_network(self, network: Network, near: Collection[Around] = ()) -> Network:
        """`network` with its VNI and subnets. Raises Blocked.

        Subnets out of the pool overlap with nothing that is `near` the nodes, as far as possible
        not even with wide ranges to which they have a route.
        """
        if not network.ipam.config:
            try:
                ipam = self._plan(network, near)
            except BadSubnet as error:
                raise Blocked(SUBNETS, str(error)) from error
            network = replace(network, ipam=ipam)
            self._networks[network.id] = Addresses(ipam.config)
        if not network.vni:
            vni = self.vnis.take()
            if vni is None:
                raise Blocked(SUBNETS, "all VXLAN network identifiers are in use")
            network = replace(network, vni=vni)
        return replace(network, allocation_error="")

    def _plan(self, network: Network, near: Collection[Around]) -> IPAM:
        try:
            return plan_ipam(network, self.subnets, {str(item.range) for item in near})
        except BadSubnet:
            size = self.subnets.size
            hard = [item for item in near if not item.routed or item.range.prefixlen >= size]
            return plan_ipam(network, self.subnets, {str(item.range) for item in hard})

    def release_network(self, network: Network) -> None:
        if network.vni:
            self.vnis.release(network.vni)
        addresses = self._networks.pop(network.id, None)
        if addresses is not None:
            for range in addresses.ranges:
                self.subnets.release(range)

    # Services

    def allocate_endpoint(self, service: Service, view: View) -> Endpoint:
        """What `service` gets: a VIP on each network and its published ports. Raises Blocked.

        What it has and still wants stays the same; `release_leftover` gives back the rest.
        """
        wanted = endpoint_spec(service)
        networks = list(_networks(service, view)) if wanted.mode == "vip" else []
        try:
            ports = self.ports.assign(service.id, wanted.ports, service.endpoint)
        except PortTaken as error:
            owner = view.get(Service, error.owner)
            by = f" by service {owner.spec.name}" if owner is not None else ""
            raise Blocked(PORTS, f"{error}{by}") from error
        vips = tuple(
            VirtualIP(network_id=network.id, addr=self._take(service.id, network))
            for network in networks
        )
        return Endpoint(spec=wanted, ports=ports, virtual_ips=vips)

    def release_leftover(self, service: Service, endpoint: Endpoint) -> Iterator[Hashable]:
        """Free what `service` had and `endpoint` has not; yields the causes that this ends."""
        if self.ports.release(service.id, keep=endpoint.ports):
            yield PORTS
        kept = {vip.network_id for vip in endpoint.virtual_ips}
        for vip in service.endpoint.virtual_ips:
            if vip.network_id not in kept and self._release(service.id, vip.network_id):
                yield ("network", vip.network_id)

    # Tasks

    def attach(self, task: Task, view: View) -> tuple[NetworkAttachment, ...]:
        """The task's addresses on all of its networks, or none at all: then raises Blocked."""
        wishes = list(_wishes(task, view))
        attachments = []
        try:
            for network, wish in wishes:
                address = self._take(task.id, network)
                attachments.append(_attachment(network, wish, address))
        except Blocked:
            for attachment in attachments:
                self._release(task.id, attachment.network_id)
            raise
        return tuple(attachments)

    def release_task(self, task: Task) -> Iterator[Hashable]:
        """Free the addresses of a task that has ended; yields the causes that this ends."""
        for attachment in task.networks_attachments:
            if self._release(task.id, attachment.network_id):
                yield ("network", attachment.network_id)

    def _take(self, owner: str, network: Network) -> str:
        addresses = self._networks[network.id]
        address = addresses.take(owner)
        if address is None:
            name = network.spec.name
            reason = f"no free address in network {name}: {addresses.usage} in use"
            raise Blocked(("network", network.id), reason)
        return address

    def _release(self, owner: str, network_id: str) -> bool:
        addresses = self._networks.get(network_id)
        return addresses is not None and addresses.release(owner)


def _pool(cluster: Cluster | None) -> SubnetPool:
    if cluster is None:
        return SubnetPool((), 24)
    return SubnetPool(cluster.default_addr_pool, cluster.subnet_size, (cluster.node_pool,))


def endpoint_spec(service: Service) -> EndpointSpec:
    """What the service asks for, with the mode spelled out."""
    spec = service.spec.endpoint_spec or EndpointSpec()
    return replace(spec, mode=spec.mode or "vip")


def is_current(service: Service, view: View) -> bool:
    """Whether the service's endpoint is that of its present spec."""
    wanted = endpoint_spec(service)
    if service.endpoint.spec != wanted:
        return False
    have = {vip.network_id for vip in service.endpoint.virtual_ips}
    if wanted.mode != "vip":
        return not have
    try:
        return have == {network.id for network in _networks(service, view)}
    except Blocked:
        return False


def _networks(service: Service, view: View) -> Iterator[Network]:
    wishes = service.spec.task_template.networks or service.spec.networks
    for network, _ in _resolved(wishes, view):
        yield network


def _wishes(task: Task, view: View) -> Iterator[tuple[Network, NetworkAttachmentConfig]]:
    wishes = task.spec.networks
    service = view.get(Service, task.service_id) if task.service_id and not wishes else None
    return _resolved(wishes or (service.spec.networks if service is not None else ()), view)


def _resolved(
    wishes: tuple[NetworkAttachmentConfig, ...], view: View
) -> Iterator[tuple[Network, NetworkAttachmentConfig]]:
    """The networks that are meant, each once. Raises Blocked at one that is not ready."""
    seen = set()
    for wish in wishes:
        network = find_network(wish.target, view)
        if network is None:
            cause = ("network", wish.target)
            raise Blocked(cause, f"network {wish.target} does not exist; create it")
        if not is_allocated(network):
            problem = network.allocation_error or "it has no addresses yet"
            reason = f"network {network.spec.name} is not ready: {problem}"
            raise Blocked(("network", network.id), reason)
        if network.id not in seen:
            seen.add(network.id)
            yield network, wish


def find_network(target: str, view: View) -> Network | None:
    """The network of that id or name."""
    found = view.get(Network, target)
    return found or next(iter(view.find(Network, name=target)), None)


def _attachment(network: Network, wish: NetworkAttachmentConfig, address: str) -> NetworkAttachment:
    return NetworkAttachment(
        network_id=network.id,
        network_name=network.spec.name,
        addresses=(address,),
        mac=mac(address),
        aliases=wish.aliases,
    )
