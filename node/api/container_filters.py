"""Docker's filters of the container list."""

import re
from collections.abc import Callable

from common.errors import Invalid, NotFound
from node.api.body import Filters
from node.api.daemon import Daemon
from node.api.networks import has_label
from worker.engine import inspect as views
from worker.engine.container import Container

_STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
_HEALTH = ("starting", "healthy", "unhealthy", "none")
_PORTS = re.compile(r"^(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?$")


def selected(daemon: Daemon, containers: list[Container], wanted: Filters) -> list[Container]:
    """Those that pass: of one filter's values any, but of labels all. Raises Invalid, NotFound."""
    checks = _checks(daemon)
    if unknown := set(wanted) - set(checks) - {"before", "since"}:
        raise Invalid(f"invalid filter {sorted(unknown)[0]!r}")
    _check_values(wanted)
    found = containers
    for name, values in wanted.items():
        if name in ("before", "since"):
            found = _around(daemon, found, name, values)
        elif values:
            every = all if name == "label" else any
            found = [c for c in found if every(checks[name](c, value) for value in values)]
    return found


def _check_values(wanted: Filters) -> None:
    for name, allowed in (("status", _STATES), ("health", _HEALTH)):
        for value in wanted.get(name, ()):
            if value not in allowed:
                raise Invalid(f"invalid filter '{name}={value}': use one of {', '.join(allowed)}")
    for value in wanted.get("exited", ()):
        if not re.fullmatch(r"-?\d+", value):
            raise Invalid(f"invalid filter 'exited={value}': must be a number")
    for name in ("publish", "expose"):
        for value in wanted.get(name, ()):
            if not _PORTS.match(value):
                raise Invalid(f"invalid filter '{name}={value}': write PORT[-PORT][/PROTOCOL]")


def _checks(daemon: Daemon) -> dict[str, Callable[[Container, str], bool]]:
    return {
        "id": lambda c, value: c.id.startswith(value),
        "name": lambda c, value: _named(c.name, value),
        "status": lambda c, value: c.state == value,
        "exited": lambda c, value: _exited(c) and c.exit_code == int(value),
        "label": lambda c, value: has_label(c.config.labels or {}, value),
        "ancestor": lambda c, value: _descends(daemon, c, value),
        "network": _in_network,
        "volume": _has_volume,
        "publish": lambda c, value: _has_port(c, value, published=True),
        "expose": lambda c, value: _has_port(c, value, published=False),
        "health": lambda c, value: (c.health or "none") == value,
        "is-task": lambda c, value: (
            (value in ("1", "true")) == ("com.docker.swarm.task.id" in (c.config.labels or {}))
        ),
    }


def _exited(container: Container) -> bool:
    return not container.live and container.started_at.year > 1


def _named(name: str, pattern: str) -> bool:
    """Docker's names begin with a slash, and its pattern is a regular expression."""
    try:
        found = re.compile(pattern)
    except re.error:
        return pattern in name
    return bool(found.search(name) or found.search(f"/{name}"))


def _descends(daemon: Daemon, container: Container, ref: str) -> bool:
    """Whether its image is `ref` or has been made of it."""
    if container.config.image in (ref, f"{ref}:latest"):
        return True
    try:
        above, own = daemon.images.get(ref), daemon.images.get(container.image_id)
    except (NotFound, Invalid):
        return False
    return own.layers[: len(above.layers)] == above.layers and bool(above.layers)


def _in_network(container: Container, ref: str) -> bool:
    networks = views.network_settings(container)["Networks"]
    return ref in networks or any(ref == one["NetworkID"] for one in networks.values())


def _has_volume(container: Container, value: str) -> bool:
    return any(
        value in (point.name, point.source, point.destination)
        for point in container.record.mounts
        if point.type != "tmpfs"
    )


def _has_port(container: Container, text: str, published: bool) -> bool:
    match = _PORTS.match(text)
    assert match is not None, "checked before"
    wanted = range(int(match[1]), int(match[2] or match[1]) + 1)
    for key, bindings in views.ports(container).items():
        inner, _, protocol = key.partition("/")
        numbers = [int(b["HostPort"]) for b in bindings or ()] if published else [int(inner)]
        if protocol == (match[3] or "tcp") and any(number in wanted for number in numbers):
            return True
    return False


def _around(
    daemon: Daemon, containers: list[Container], name: str, values: list[str]
) -> list[Container]:
    for ref in values:
        limit = daemon.engine.find(ref).record.created_at
        if name == "before":
            containers = [c for c in containers if c.record.created_at < limit]
        else:
            containers = [c for c in containers if c.record.created_at > limit]
    return containers
