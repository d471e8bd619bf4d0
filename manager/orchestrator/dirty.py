"""Whether a task still is what its service asks for.

Swarm's rule, but for published ports: those in the routing mesh are tables of the network, so
only a change of host-mode ports needs other containers.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from common.model.node import Node
from common.model.service import Service
from common.model.task import PortConfig, Task, TaskSpec
from manager import constraint
from manager.api import defaults


def is_dirty(service: Service, task: Task, node: Node | None) -> bool:
    """Whether `task`, on `node`, has to be replaced for `service` to be up to date.

    A change of placement alone leaves a task whose node still fits (behaviour 79).
    """
    if task.leaving:
        return True
    if task.spec_version is not None and task.spec_version == service.spec_version:
        return False
    if _ports(task.ports) != _ports(defaults.host_ports(service.spec)):
        return True
    wanted = service.spec.task_template
    actual = _comparable(task.spec, wanted)
    if actual == wanted:
        return False
    if replace(actual, placement=wanted.placement) != wanted:
        return True
    return node is None or not constraint.fits(constraints(wanted), node)


def constraints(spec: TaskSpec) -> tuple[str, ...]:
    """The placement constraints of `spec`."""
    return spec.placement.constraints if spec.placement is not None else ()


def _comparable(spec: TaskSpec, wanted: TaskSpec) -> TaskSpec:
    """`spec` without the cluster's default log driver, which a task keeps when it changes."""
    return spec if wanted.log_driver is not None else replace(spec, log_driver=None)


def _ports(ports: Sequence[PortConfig]) -> set[PortConfig]:
    return {port for port in ports if port.publish_mode == "host"}
