"""Which nodes a task can go to at all, and how to say why not.

A filter is made for a task and says of each node whether it passes. `refusals` counts, for every
node, the first filter that refuses it, so that the numbers add up to the number of nodes.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from common.errors import Invalid
from common.model.node import Node
from common.model.task import Platform, Task
from manager import constraint
from manager.scheduler.demand import Demand
from manager.scheduler.nodeset import NodeInfo, is_ready

Check = Callable[[NodeInfo, Node], bool]


class Filter(msgspec.Struct, frozen=True):
    """`text` has one {} for "1 node" or "3 nodes"."""

    check: Check
    text: str


def filters(task: Task, need: Demand) -> list[Filter]:
    """The filters that matter for `task`, in the order in which they are asked."""
    made = (
        Filter(lambda info, node: is_ready(node), "{} not available for new tasks"),
        _resources(need),
        _plugins(task),
        _constraints(task),
        _platforms(task),
        _host_ports(need),
        _max_replicas(task),
    )
    return [each for each in made if each is not None]


def passes(filters: Sequence[Filter], info: NodeInfo) -> bool:
    """Whether all of `filters` let the task onto the node."""
    node = info.node
    if node is None:
        return False
    for each in filters:  # noqa: SIM110 - a generator costs more than the checks
        if not each.check(info, node):
            return False
    return True


def explain(filters: Sequence[Filter], infos: Iterable[NodeInfo]) -> str:
    """Why no node was suitable, the most frequent reason first."""
    counts = [0] * len(filters)
    for info in infos:
        node = info.node
        if node is None:
            continue
        for place, each in enumerate(filters):
            if not each.check(info, node):
                counts[place] += 1
                break
    order = sorted(range(len(filters)), key=lambda place: -counts[place])
    reasons = [
        filters[place].text.format(_nodes(counts[place])) for place in order if counts[place]
    ]
    return f"no suitable node ({'; '.join(reasons)})" if reasons else "no suitable node"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _resources(need: Demand) -> Filter | None:
    wanted = need.amount
    if not (wanted.nano_cpus or wanted.memory_bytes or wanted.generic):
        return None
    return Filter(lambda info, node: info.has_room(wanted), "insufficient resources on {}")


def _constraints(task: Task) -> Filter | None:
    placement = task.spec.placement
    if placement is None or not placement.constraints:
        return None
    text = "scheduling constraints not satisfied on {}"
    try:
        parsed = constraint.parse_all(placement.constraints)
    except Invalid:
        return Filter(lambda info, node: False, text)  # a malformed one matches nothing
    return Filter(lambda info, node: constraint.matches(parsed, node), text)


def _max_replicas(task: Task) -> Filter | None:
    most = task.spec.placement.max_replicas if task.spec.placement is not None else 0
    if most <= 0:
        return None
    service_id = task.service_id
    return Filter(
        lambda info, node: info.active_of.get(service_id, 0) < most,
        "max replicas per node limit exceeded on {}",
    )


def _host_ports(need: Demand) -> Filter | None:
    ports = need.ports
    if not ports:
        return None
    return Filter(
        lambda info, node: not any(port in info.ports for port in ports),
        "host-mode port already in use on {}",
    )


_ALIASES = {"x86_64": "amd64", "aarch64": "arm64"}


def _platforms(task: Task) -> Filter | None:
    placement = task.spec.placement
    if placement is None or not placement.platforms:
        return None
    wanted = [_normal(platform) for platform in placement.platforms]

    def check(info: NodeInfo, node: Node) -> bool:
        os, arch = _normal(node.description.platform)
        if not os and not arch:
            return False  # the node has not said what it is
        return any(want_os in ("", os) and want_arch in ("", arch) for want_os, want_arch in wanted)

    return Filter(check, "unsupported platform on {}")


def _normal(platform: Platform) -> tuple[str, str]:
    arch = platform.architecture.lower()
    return platform.os.lower(), _ALIASES.get(arch, arch)


_BUILT_IN_VOLUMES = ("", "local")
_BUILT_IN_LOGS = ("", "none")


def _plugins(task: Task) -> Filter | None:
    volumes = _volume_drivers(task)
    log = task.spec.log_driver.name if task.spec.log_driver is not None else ""
    if not volumes and log in _BUILT_IN_LOGS:
        return None

    def check(info: NodeInfo, node: Node) -> bool:
        plugins: dict[str, set[str]] = {}
        for plugin in node.description.engine.plugins:
            plugins.setdefault(plugin.type.lower(), set()).add(_untagged(plugin.name))
        logs = plugins.get("log", set())
        # A node that reports no log plugins at all just does not report them.
        return volumes <= plugins.get("volume", set()) and (
            log in _BUILT_IN_LOGS or not logs or _untagged(log) in logs
        )

    return Filter(check, "missing plugin on {}")


def _volume_drivers(task: Task) -> set[str]:
    """The volume plugins that the mounts need. Bind mounts and tmpfs need none."""
    mounts = task.spec.container_spec.mounts if task.spec.container_spec is not None else ()
    configs = [
        mount.volume_options.driver_config
        for mount in mounts
        if mount.type == "volume" and mount.volume_options is not None
    ]
    return {
        _untagged(config.name)
        for config in configs
        if config is not None and config.name not in _BUILT_IN_VOLUMES
    }


def _untagged(name: str) -> str:
    return name.removesuffix(":latest")
