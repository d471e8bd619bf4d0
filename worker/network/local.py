"""The networks of this node as the API shows them: bridge, host, none, and those of users."""

import datetime as dt
import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Any

from common.errors import NotFound
from worker.network.ipam import gateway
from worker.network.local_spec import LocalNetwork
from worker.network.sandbox import SandboxRecord

BRIDGE, HOST, NONE = "bridge", "host", "none"
NAMES = (BRIDGE, HOST, NONE)
ID_LENGTH = 64  # of networks of a node; the cluster's have shorter ids


def network_id(owner: str, name: str) -> str:
    """Of a local network: the same after every restart, another on every machine."""
    return hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()


def endpoint_id(container_id: str, network: str) -> str:
    return hashlib.sha256(f"{container_id}\0{network}\0endpoint".encode()).hexdigest()


def predefined(
    owner: str, name: str, created: dt.datetime, subnet: IPv4Network, link: str
) -> dict[str, Any]:
    """Docker's JSON of bridge, host or none, but for `Containers`."""
    config: list[dict[str, Any]] = []
    options: dict[str, str] = {}
    if name == BRIDGE:
        config = [{"Subnet": str(subnet), "Gateway": str(gateway(subnet))}]
        options = {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.name": link,
        }
    return _shown(
        network_id(owner, name), name, "null" if name == NONE else name, created, config, options
    )


def describe(network: LocalNetwork) -> dict[str, Any]:
    """Docker's JSON of a network that a user made, but for `Containers`."""
    subnet = network.subnet
    config: dict[str, Any] = {"Subnet": subnet.subnet, "Gateway": subnet.gateway}
    if subnet.ip_range:
        config["IPRange"] = subnet.ip_range
    if subnet.aux:
        config["AuxiliaryAddresses"] = subnet.aux
    return _shown(
        network.id, network.name, network.driver, network.created, [config], network.options
    ) | {
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Labels": network.labels,
    }


def _shown(
    id: str,
    name: str,
    driver: str,
    created: dt.datetime,
    config: list[dict[str, Any]],
    options: dict[str, str],
) -> dict[str, Any]:
    return {
        "Name": name,
        "Id": id,
        "Created": created.isoformat().replace("+00:00", "Z"),
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": config},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": options,
        "Labels": {},
    }


def containers(id: str, records: Iterable[SandboxRecord]) -> dict[str, Any]:
    """The `Containers` of network `id`: who has an interface on it."""
    return {
        record.spec.id: {
            "Name": record.spec.name or record.spec.hostname,
            "EndpointID": endpoint_id(record.spec.id, id),
            "MacAddress": interface.mac,
            "IPv4Address": interface.address,
            "IPv6Address": "",
        }
        for record in records
        for interface in record.sandbox.interfaces
        if interface.network_id == id
    }


def find(rows: Iterable[dict[str, Any]], ref: str) -> dict[str, Any]:
    """The row whose id or name is `ref`, or whose id alone begins with it. Raises NotFound."""
    found = [row for row in rows if ref in (row["Id"], row["Name"])]
    found = found or [row for row in rows if ref and row["Id"].startswith(ref)]
    if len(found) != 1:
        raise NotFound(f"network {ref} not found")
    return found[0]
