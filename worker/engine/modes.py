"""Which namespaces a container has of its own, and which it shares. Pure."""

from common.errors import Invalid, NotImplementedHere
from common.model.container import ContainerCreate, HostConfig

CONTAINER = "container:"
_PLAIN = {
    "PidMode": ("", "private", "host"),
    "IpcMode": ("", "private", "shareable", "none", "host"),
    "UTSMode": ("", "host"),
    "UsernsMode": ("", "host"),
    "CgroupnsMode": ("", "private", "host"),
}
_SHARED = ("PidMode", "IpcMode", "NetworkMode", "UTSMode")  # the last beyond Docker


def check(body: ContainerCreate) -> None:
    """Raises Invalid for modes that contradict other wishes, NotImplementedHere for unknown."""
    host = body.host_config
    for name, value in _modes(host).items():
        shared = name in _SHARED and donor(value)
        if name in _PLAIN and not shared and value not in _PLAIN[name]:
            raise NotImplementedHere(f"HostConfig.{name} = {value!r} is not supported")
    if host.uts_mode and (body.hostname or body.domainname):
        raise Invalid("conflicting options: hostname and the UTS mode")
    if donor(host.network_mode):
        _check_shared_network(body, host)
    parts = host.cgroup_parent.split("/")
    if ".." in parts or host.cgroup_parent.endswith(".slice"):
        raise Invalid(
            f"HostConfig.CgroupParent = {host.cgroup_parent!r} must be a path of plain names: "
            "systemd's slices are not used here"
        )


def _modes(host: HostConfig) -> dict[str, str]:
    return {
        "PidMode": host.pid_mode,
        "IpcMode": host.ipc_mode,
        "UTSMode": host.uts_mode,
        "UsernsMode": host.userns_mode,
        "CgroupnsMode": host.cgroupns_mode,
        "NetworkMode": host.network_mode,
    }


def _check_shared_network(body: ContainerCreate, host: HostConfig) -> None:
    others = {
        "hostname": body.hostname,
        "dns": host.dns or host.dns_search or host.dns_options,
        "custom host-to-IP mapping": host.extra_hosts,
        "port publishing": host.port_bindings or host.publish_all_ports,
        "net.* sysctls": any(name.startswith("net.") for name in host.sysctls or {}),
    }
    for what, given in others.items():
        if given:
            raise Invalid(f"conflicting options: {what} and the container type network mode")


def donor(mode: str) -> str:
    """The REF of `container:REF`; "" for other modes. Raises Invalid if nothing follows."""
    if not mode.startswith(CONTAINER):
        return ""
    if mode == CONTAINER:
        raise Invalid(f"mode {mode!r} names no container")
    return mode.removeprefix(CONTAINER)


def donors(host: HostConfig) -> dict[str, str]:
    """The ids of the containers whose namespaces are shared, by OCI's names of the kinds."""
    wanted = {"pid": host.pid_mode, "ipc": host.ipc_mode, "network": host.network_mode}
    wanted["uts"] = host.uts_mode
    return {kind: donor(mode) for kind, mode in wanted.items() if donor(mode)}


def shares_memory(host: HostConfig) -> bool:
    """Whether others may share its IPC namespace and /dev/shm."""
    return host.ipc_mode in ("shareable", "host") or bool(donor(host.ipc_mode))


def namespaces(host: HostConfig, netns: str, joins: dict[str, str]) -> list[dict[str, str]]:
    """`linux.namespaces`. `netns`: path of the sandbox, "" for the machine's own network; `joins`:
    paths of the donors' by kind. What is left out is the machine's."""
    own = {
        "pid": host.pid_mode != "host",
        "mount": True,
        "ipc": host.ipc_mode != "host",
        "uts": host.uts_mode != "host",
        "cgroup": host.cgroupns_mode != "host",
    }
    found: list[dict[str, str]] = []
    for kind, wanted in own.items():
        if kind in joins:
            found.append({"type": kind, "path": joins[kind]})
        elif wanted:
            found.append({"type": kind})
    network = joins.get("network", netns)
    return [*found, {"type": "network", "path": network}] if network else found
