"""What may be asked of the cluster's networks: overlays."""

import ipaddress
from collections.abc import Sequence

from msgspec.structs import replace

from common.errors import Conflict, Forbidden, Invalid, NotFound, NotImplementedHere
from common.ids import Ids
from common.model.cluster import Cluster
from common.model.network import IPAM, Network, NetworkSpec
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.allocator import ipam
from manager.allocator.surroundings import around
from manager.api import validate
from manager.api.filters import Filters, Test, boolean, has_label, one_of, select
from manager.api.services import PREDEFINED, find_network
from manager.store.store import Store, Tx, View


class Networks:
    """Validated operations on networks. Networks that are being removed are not there."""

    def __init__(self, store: Store, ids: Ids) -> None:
        self._store = store
        self._ids = ids

    def list(self, filters: Filters) -> Sequence[Network]:
        """The networks that pass. Raises Invalid for an unknown filter or value."""
        view = self._store.view()
        tests = _TESTS | {"dangling": lambda net, value: _is_dangling(view, net, value)}
        return select(_live(view), filters, tests)

    def get(self, ref: str) -> Network:
        """Raises NotFound, Invalid (ambiguous)."""
        return find_network(self._store.view(), ref)

    async def create(self, spec: NetworkSpec) -> Network:
        """Raises Invalid, NotImplementedHere, Conflict (name taken, subnet overlaps)."""
        _check(spec)
        subnets = _subnets(spec.ipam or IPAM())
        id = self._ids.new()
        stored = replace(spec, driver="overlay", scope="swarm", check_duplicate=False)

        def write(tx: Tx) -> None:
            _check_overlap(tx, subnets)
            tx.put(Network(id=id, spec=stored))

        await self._store.update(write)
        network = self._store.view().get(Network, id)
        if network is None:  # removed again in the same moment
            raise NotFound(f"network {id} not found")
        return network

    async def remove(self, ref: str) -> None:
        """Gone at once for its users; its addresses are free when its last task has stopped.

        Raises NotFound, Forbidden (predefined), Conflict naming who uses it (behaviour 141).
        """

        def write(tx: Tx) -> None:
            if ref in PREDEFINED:
                raise Forbidden(f"{ref} is a pre-defined network and cannot be removed")
            network = find_network(tx, ref)
            _check_unused(tx, network)
            tx.put(replace(network, pending_delete=True))

        await self._store.update(write)


def _live(view: View) -> Sequence[Network]:
    return [network for network in view.find(Network) if not network.pending_delete]


def _check(spec: NetworkSpec) -> None:
    validate.name("network", spec.name)
    if spec.name in (*PREDEFINED, "ingress"):
        raise Forbidden(f"network name {spec.name} is reserved; choose another")
    if spec.driver not in ("", "overlay"):
        raise NotImplementedHere(
            f"network driver {spec.driver!r} cannot span machines here; use overlay"
        )
    if spec.scope not in ("", "swarm"):
        raise Invalid(f"network scope {spec.scope!r} is not valid for an overlay; use swarm")
    refused = {
        "ingress": (spec.ingress, "published ports need no network of their own"),
        "config-only": (spec.config_only, "give the options to the network itself"),
        "config-from": (bool((spec.config_from or {}).get("Network")), "give the options here"),
        "IPv6": (bool(spec.enable_ipv6), "leave out --ipv6"),
        "no IPv4": (spec.enable_ipv4 is False, "leave out --ipv4=false"),
    }
    for what, (asked, remedy) in refused.items():
        if asked:
            raise NotImplementedHere(f"{what} networks are not supported; {remedy}")
    if spec.options:
        option = sorted(spec.options)[0]
        raise NotImplementedHere(f"network option {option!r} is not supported; leave it out")
    plan = spec.ipam or IPAM()
    if plan.driver not in ("", "default") or plan.options:
        raise NotImplementedHere("only the default IPAM driver without options is supported")


def _subnets(plan: IPAM) -> list[ipaddress.IPv4Network]:
    """The subnets asked for, checked for themselves."""
    subnets: list[ipaddress.IPv4Network] = []
    for config in plan.config:
        if config.aux_address:
            raise NotImplementedHere("auxiliary addresses of a network are not supported")
        if not config.subnet:
            if config.gateway or config.ip_range:
                raise Invalid("a gateway or IP range needs a subnet; add --subnet")
            continue
        try:
            subnet = ipam.parse(config.subnet)
        except ipam.BadSubnet as error:
            raise Invalid(str(error)) from error
        _check_inside("gateway", config.gateway, subnet)
        _check_inside("IP range", config.ip_range, subnet)
        for other in subnets:
            if subnet.overlaps(other):
                raise Invalid(f"subnet {subnet} overlaps with {other} of the same network")
        subnets.append(subnet)
    return subnets


def _check_inside(what: str, text: str, subnet: ipaddress.IPv4Network) -> None:
    if not text:
        return
    try:
        part = ipaddress.IPv4Network(text, strict=False)
    except ValueError as error:
        raise Invalid(f"{what} {text!r} is not valid: {error}") from error
    if not part.subnet_of(subnet):
        raise Invalid(f"{what} {text} is not in subnet {subnet}")


def _check_overlap(view: View, subnets: Sequence[ipaddress.IPv4Network]) -> None:
    taken = [(cluster.node_pool, "the nodes' own addresses") for cluster in view.find(Cluster)]
    for network in view.find(Network):
        asked = network.spec.ipam.config if network.spec.ipam is not None else ()
        ranges = {config.subnet for config in (*network.ipam.config, *asked) if config.subnet}
        taken += [(range, f"network {network.spec.name}") for range in sorted(ranges)]
    for subnet in subnets:
        for range, owner in taken:
            if subnet.overlaps(ipaddress.IPv4Network(range, strict=False)):
                raise Conflict(
                    f"subnet {subnet} overlaps with {range} of {owner}; choose another --subnet"
                )
    for item in around(view) if subnets else ():
        for subnet in filter(item.collides, subnets):
            raise Conflict(f"subnet {subnet} overlaps with {item}; choose another --subnet")


def _check_unused(view: View, network: Network) -> None:
    for service in view.find(Service, network=network.id):
        if not service.pending_delete:
            raise Conflict(
                f"network {network.spec.name} is in use by service {service.spec.name}; "
                "remove the service first"
            )
    for task in view.find(Task, network_id=network.id):
        if task.desired_state <= TaskState.COMPLETE and task.status.state <= TaskState.RUNNING:
            service_left = view.get(Service, task.service_id)
            if service_left is None or not service_left.pending_delete:
                raise Conflict(
                    f"network {network.spec.name} is in use by task {task.name}; "
                    "try again when it has stopped"
                )


def _is_dangling(view: View, network: Network, value: str) -> bool:
    used = bool(view.find(Service, network=network.id) or view.find(Task, network_id=network.id))
    return boolean("dangling", value) is not used


def _is_custom(network: Network, value: str) -> bool:
    return one_of("type", value, ("custom", "builtin")) == "custom"


_TESTS: dict[str, Test[Network]] = {
    "id": lambda network, value: network.id.startswith(value),
    "name": lambda network, value: value in network.spec.name,
    "driver": lambda network, value: network.spec.driver == value,
    "scope": lambda network, value: one_of("scope", value, ("swarm", "global", "local")) == "swarm",
    "label": lambda network, value: has_label(network.spec.labels, value),
    "type": _is_custom,
}
