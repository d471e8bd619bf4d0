"""The three files that a container's network gives it: hosts, hostname, resolv.conf. Blocking."""

from pathlib import Path

from common.errors import Invalid
from worker.engine.container import Container
from worker.engine.request import HOST_GATEWAY
from worker.network.model import Sandbox


def write(folder: Path, container: Container, sandbox: Sandbox) -> None:
    """Into the container's folder, from where they are mounted. Raises Invalid."""
    texts = {
        "hosts": hosts(container, sandbox),
        "resolv.conf": sandbox.resolv_conf,
        "hostname": f"{container.config.hostname}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)  # whatever the daemon's umask


def write_hosts(folder: Path, container: Container, sandbox: Sandbox) -> None:
    """Its addresses have changed. Raises Invalid."""
    (folder / "hosts").write_text(hosts(container, sandbox))


def hosts(container: Container, sandbox: Sandbox) -> str:
    """Raises Invalid."""
    more = extra_hosts(container.host_config.extra_hosts or (), gateway(sandbox))
    return sandbox.hosts + more


def gateway(sandbox: Sandbox) -> str:
    """The node's address as the container sees it; "" if it has no way there."""
    if not sandbox.netns:
        return "127.0.0.1"  # the machine's own network
    return next((link.gateway for link in sandbox.interfaces if link.gateway), "")


def extra_hosts(entries: tuple[str, ...], node: str) -> str:
    """`name:address` as lines of a hosts file. Raises Invalid."""
    lines = []
    for entry in entries:
        name, _, address = entry.partition(":")
        if address == HOST_GATEWAY:
            address = node
        if not address:
            raise Invalid(f"HostConfig.ExtraHosts: {entry!r}: this network has no gateway")
        lines.append(f"{address}\t{name}\n")
    return "".join(lines)
