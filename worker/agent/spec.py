"""From a task to the container that it is. Pure.

What a task may ask for and this node cannot do is refused here, by name: the task is REJECTED.
"""

from collections.abc import Mapping

import msgspec

from common.errors import Invalid, NotImplementedHere
from common.model.container import ContainerCreate, HostConfig, LogConfig
from common.model.mounts import Mount
from common.model.node import NodeDescription
from common.model.task import SECOND, ContainerSpec, ResourceRequirements, Resources, Task
from common.templates import Context, context, expand
from worker.agent.task_files import wanted
from worker.engine.container import FilePoint
from worker.network.model import Attachment, HostPort

_PRIVILEGES = ("CredentialSpec", "SELinuxContext", "Seccomp", "AppArmor", "NoNewPrivileges")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask of the engine."""

    name: str
    body: ContainerCreate
    attachments: tuple[Attachment, ...] | None  # None: as the body's network mode says
    host_ports: tuple[HostPort, ...]
    files: tuple[FilePoint, ...] = ()


def container_spec(task: Task) -> ContainerSpec:
    """Raises NotImplementedHere if the task is no container."""
    spec = task.spec.container_spec
    if spec is None or task.spec.plugin_spec or task.spec.network_attachment_spec:
        raise NotImplementedHere("only container tasks can run here; give a ContainerSpec")
    return spec


def stop_grace_s(task: Task, default_s: float) -> float:
    """How long the task has to end by itself after its stop signal."""
    spec = task.spec.container_spec
    if spec is None or spec.stop_grace_period is None:
        return default_s
    return spec.stop_grace_period / SECOND


def plan(task: Task, node: NodeDescription) -> Plan:
    """The container of `task` on the node so described. Raises Invalid, NotImplementedHere."""
    spec = container_spec(task)
    _refuse_undone(spec)
    names = context(task, node)
    on_host = any(wish.target == "host" for wish in task.spec.networks)
    body = ContainerCreate(
        hostname=expand(spec.hostname, names),
        user=spec.user,
        env=tuple(expand(line, names) for line in spec.env),
        cmd=spec.args or None,
        entrypoint=spec.command or None,
        image=spec.image,
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        working_dir=spec.dir,
        labels=_labels(task, spec),
        healthcheck=spec.healthcheck,
        stop_signal=spec.stop_signal or None,
        stop_timeout=_whole_seconds(spec.stop_grace_period),
        host_config=_host(task, spec, names, "host" if on_host else "default"),
    )
    return Plan(
        name=task.name or task.id,
        body=body,
        attachments=None if on_host else _attachments(task),
        host_ports=() if on_host else _host_ports(task),
        files=tuple(
            FilePoint(path, int(target.uid or 0), int(target.gid or 0), target.mode)
            for _, target, path in wanted(task)
        ),
    )


def _refuse_undone(spec: ContainerSpec) -> None:
    if spec.isolation not in ("", "default"):
        raise NotImplementedHere(f"ContainerSpec.Isolation = {spec.isolation!r}: use default")


def _labels(task: Task, spec: ContainerSpec) -> dict[str, str]:
    """The user's labels, and Swarm's, which he cannot override."""
    return spec.labels | {
        "com.docker.swarm.node.id": task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_annotations.name,
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": task.id,
        "com.docker.swarm.task.name": task.name,
    }


def _host(task: Task, spec: ContainerSpec, names: Context, network_mode: str) -> HostConfig:
    resources = task.spec.resources or ResourceRequirements()
    limits, reserved = resources.limits or Resources(), resources.reservations or Resources()
    dns = spec.dns_config
    return HostConfig(
        network_mode=network_mode,
        mounts=tuple(_mount(mount, names) for mount in spec.mounts) or None,
        dns=(dns.nameservers or None) if dns else None,
        dns_search=(dns.search or None) if dns else None,
        dns_options=(dns.options or None) if dns else None,
        extra_hosts=_extra_hosts(spec.hosts),
        group_add=spec.groups or None,
        readonly_rootfs=spec.read_only,
        cap_add=spec.capability_add or None,
        cap_drop=spec.capability_drop or None,
        security_opt=_security(spec.privileges or {}),
        init=spec.init,
        sysctls=spec.sysctls or None,
        ulimits=spec.ulimits or None,
        log_config=_log_config(task),
        memory=limits.memory_bytes,
        memory_reservation=reserved.memory_bytes,
        nano_cpus=limits.nano_cpus,
        pids_limit=limits.pids or None,
    )


def _mount(mount: Mount, names: Context) -> Mount:
    return msgspec.structs.replace(
        mount, source=expand(mount.source, names), target=expand(mount.target, names)
    )


def _extra_hosts(lines: tuple[str, ...]) -> tuple[str, ...] | None:
    """hosts(5) lines, as the engine takes them: "name:address"."""
    found = []
    for line in lines:
        address, *hosts = line.split()
        if not hosts:
            raise Invalid(f"ContainerSpec.Hosts: {line!r} must be an address and a name")
        found += [f"{host}:{address}" for host in hosts]
    return tuple(found) or None


def _security(privileges: Mapping[str, object]) -> tuple[str, ...] | None:
    options = []
    for name, value in privileges.items():
        if not value:
            continue
        if name == "NoNewPrivileges":
            options.append("no-new-privileges")
        elif name == "Seccomp" and isinstance(value, dict) and _is_seccomp_mode(value):
            if value.get("Mode") == "unconfined":
                options.append("seccomp=unconfined")
        else:
            known = name if name in _PRIVILEGES else f"{name} (unknown)"
            raise NotImplementedHere(f"ContainerSpec.Privileges.{known} is not supported")
    return tuple(options) or None


def _is_seccomp_mode(value: Mapping[str, object]) -> bool:
    return value.get("Mode", "default") in ("default", "unconfined") and not value.get("Profile")


def _log_config(task: Task) -> LogConfig:
    driver = task.spec.log_driver
    if driver is None or not driver.name:
        return LogConfig()
    return LogConfig(type=driver.name, config=driver.options)


def _attachments(task: Task) -> tuple[Attachment, ...]:
    return tuple(
        Attachment(
            network_id=attachment.network_id,
            network_name=attachment.network_name,
            address=attachment.addresses[0] if attachment.addresses else "",
            mac=attachment.mac,
            aliases=attachment.aliases,
        )
        for attachment in task.networks_attachments
    )


def _host_ports(task: Task) -> tuple[HostPort, ...]:
    return tuple(
        HostPort(
            protocol=port.protocol,
            published=port.published_port,
            target=port.target_port,
            host_ip="" if port.host_ip == "0.0.0.0" else port.host_ip,
        )
        for port in task.ports
        if port.publish_mode == "host"
    )


def _whole_seconds(nanoseconds: int | None) -> int | None:
    """Rounded up: a grace of half a second is not none."""
    return None if nanoseconds is None else -(-nanoseconds // SECOND)
