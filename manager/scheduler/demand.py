"""What a task takes of a node, as far as placing counts it: reservations and host-mode ports."""

from collections.abc import Iterable, Mapping

import msgspec

from common.model.task import PortConfig, Resources, Task

HostPort = tuple[str, int]  # protocol, published port


class Amount(msgspec.Struct, frozen=True, gc=False):
    """Billionths of a CPU, bytes, and how many of each generic resource."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: Mapping[str, int] = {}


class Demand(msgspec.Struct, frozen=True, gc=False):
    """One task's share of its node's books."""

    service_id: str
    amount: Amount
    ports: tuple[HostPort, ...]


def amount(resources: Resources | None) -> Amount:
    if resources is None:
        return _NOTHING
    generic = _generic(resources.generic_resources)
    if not (resources.nano_cpus or resources.memory_bytes or generic):
        return _NOTHING
    return Amount(resources.nano_cpus, resources.memory_bytes, generic)


def demand(task: Task) -> Demand:
    wanted = task.spec.resources
    ports = tuple(_host_ports(task.ports)) if task.ports else ()
    return Demand(task.service_id, amount(wanted.reservations if wanted else None), ports)


def _host_ports(ports: Iterable[PortConfig]) -> Iterable[HostPort]:
    for port in ports:
        if port.publish_mode == "host" and port.published_port:
            yield port.protocol, port.published_port


def _generic(resources: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """How many of each kind. A named resource (one GPU) counts as one of its kind."""
    counts: dict[str, int] = {}
    for resource in resources:
        for form, spec in resource.items():
            if not isinstance(spec, Mapping):
                continue
            kind, value = str(spec.get("Kind", "")), spec.get("Value", 0)
            number = value if form == "DiscreteResourceSpec" and isinstance(value, int) else 1
            counts[kind] = counts.get(kind, 0) + number
    return counts


_NOTHING = Amount()
