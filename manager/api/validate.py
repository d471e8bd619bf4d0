"""What a spec may say. Each check raises an error that names the field, the value and a remedy.

What Docker knows but Shoal does not do is refused with NotImplementedHere: nothing is accepted
and then ignored.
"""

import math
import re
from collections.abc import Sequence
from ipaddress import IPv4Address

from common import references, templates
from common.errors import Invalid, NotImplementedHere
from common.model.service import EndpointSpec, ServiceMode, ServiceSpec, UpdateConfig
from common.model.task import (
    CONFIGS,
    SECRETS,
    ContainerSpec,
    HealthConfig,
    LogDriver,
    NetworkAttachmentConfig,
    Placement,
    PortConfig,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    TaskSpec,
)
from manager import constraint, wishes

NAME_MAX = 63
REPLICAS_MAX = 100_000
CPU_MIN = 1_000_000  # billionths: 0.001 CPU
MEMORY_MIN = 4 << 20
HEALTH_MIN_NS = 1_000_000

_NAME = re.compile(r"^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$")
_MOUNTS = ("bind", "volume", "tmpfs")
_LOG_DRIVERS = ("", "json-file", "local")


def name(what: str, value: str) -> None:
    """A name of a service or network becomes a DNS name, so it has to be a label."""
    if not value:
        raise Invalid(f"{what} name is missing")
    if len(value) > NAME_MAX or not _NAME.match(value):
        raise Invalid(
            f"{what} name {value[:80]!r} is not valid; use letters, digits, - and _, "
            f"beginning and ending with a letter or digit, {NAME_MAX} at most"
        )


def service(spec: ServiceSpec) -> None:
    """All that can be said of a service's spec without looking at the cluster."""
    name("service", spec.name)
    wishes.check(spec)
    mode(spec.mode)
    task(spec.task_template)
    if spec.mode.is_job and (spec.update_config or spec.rollback_config):
        raise Invalid("a job takes no update or rollback config: each change runs it anew")
    update("update_config", spec.update_config, ("pause", "continue", "rollback"))
    update("rollback_config", spec.rollback_config, ("pause", "continue"))
    endpoint(spec.endpoint_spec or EndpointSpec())


def mode(value: ServiceMode) -> None:
    """One mode, and how many tasks."""
    given = (value.replicated, value.global_, value.replicated_job, value.global_job)
    if sum(one is not None for one in given) > 1:
        raise Invalid("mode: several are given; choose one")
    if value.replicated is not None:
        _count("replicas", value.replicated.replicas)
    if value.replicated_job is not None:
        _count("max concurrent", value.replicated_job.max_concurrent)
        _count("total completions", value.replicated_job.total_completions)


def _count(what: str, value: int | None) -> None:
    if value is not None and not 0 <= value <= REPLICAS_MAX:
        raise Invalid(f"{what} is {value}; use a number from 0 to {REPLICAS_MAX}")


def task(spec: TaskSpec) -> None:
    """What each task of a service is."""
    if spec.plugin_spec is not None:
        raise NotImplementedHere("plugin services are not supported; use a container spec")
    if spec.network_attachment_spec is not None:
        raise NotImplementedHere("network attachment tasks are not supported")
    if spec.runtime not in ("", "container"):
        raise NotImplementedHere(f"runtime {spec.runtime!r} is not supported; use container")
    if spec.container_spec is None:
        raise Invalid("the service has no container spec; give at least an image")
    container(spec.container_spec)
    resources(spec.resources or ResourceRequirements())
    restart(spec.restart_policy or RestartPolicy())
    placement(spec.placement or Placement())
    networks(spec.networks)
    log_driver(spec.log_driver)


def container(spec: ContainerSpec) -> None:
    """The container of each task. What the runtime makes of the rest, the node says."""
    if not spec.image.strip():
        raise Invalid("image is missing; name the image to run")
    references.parse(spec.image)
    if spec.dir and not spec.dir.startswith("/"):
        raise Invalid(f"working directory {spec.dir!r} is not an absolute path")
    for line in spec.env:
        if line.startswith("="):
            raise Invalid(f"environment variable {line[:80]!r} has no name; write NAME=VALUE")
    for text in (spec.hostname, *spec.env):
        templates.check(text)
    files(spec)
    if spec.isolation not in ("", "default"):
        raise NotImplementedHere(f"isolation {spec.isolation!r} is not supported; use default")
    if spec.stop_grace_period is not None:
        _not_negative("stop grace period", spec.stop_grace_period)
    _mounts(spec)
    health(spec.healthcheck or HealthConfig())


def _mounts(spec: ContainerSpec) -> None:
    targets = set()
    for mount in spec.mounts:
        if mount.type not in _MOUNTS:
            raise NotImplementedHere(
                f"mount type {mount.type!r} is not supported; use {', '.join(_MOUNTS)}"
            )
        templates.check(mount.source)
        templates.check(mount.target)
        if not mount.target.startswith("/"):
            raise Invalid(f"mount target {mount.target!r} is not an absolute path")
        if mount.type == "bind" and not mount.source.startswith("/"):
            raise Invalid(f"bind mount source {mount.source!r} is not an absolute path")
        target = mount.target.rstrip("/") or "/"
        if target in targets:
            raise Invalid(f"two mounts have the target {target}; remove one")
        targets.add(target)


def health(spec: HealthConfig) -> None:
    """A health check; all durations 0 or at least a millisecond."""
    if spec.test and spec.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise Invalid(f"health check test begins with {spec.test[0]!r}; use CMD or CMD-SHELL")
    for field in ("interval", "timeout", "start_period", "start_interval"):
        value = getattr(spec, field)
        if value and value < HEALTH_MIN_NS:
            raise Invalid(f"health check {field} is {value} ns; use at least 1 ms")
    _not_negative("health check retries", spec.retries)


def resources(spec: ResourceRequirements) -> None:
    """Limits and reservations (behaviour 242)."""
    for what, amount in (("limit", spec.limits), ("reservation", spec.reservations)):
        if amount is not None:
            _amount(what, amount)
    limit, reserved = spec.limits or Resources(), spec.reservations or Resources()
    if 0 < limit.memory_bytes < reserved.memory_bytes:
        raise Invalid(
            f"memory reservation {reserved.memory_bytes} is above the limit {limit.memory_bytes}; "
            "reserve less, or raise the limit"
        )
    if 0 < limit.nano_cpus < reserved.nano_cpus:
        raise Invalid(
            f"CPU reservation {reserved.nano_cpus / 1e9:g} is above the limit "
            f"{limit.nano_cpus / 1e9:g}; reserve less, or raise the limit"
        )


def _amount(what: str, amount: Resources) -> None:
    if amount.nano_cpus and amount.nano_cpus < CPU_MIN:
        raise Invalid(f"CPU {what} is {amount.nano_cpus / 1e9:g}; use at least 0.001")
    if amount.memory_bytes and amount.memory_bytes < MEMORY_MIN:
        raise Invalid(f"memory {what} is {amount.memory_bytes} bytes; use at least 4 MiB")
    _not_negative("pids limit", amount.pids)
    if amount.generic_resources:
        raise NotImplementedHere("generic resources are not supported; remove them")


def restart(policy: RestartPolicy) -> None:
    """When a task is tried again (behaviour 243)."""
    _choice("restart condition", policy.condition, ("none", "on-failure", "any"))
    _not_negative("restart delay", policy.delay)
    _not_negative("restart max attempts", policy.max_attempts)
    _not_negative("restart window", policy.window)


def update(field: str, config: UpdateConfig | None, actions: Sequence[str]) -> None:
    """How an update or a rollback goes (behaviour 243)."""
    if config is None:
        return
    _not_negative(f"{field} parallelism", config.parallelism)
    _not_negative(f"{field} delay", config.delay)
    _not_negative(f"{field} monitor", config.monitor)
    _choice(f"{field} failure action", config.failure_action, actions)
    _choice(f"{field} order", config.order, ("stop-first", "start-first"))
    ratio = config.max_failure_ratio
    if math.isnan(ratio) or not 0 <= ratio <= 1:
        raise Invalid(f"{field} max failure ratio is {ratio}; use a number from 0 to 1")


def placement(spec: Placement) -> None:
    """Where tasks may go."""
    constraint.parse_all(spec.constraints)
    _not_negative("max replicas per node", spec.max_replicas)
    for preference in spec.preferences:
        over = preference.spread.spread_descriptor if preference.spread is not None else ""
        if not over.startswith((constraint.NODE_LABEL, constraint.ENGINE_LABEL)):
            raise Invalid(
                f"placement preference spread={over} is not valid; "
                "use node.labels.NAME or engine.labels.NAME"
            )


def networks(wishes: Sequence[NetworkAttachmentConfig]) -> None:
    """Attachments as such; whether the networks are there is for the service's API to see."""
    for wish in wishes:
        if wish.driver_opts:
            raise NotImplementedHere(
                f"network {wish.target}: driver options of an attachment are not supported"
            )
        for alias in wish.aliases:
            for label in alias.split("."):
                name(f"network {wish.target}: alias {alias!r}:", label)


def log_driver(driver: LogDriver | None) -> None:
    """Where a container's output goes; the node keeps it in files."""
    if driver is not None and driver.name not in _LOG_DRIVERS:
        raise NotImplementedHere(
            f"log driver {driver.name!r} is not supported; use json-file or leave it out"
        )


def files(spec: ContainerSpec) -> None:
    """References to secrets and configs; whether those are there is for the API to see."""
    taken: set[str] = set()
    wanted = [("secret", item.secret_name, item.file, SECRETS) for item in spec.secrets]
    for config in spec.configs:
        if config.runtime is not None:
            raise NotImplementedHere(f"config {config.config_name}: Runtime is not supported")
        wanted.append(("config", config.config_name, config.file, CONFIGS))
    for what, name_, file, folder in wanted:
        if file is None or not file.name.strip("/"):
            raise Invalid(f"{what} {name_}: its file has no name; give a target")
        if ".." in file.name.split("/") or "\0" in file.name:
            raise Invalid(f"{what} {name_}: target {file.name!r} is not a plain path")
        if not all(text == "" or text.isdecimal() for text in (file.uid, file.gid)):
            raise Invalid(f"{what} {name_}: uid and gid of its file have to be numbers")
        if not 0 <= file.mode <= 0o7777:
            raise Invalid(f"{what} {name_}: mode {file.mode:o} is not valid; use 0 to 7777")
        target = file.path(folder)
        if target in taken:
            raise Invalid(f"{what} {name_}: another one has target {target} already")
        taken.add(target)


def endpoint(spec: EndpointSpec) -> None:
    """Published ports (behaviour 246)."""
    _choice("endpoint mode", spec.mode, ("vip", "dnsrr"))
    taken = set()
    for port in spec.ports:
        _port(port)
        if spec.mode == "dnsrr" and port.publish_mode == "ingress":
            raise Invalid(
                f"port {port.published_port or port.target_port} cannot be published by ingress "
                "with endpoint mode dnsrr; use publish mode host, or endpoint mode vip"
            )
        key = (port.protocol, port.published_port, port.publish_mode, port.host_ip)
        if port.published_port and key in taken:
            raise Invalid(f"port {port.published_port}/{port.protocol} is published twice")
        taken.add(key)


def _port(port: PortConfig) -> None:
    if port.protocol not in ("tcp", "udp"):
        if port.protocol == "sctp":
            raise NotImplementedHere("published ports of protocol sctp are not supported")
        raise Invalid(f"port protocol {port.protocol!r} is not known; use tcp or udp")
    if not 1 <= port.target_port <= 65535:
        raise Invalid(f"target port {port.target_port} is not valid; use 1 to 65535")
    if not 0 <= port.published_port <= 65535:
        raise Invalid(f"published port {port.published_port} is not valid; use 1 to 65535")
    if port.publish_mode not in ("ingress", "host"):
        raise Invalid(f"publish mode {port.publish_mode!r} is not known; use ingress or host")
    if port.host_ip and port.publish_mode != "host":
        raise Invalid(
            f"port {port.target_port}: host_ip {port.host_ip} goes with publish mode host only; "
            "by ingress every node answers at all its addresses"
        )
    if port.host_ip and not _is_ipv4(port.host_ip):
        raise Invalid(f"port {port.target_port}: host_ip {port.host_ip!r} is not an IPv4 address")


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _not_negative(what: str, value: int | None) -> None:
    if value is not None and value < 0:
        raise Invalid(f"{what} is {value}; use 0 or more")


def _choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value and value not in allowed:
        raise Invalid(f"{what} {value!r} is not known; use {', '.join(allowed)}")
