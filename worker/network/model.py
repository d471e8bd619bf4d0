"""What the engine and the agent ask of the network part, and what they get. Plain data."""

import msgspec

ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"  # an option: NAME=VALUE,… with IFNAME


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One interface a sandbox is to have.

    For overlays the manager gave `address` (CIDR) and `mac`; for networks of the node both are
    chosen here, unless the user asked for one (an address without prefix). `aliases` are extra
    names on that network; `links` ("CONTAINER_ID:ALIAS") names that this sandbox alone knows.
    The network of the highest `priority` gives the default route.
    """

    network_id: str
    network_name: str
    address: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    priority: int = 0
    options: dict[str, str] = {}


class HostPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port of the node that leads into one sandbox only (`mode=host`, `run -p`)."""

    protocol: str  # tcp, udp
    published: int  # 0: choose one
    target: int
    host_ip: str = ""  # "" all addresses of the node


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace to make for one container.

    `mode`: "private" (own namespace and `attachments`; a leg on the node's bridge too, if there are
    none or if they are overlays, unless `internal_only`), "none" (loopback only), "host" (the
    machine's). `name` is the container's, by which others find it on networks of this node.
    """

    id: str  # container id
    mode: str = "private"
    attachments: tuple[Attachment, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    internal_only: bool = False
    hostname: str = ""
    name: str = ""
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    sysctls: dict[str, str] = {}


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface a sandbox has got."""

    name: str  # inside: eth0, eth1 …
    network_id: str
    network_name: str
    address: str  # CIDR
    gateway: str = ""
    mac: str = ""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that is ready for its container's processes."""

    id: str
    netns: str  # a path that setns can open; "" for mode host
    interfaces: tuple[Interface, ...] = ()
    attachments: tuple[Attachment, ...] = ()  # what it was connected for
    node_address: str = ""  # address on the node's bridge, without prefix length
    host_ports: tuple[HostPort, ...] = ()  # with the chosen numbers
    resolv_conf: str = ""  # text for /etc/resolv.conf
    hosts: str = ""  # text for /etc/hosts
