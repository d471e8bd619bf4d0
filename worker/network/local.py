"""The networks every node has of itself, as the API shows them: bridge, host, none."""

import datetime as dt
import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Any

from common.errors import NotFound
from worker.network.ipam import gateway
from worker.network.sandbox import SandboxRecord

BRIDGE, HOST, NONE = "bridge", "host", "none"
NAMES = (BRIDGE, HOST, NONE)


def network_id(owner: str, name: str) -> str:
    """Of a local network: the same after every restart, another on every machine."""
    return hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()


def describe(
    owner: str,
    name: str,
    created: dt.datetime,
    subnet: IPv4Network,
    link: str,
    records: Iterable[SandboxRecord] = (),
) -> dict[str, Any]:
    """Docker's JSON of one of them."""
    config: list[dict[str, str]] = []
    options: dict[str, str] = {}
    if name == BRIDGE:
        config = [{"Subnet": str(subnet), "Gateway": str(gateway(subnet))}]
        options = {
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.name": link,
        }
    return {
        "Name": name,
        "Id": network_id(owner, name),
        "Created": created.isoformat().replace("+00:00", "Z"),
        "Scope": "local",
        "Driver": "null" if name == NONE else name,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": config},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            record.spec.id: {
                "Name": record.spec.hostname,
                "EndpointID": network_id(record.spec.id, name),
                "MacAddress": interface.mac,
                "IPv4Address": interface.address,
                "IPv6Address": "",
            }
            for record in records
            for interface in record.sandbox.interfaces
            if interface.network_name == name
        },
        "Options": options,
        "Labels": {},
    }


def resolve(owner: str, ref: str) -> str:
    """The name behind a name, an id, or the beginning of an id. Raises NotFound."""
    for name in NAMES:
        if ref == name:
            return name
    found = [name for name in NAMES if ref and network_id(owner, name).startswith(ref)]
    if len(found) != 1:
        raise NotFound(f"network {ref} not found")
    return found[0]
