"""What a service spec means where it says nothing.

Specs are stored as they were sent. These functions give the values in force, for whoever acts
on a spec and for `inspect`. The defaults are Swarm's, but for parallelism: a block without it
means 1, not "all at once".
"""

import dataclasses
import datetime as dt

from msgspec.structs import replace

from common.model.service import EndpointSpec, Service, ServiceSpec, UpdateConfig
from common.model.task import (
    SECOND,
    Placement,
    PortConfig,
    ResourceRequirements,
    RestartPolicy,
    TaskSpec,
)

STOP_GRACE_NS = 10 * SECOND
RESTART_DELAY_NS = 5 * SECOND
MONITOR_NS = 5 * SECOND


@dataclasses.dataclass(frozen=True, slots=True)
class RestartRules:
    """A restart policy in force. `max_attempts` 0: no limit; `window` 0: all time."""

    condition: str
    delay: dt.timedelta
    max_attempts: int
    window: dt.timedelta


@dataclasses.dataclass(frozen=True, slots=True)
class UpdateRules:
    """An update or rollback configuration in force. `parallelism` 0: all at once."""

    parallelism: int
    delay: dt.timedelta
    failure_action: str
    monitor: dt.timedelta
    max_failure_ratio: float
    start_first: bool


def duration(nanoseconds: int) -> dt.timedelta:
    """`nanoseconds` as a time span, cut to what a time span can hold (a century is forever)."""
    century = 100 * 365 * 24 * 3600 * SECOND
    return dt.timedelta(microseconds=min(nanoseconds, century) / 1000)


def restart_rules(spec: TaskSpec) -> RestartRules:
    """When a task of `spec` is replaced after it ended."""
    policy = spec.restart_policy or RestartPolicy()
    delay = RESTART_DELAY_NS if policy.delay is None else policy.delay
    return RestartRules(
        condition=policy.condition or "any",
        delay=duration(delay),
        max_attempts=policy.max_attempts or 0,
        window=duration(policy.window or 0),
    )


def update_rules(config: UpdateConfig | None) -> UpdateRules:
    """How an update or a rollback goes.

    `monitor` is stretched to outlast `delay`, else a failure could show only after the update
    had gone on.
    """
    config = config or UpdateConfig()
    delay = duration(config.delay)
    monitor = duration(MONITOR_NS if config.monitor is None else config.monitor)
    if delay and delay >= monitor:
        monitor = delay + dt.timedelta(seconds=1)
    return UpdateRules(
        parallelism=1 if config.parallelism is None else config.parallelism,
        delay=delay,
        failure_action=config.failure_action or "pause",
        monitor=monitor,
        max_failure_ratio=config.max_failure_ratio,
        start_first=config.order == "start-first",
    )


def stop_grace(spec: TaskSpec) -> dt.timedelta:
    """How long a task of `spec` may take from its stop signal to its end."""
    container = spec.container_spec
    if container is None or container.stop_grace_period is None:
        return duration(STOP_GRACE_NS)
    return duration(container.stop_grace_period)


def replicas(spec: ServiceSpec) -> int:
    """How many tasks a replicated service is to have."""
    mode = spec.mode.replicated
    return 1 if mode is None or mode.replicas is None else mode.replicas


def host_ports(spec: ServiceSpec) -> tuple[PortConfig, ...]:
    """The published ports that each task has on its own node."""
    ports = spec.endpoint_spec.ports if spec.endpoint_spec is not None else ()
    return tuple(port for port in ports if port.publish_mode == "host")


def with_defaults(service: Service) -> Service:
    """`service` with its defaults written out, as `inspect` shows it for insertDefaults."""
    spec = service.spec
    endpoint = spec.endpoint_spec or EndpointSpec()
    full = replace(
        spec,
        task_template=_task_with_defaults(spec.task_template),
        update_config=_config_with_defaults(spec.update_config),
        rollback_config=_config_with_defaults(spec.rollback_config),
        endpoint_spec=replace(endpoint, mode=endpoint.mode or "vip"),
    )
    return replace(service, spec=full)


def _task_with_defaults(spec: TaskSpec) -> TaskSpec:
    container = spec.container_spec
    if container is not None and container.stop_grace_period is None:
        container = replace(container, stop_grace_period=STOP_GRACE_NS)
    policy = spec.restart_policy or RestartPolicy()
    return replace(
        spec,
        container_spec=container,
        resources=spec.resources or ResourceRequirements(),
        placement=spec.placement or Placement(),
        restart_policy=replace(
            policy,
            condition=policy.condition or "any",
            delay=RESTART_DELAY_NS if policy.delay is None else policy.delay,
            max_attempts=policy.max_attempts or 0,
        ),
    )


def _config_with_defaults(config: UpdateConfig | None) -> UpdateConfig:
    config = config or UpdateConfig()
    return replace(
        config,
        parallelism=1 if config.parallelism is None else config.parallelism,
        failure_action=config.failure_action or "pause",
        monitor=MONITOR_NS if config.monitor is None else config.monitor,
        order=config.order or "stop-first",
    )
