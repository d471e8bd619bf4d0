"""Containers as Docker's API shows them. Pure but for the folder's name."""

import datetime as dt
from pathlib import Path
from typing import Any

from common.model.base import to_builtins
from worker.engine.container import Container, MountPoint, Probe
from worker.engine.disk import CONFIG
from worker.network.local import ID_LENGTH, endpoint_id
from worker.network.local_networks import dns_names
from worker.network.model import Attachment, Interface
from worker.runtime import logfile

_DRIVER = "overlay2"


def inspect(container: Container, folder: Path) -> dict[str, Any]:
    """GET /containers/{id}/json."""
    record = container.record
    return {
        "Id": record.id,
        "Created": time(record.created_at),
        "Path": record.path,
        "Args": list(record.args),
        "State": state(container),
        "Image": record.image_id,
        "ResolvConfPath": str(folder / "resolv.conf"),
        "HostnamePath": str(folder / "hostname"),
        "HostsPath": str(folder / "hosts"),
        "LogPath": str(folder / logfile.NAME),
        "Name": f"/{record.name}",
        "RestartCount": container.current.restart_count,
        "Driver": _DRIVER,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(container.exec_ids) or None,
        "HostConfig": to_builtins(record.host_config),
        "GraphDriver": {
            "Name": _DRIVER,
            "Data": {"UpperDir": str(folder / "upper"), "WorkDir": str(folder / "work")},
        },
        "Mounts": [mount(point) for point in record.mounts if point.type != "tmpfs"],
        "Config": {**to_builtins(record.config), "Image": record.config.image},
        "NetworkSettings": network_settings(container),
        "ConfigPath": str(folder / CONFIG),
    }


def state(container: Container) -> dict[str, Any]:
    """The `State` member."""
    current = container.current
    shown: dict[str, Any] = {
        "Status": current.status,
        "Running": current.status in ("running", "paused", "restarting"),
        "Paused": current.status == "paused",
        "Restarting": current.status == "restarting",
        "OOMKilled": current.oom_killed,
        "Dead": current.status == "dead",
        "Pid": current.pid,
        "ExitCode": current.exit_code,
        "Error": current.error,
        "StartedAt": time(current.started_at),
        "FinishedAt": time(current.finished_at),
    }
    if container.health:
        shown["Health"] = {
            "Status": container.health,
            "FailingStreak": container.failing_streak,
            "Log": [probe(entry) for entry in container.probes],
        }
    return shown


def probe(entry: Probe) -> dict[str, Any]:
    return {
        "Start": time(entry.start),
        "End": time(entry.end),
        "ExitCode": entry.exit_code,
        "Output": entry.output,
    }


def mount(point: MountPoint) -> dict[str, Any]:
    """One of `Mounts`."""
    shown: dict[str, Any] = {
        "Type": point.type,
        "Source": point.source,
        "Destination": point.destination,
        "Mode": point.mode,
        "RW": not point.read_only,
        "Propagation": point.propagation or ("rprivate" if point.type == "bind" else ""),
    }
    if point.type == "volume":
        shown |= {"Name": point.name, "Driver": "local"}
    return shown


def network_settings(container: Container) -> dict[str, Any]:
    """What the sandbox has; without one the networks are named with empty addresses."""
    sandbox, record = container.sandbox, container.record
    items = {item.network_id: item for item in record.attachments}
    networks: dict[str, Any] = {}
    if sandbox is not None:
        for interface in sandbox.interfaces:
            item = items.get(interface.network_id)
            networks[interface.network_name] = endpoint(container, interface, item)
    elif record.network_mode == "private":
        for item in record.attachments:
            empty = _unconnected(item.network_name, item.network_id)
            networks[item.network_name] = endpoint(container, empty, item)
        if not record.attachments and not record.detached:
            networks["bridge"] = endpoint(container, _unconnected("bridge"))
    if record.network_mode in ("host", "none"):
        networks.setdefault(record.network_mode, endpoint(container, _unconnected("")))
    first = next((n for name, n in networks.items() if name == "bridge"), None) or {}
    return {
        "Bridge": "",
        "SandboxID": sandbox.id if sandbox is not None else "",
        "SandboxKey": sandbox.netns if sandbox is not None else "",
        "Ports": ports(container),
        "Networks": networks,
        "EndpointID": first.get("EndpointID", ""),
        "IPAddress": first.get("IPAddress", ""),
        "IPPrefixLen": first.get("IPPrefixLen", 0),
        "Gateway": first.get("Gateway", ""),
        "MacAddress": first.get("MacAddress", ""),
    }


def _unconnected(name: str, id: str = "") -> Interface:
    return Interface(name="", network_id=id, network_name=name, address="")


def endpoint(
    container: Container, interface: Interface, item: Attachment | None = None
) -> dict[str, Any]:
    """One of `Networks`; `item` is what was asked for."""
    address, _, prefix = interface.address.partition("/")
    record = container.record
    own = len(interface.network_id) == ID_LENGTH  # a network of this node
    named = item is not None and own and interface.network_name != "bridge"
    aliases = item.aliases if item is not None else ()
    fixed = {"IPv4Address": item.address} if named and item is not None and item.address else None
    connected = bool(address)
    return {
        "IPAMConfig": fixed,
        "Links": [_link(text) for text in item.links] if item is not None and item.links else None,
        "Aliases": list(aliases) or None,
        "MacAddress": interface.mac,
        "DriverOpts": (item.options or None) if item is not None else None,
        "GwPriority": item.priority if item is not None else 0,
        "NetworkID": interface.network_id,
        "EndpointID": endpoint_id(record.id, interface.network_id) if connected else "",
        "Gateway": interface.gateway,
        "IPAddress": address,
        "IPPrefixLen": int(prefix or 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": list(dns_names(record.name, aliases, record.id, record.config.hostname))
        if named
        else None,
    }


def _link(text: str) -> str:
    """With a short id: that of its container need not be there any more."""
    container_id, _, alias = text.partition(":")
    return f"{container_id[:12]}:{alias}"


def ports(container: Container) -> dict[str, list[dict[str, str]] | None]:
    """Every exposed port, and where the published ones lead from."""
    shown: dict[str, list[dict[str, str]] | None] = {}
    for name in container.config.exposed_ports or {}:
        shown[name if "/" in name else f"{name}/tcp"] = None
    for port in container.sandbox.host_ports if container.sandbox is not None else ():
        key = f"{port.target}/{port.protocol}"
        binding = {"HostIp": port.host_ip or "0.0.0.0", "HostPort": str(port.published)}
        shown[key] = [*(shown.get(key) or []), binding]
    return shown


def summary(container: Container, now: dt.datetime) -> dict[str, Any]:
    """A row of GET /containers/json."""
    record, settings = container.record, network_settings(container)
    row: dict[str, Any] = {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": record.config.image,
        "ImageID": record.image_id,
        "Command": " ".join((record.path, *record.args)),
        "Created": int(record.created_at.timestamp()),
        "Ports": _port_rows(container),
        "Labels": dict(record.config.labels or {}),
        "State": container.state,
        "Status": status_text(container, now),
        "HostConfig": {"NetworkMode": record.host_config.network_mode},
        "NetworkSettings": {"Networks": settings["Networks"]},
        "Mounts": [mount(point) for point in record.mounts if point.type != "tmpfs"],
    }
    if container.health:
        row["Health"] = container.health
    return row


def _port_rows(container: Container) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for key, bindings in ports(container).items():
        private, _, kind = key.partition("/")
        base = {"PrivatePort": int(private.split("-")[0]), "Type": kind}
        if not bindings:
            rows.append(base)
        rows += [
            {"IP": binding["HostIp"], **base, "PublicPort": int(binding["HostPort"])}
            for binding in bindings or ()
        ]
    return rows


def status_text(container: Container, now: dt.datetime) -> str:
    """`Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`."""
    current = container.current
    if current.status in ("running", "paused"):
        text = f"Up {duration(now - current.started_at)}"
        if current.status == "paused":
            return f"{text} (Paused)"
        if container.health == "starting":
            return f"{text} (health: starting)"
        return f"{text} ({container.health})" if container.health else text
    if current.status == "restarting":
        ago = duration(now - current.finished_at)
        return f"Restarting ({current.exit_code}) {ago} ago"
    if current.status == "exited":
        return f"Exited ({current.exit_code}) {duration(now - current.finished_at)} ago"
    return {"removing": "Removal In Progress"}.get(current.status, current.status.capitalize())


def duration(span: dt.timedelta) -> str:
    """As Docker words it."""
    seconds = int(span.total_seconds())
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    minutes = seconds // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = (seconds + 1800) // 3600
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    return f"{days // 30} months" if days < 730 else f"{days // 365} years"


def time(moment: dt.datetime) -> str:
    """RFC 3339, as Go writes it."""
    if moment.year == 1:
        return "0001-01-01T00:00:00Z"
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
