"""From a create request and an image to what a container shall be. Pure.

What Docker would honour and this engine does not is refused here, by name.
"""

import ipaddress
import re
from typing import NamedTuple

import msgspec

from common.errors import Invalid, NotImplementedHere
from common.model.container import (
    ContainerConfig,
    ContainerCreate,
    EndpointConfig,
    HostConfig,
    NetworkingConfig,
    PortBinding,
)
from common.model.image import ImageConfig
from common.model.task import HealthConfig
from worker.engine import devices, logoptions, modes, signals
from worker.network.model import HostPort
from worker.runtime import capabilities, seccomp_profile
from worker.runtime.plan import PREFIX

_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")
_HOSTNAME = re.compile(r"^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62})$")
_PORT = re.compile(r"^(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?$")
_LEAST_MEMORY = 4 << 20  # as for services; what is smaller cannot even start
_SYSCTLS = ("net.", "fs.mqueue.")
_SYSCTL_NAMES = (
    "kernel.domainname", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
    "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
)  # fmt: skip
_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BRIDGE = "bridge"  # the network of containers that name none
HOST_GATEWAY = "host-gateway"  # stands for the node, as the container sees it
_RESTART = ("", "no", "always", "unless-stopped", "on-failure")


def check_name(name: str) -> str:
    """`name` without its slash. Raises Invalid."""
    bare = name.removeprefix("/")
    if not _NAME.match(bare):
        raise Invalid(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return bare


def merged(body: ContainerCreate, image: ImageConfig) -> tuple[ContainerConfig, tuple[str, ...]]:
    """The configuration with the image's defaults, and the command to run.

    A given entrypoint drops the image's command too, as in Docker. Raises Invalid.
    """
    entrypoint, command = words(body.entrypoint), words(body.cmd)
    if entrypoint is None:
        entrypoint = image.entrypoint or ()
        if command is None or not command:
            command = image.cmd
    elif entrypoint == ("",):
        entrypoint = ()
    line = (*entrypoint, *(command or ()))
    if not line:
        raise Invalid("no command specified: the image names none, so give one")
    config = ContainerConfig(
        **{
            **{field: getattr(body, field) for field in ContainerConfig.__struct_fields__},
            "user": body.user or image.user,
            "exposed_ports": {**(image.exposed_ports or {}), **(body.exposed_ports or {})} or None,
            "env": environment(image.env or (), body.env or (), body.tty),
            "cmd": command or None,
            "entrypoint": entrypoint or None,
            "healthcheck": health(body.healthcheck, image.healthcheck),
            "volumes": {**(image.volumes or {}), **(body.volumes or {})} or None,
            "working_dir": body.working_dir or image.working_dir,
            "labels": {**(image.labels or {}), **(body.labels or {})},
            "stop_signal": body.stop_signal or image.stop_signal or None,
            "shell": body.shell or image.shell,
        }
    )
    _check_config(config)
    return config, line


def words(value: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
    """A command given as one text is one word, as Docker's API has it."""
    return (value,) if isinstance(value, str) else value


def environment(image: tuple[str, ...], own: tuple[str, ...], tty: bool) -> tuple[str, ...]:
    """The image's variables, then the request's; a later one replaces an earlier of its name."""
    lines = {line.partition("=")[0]: line for line in (_DEFAULT_PATH, *image)}
    if tty:
        lines.setdefault("TERM", "TERM=xterm")
    for line in own:
        name, equals, _ = line.partition("=")
        if not name:
            raise Invalid(f"Env: {line!r} has no name before the equals sign")
        if equals:
            lines[name] = line
        else:
            lines.pop(name, None)
    return tuple(lines.values())


def health(own: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    """The request's check over the image's, field by field; ["NONE"] turns it off."""
    if own is None:
        return image
    if own.test[:1] == ("NONE",):
        return None
    base = image or HealthConfig()
    changes = {f: getattr(own, f) for f in HealthConfig.__struct_fields__ if getattr(own, f)}
    joined = msgspec.structs.replace(base, **changes)
    for field in ("interval", "timeout", "start_period", "start_interval"):
        value = getattr(joined, field)
        if value < 0 or 0 < value < 1_000_000:
            raise Invalid(f"Healthcheck.{field} = {value} ns: must be 0 or at least 1 ms")
    if joined.retries < 0:
        raise Invalid(f"Healthcheck.Retries = {joined.retries} cannot be negative")
    if joined.test and joined.test[0] not in ("CMD", "CMD-SHELL", "NONE"):
        raise Invalid(f"Healthcheck.Test: {joined.test[0]!r} is not CMD, CMD-SHELL or NONE")
    return joined if joined.test and joined.test[0] != "NONE" else None


def _check_config(config: ContainerConfig) -> None:
    if config.hostname and not _HOSTNAME.match(config.hostname):
        raise Invalid(f"Hostname = {config.hostname!r} is not a host name")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise Invalid(f"WorkingDir = {config.working_dir!r} must be an absolute path")
    if config.stop_signal:
        signals.number(config.stop_signal)


def check_host(host: HostConfig, available: int) -> HostConfig:
    """Refuses what is wrong or not done; `available`: the capabilities this machine can give.

    Raises Invalid, NotImplementedHere.
    """
    _check_limits(host)
    devices.check(host)
    _check_seccomp(host)
    if host.restart_policy.name not in _RESTART:
        raise Invalid(f"invalid restart policy '{host.restart_policy.name}'")
    if host.restart_policy.maximum_retry_count < 0:
        raise Invalid("maximum retry count cannot be negative")
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise Invalid("can't create 'AutoRemove' container with restart policy")
    try:
        capabilities.chosen(host.cap_add or (), host.cap_drop or ())
        named = [capabilities.normal(n) for n in host.cap_add or () if n.upper() != "ALL"]
        for name in named:
            if not capabilities.mask([name]) & available:
                raise ValueError(f"{name} is not available on this machine")
    except ValueError as error:
        raise Invalid(f"HostConfig.CapAdd/CapDrop: {error}") from error
    _check_annotations(host.annotations or {})
    if host.storage_opt:
        raise NotImplementedHere(
            f"HostConfig.StorageOpt {sorted(host.storage_opt)[0]!r} is not supported: an overlay "
            "has no size of its own; give large files a volume, and small ones --tmpfs with a size"
        )
    for entry in host.extra_hosts or ():
        _check_extra_host(entry)
    logoptions.kept(host)
    return host


def _check_annotations(notes: dict[str, str]) -> None:
    """Ours steer the runtime, so nobody else may set them."""
    for name in notes:
        if not name or not name.isprintable():
            raise Invalid(f"HostConfig.Annotations: {name[:40]!r} is no name of an annotation")
        if name.startswith(PREFIX):
            raise Invalid(
                f"HostConfig.Annotations: {name[:80]!r}: names in {PREFIX} are the engine's"
            )


def _check_extra_host(entry: str) -> None:
    name, _, address = entry.partition(":")
    try:
        if address != HOST_GATEWAY:
            ipaddress.ip_address(address)
    except ValueError:
        name = ""
    if not name or any(letter.isspace() for letter in name):
        raise Invalid(f"HostConfig.ExtraHosts: {entry[:80]!r} is not like name:10.0.0.1")


def _check_limits(host: HostConfig) -> None:
    if 0 < host.memory < _LEAST_MEMORY or host.memory < 0:
        raise Invalid("Minimum memory limit allowed is 4MB")
    if host.memory_swap > 0 and (not host.memory or host.memory_swap < host.memory):
        raise Invalid("HostConfig.MemorySwap must be given with Memory and not be smaller than it")
    if host.memory_reservation and host.memory and host.memory_reservation > host.memory:
        raise Invalid("HostConfig.MemoryReservation must not exceed Memory")
    if host.nano_cpus < 0 or (host.nano_cpus and (host.cpu_quota or host.cpu_period)):
        raise Invalid("HostConfig.NanoCpus must be positive, and not come with CpuQuota/CpuPeriod")
    if 0 < host.nano_cpus < 1_000_000:
        raise Invalid("HostConfig.NanoCpus: at least 0.001 CPUs are needed")
    if host.cpu_shares < 0 or host.cpu_quota < -1 or host.cpu_period < 0:
        raise Invalid("HostConfig: CpuShares, CpuQuota and CpuPeriod cannot be negative")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise Invalid(f"HostConfig.OomScoreAdj = {host.oom_score_adj} is not in -1000 … 1000")
    if host.memory_swappiness is not None and not -1 <= host.memory_swappiness <= 100:
        raise Invalid(f"HostConfig.MemorySwappiness = {host.memory_swappiness} is not in 0 … 100")
    _check_sysctls(host)


def _check_sysctls(host: HostConfig) -> None:
    """Those of a namespace, which must be the container's own."""
    for name in host.sysctls or {}:
        if not name.startswith(_SYSCTLS) and name not in _SYSCTL_NAMES:
            raise Invalid(f"sysctl {name!r} is not of a namespace and would change the machine")
        if name.startswith("net.") and host.network_mode == "host":
            raise Invalid(f"sysctl {name!r} is not allowed with the machine's own network")
        if name == "kernel.domainname" and host.uts_mode == "host":
            raise Invalid(f"sysctl {name!r} is not allowed with the machine's own names")
        if not name.startswith("net.") and name != "kernel.domainname" and host.ipc_mode == "host":
            raise Invalid(f"sysctl {name!r} is not allowed with the machine's own IPC")


class Security(NamedTuple):
    """`seccomp`: "builtin", "unconfined", or a profile as JSON text."""

    seccomp: str
    no_new_privileges: bool


def security(options: tuple[str, ...]) -> Security:
    """HostConfig.SecurityOpt. Raises NotImplementedHere."""
    seccomp, no_new_privileges = "builtin", False
    for option in options:
        name, value = _pair(option)
        if name == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif name == "seccomp" and (value in ("unconfined", "builtin") or value[:1] == "{"):
            seccomp = value
        elif (name, value) not in (("apparmor", "unconfined"), ("label", "disable")):
            raise NotImplementedHere(f"HostConfig.SecurityOpt {option[:80]!r} is not supported")
    return Security(seccomp, no_new_privileges)


def _pair(option: str) -> tuple[str, str]:
    """`name=value`, or with a colon as it was written once."""
    match = re.match(r"([^:=]*)[:=]?(.*)", option, re.DOTALL)
    assert match is not None
    return match[1], match[2].strip()


def _check_seccomp(host: HostConfig) -> None:
    text = security(host.security_opt or ()).seccomp
    if text in ("unconfined", "builtin"):
        return
    try:
        seccomp_profile.resolve(text, frozenset(), (6, 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise Invalid(f"HostConfig.SecurityOpt seccomp: {error}") from error


def host_ports(config: ContainerConfig, host: HostConfig) -> tuple[HostPort, ...]:
    """The published ports that the network part shall open. Raises Invalid."""
    ports = []
    for text, bindings in (host.port_bindings or {}).items():
        target, protocol = port(text)
        for binding in bindings or (PortBinding(),):
            published = binding.host_port or "0"
            if not published.isdecimal() or int(published) > 65535:
                raise Invalid(f"PortBindings {text}: HostPort {published!r} is not a port number")
            if binding.host_ip:
                _check_address(text, binding.host_ip)
            ports.append(
                HostPort(
                    protocol=protocol,
                    published=int(published),
                    target=target,
                    host_ip="" if binding.host_ip in ("0.0.0.0", "::") else binding.host_ip,
                )
            )
    if host.publish_all_ports:
        bound = {(p.protocol, p.target) for p in ports}
        for text in config.exposed_ports or {}:
            target, protocol = port(text)
            if (protocol, target) not in bound:
                ports.append(HostPort(protocol=protocol, published=0, target=target))
    return tuple(ports)


def _check_address(what: str, text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"PortBindings {what}: HostIp {text!r} is not an address") from None


def port(text: str) -> tuple[int, str]:
    """`80/tcp` as (80, "tcp"). Raises Invalid."""
    match = _PORT.match(text)
    if match is None or match[2] or not 0 < int(match[1]) < 65536:
        raise Invalid(f"port {text!r} is not like 80/tcp")
    if match[3] == "sctp":
        raise NotImplementedHere(f"port {text!r}: sctp is not supported")
    return int(match[1]), match[3] or "tcp"


def wanted_networks(
    config: ContainerConfig, host: HostConfig, networking: NetworkingConfig | None
) -> tuple[str, dict[str, EndpointConfig]]:
    """(sandbox mode, endpoints by name of the network) that a user's container asks for."""
    mode = host.network_mode
    given = (networking and networking.endpoints_config) or {}
    if mode in ("none", "host") or modes.donor(mode):
        others = sorted(set(given) - {mode})
        if others:
            raise Invalid(f"conflicting options: network {others[0]} and the network mode {mode}")
        return mode, {}
    first = _network_name(mode)
    names = {_network_name(name): point or EndpointConfig() for name, point in given.items()}
    if not names or first != BRIDGE:
        names = {first: names.pop(first, EndpointConfig()), **names}
    if host.links or config.mac_address:
        main = names.get(first, EndpointConfig())
        names[first] = msgspec.structs.replace(
            main,
            links=(*(main.links or ()), *(host.links or ())),
            mac_address=main.mac_address or config.mac_address or "",
        )
    return "private", names


def _network_name(mode: str) -> str:
    return BRIDGE if mode in ("", "default") else mode
