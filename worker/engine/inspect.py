"""Containers as Docker's API shows them. Pure but for the folder's name."""

import datetime as dt
from pathlib import Path
from typing import Any

from common.model.base import to_builtins
from worker.engine.container import Container, MountPoint, Probe
from worker.engine.disk import CONFIG
from worker.network.model import Interface
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
    networks: dict[str, Any] = {}
    if sandbox is not None:
        aliases = {a.network_name: a.aliases for a in record.attachments}
        for interface in sandbox.interfaces:
            names = list(aliases.get(interface.network_name, ()))
            networks[interface.network_name] = endpoint(interface, names)
    elif record.network_mode == "private":
        names_ = [a.network_name for a in record.attachments] or ["bridge"]
        networks = {name: endpoint(Interface(name="", network_id="", network_name=name, address=""))
                    for name in names_}  # fmt: skip
    if record.network_mode in ("host", "none"):
        networks.setdefault(
            record.network_mode,
            endpoint(Interface(name="", network_id="", network_name="", address="")),
        )
    first = next((n for name, n in networks.items() if name == "bridge"), None) or {}
    return {
        "SandboxID": sandbox.id if sandbox is not None else "",
        "SandboxKey": sandbox.netns if sandbox is not None else "",
        "Ports": ports(container),
        "Networks": networks,
        "IPAddress": first.get("IPAddress", ""),
        "IPPrefixLen": first.get("IPPrefixLen", 0),
        "Gateway": first.get("Gateway", ""),
        "MacAddress": first.get("MacAddress", ""),
    }


def endpoint(interface: Interface, aliases: list[str] | None = None) -> dict[str, Any]:
    address, _, prefix = interface.address.partition("/")
    return {
        "IPAMConfig": None,
        "Links": None,
        "Aliases": aliases or None,
        "MacAddress": interface.mac,
        "DriverOpts": None,
        "NetworkID": interface.network_id,
        "EndpointID": "",
        "Gateway": interface.gateway,
        "IPAddress": address,
        "IPPrefixLen": int(prefix or 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }


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
