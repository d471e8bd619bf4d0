"""From a service's flags to its spec, and from an update's flags to the changed spec. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from cli import options, wishes

Spec = dict[str, Any]
Setter = Callable[[Spec, Any], None]


def at(*path: str, through: Callable[[Any], Any] = lambda value: value) -> Setter:
    """A setter for the place that `path` names; containers on the way are made."""

    def put(spec: Spec, value: Any) -> None:
        for name in path[:-1]:
            spec = spec.setdefault(name, {}) if spec.get(name) is not None else _made(spec, name)
        spec[path[-1]] = through(value)

    return put


def _made(spec: Spec, name: str) -> Spec:
    spec[name] = {}
    made: Spec = spec[name]
    return made


_CONTAINER = ("TaskTemplate", "ContainerSpec")
_HEALTH = (*_CONTAINER, "Healthcheck")
_RESTART = ("TaskTemplate", "RestartPolicy")
_LIMITS = ("TaskTemplate", "Resources", "Limits")
_RESERVATIONS = ("TaskTemplate", "Resources", "Reservations")

# Flag (as click names its parameter) -> where its value goes.
SETTERS: dict[str, Setter] = {
    "image": at(*_CONTAINER, "Image"),
    "args": at(*_CONTAINER, "Args", through=list),
    "entrypoint": at(
        *_CONTAINER, "Command", through=lambda text: options.words("--entrypoint", text)
    ),
    "hostname": at(*_CONTAINER, "Hostname"),
    "user": at(*_CONTAINER, "User"),
    "workdir": at(*_CONTAINER, "Dir"),
    "tty": at(*_CONTAINER, "TTY"),
    "read_only": at(*_CONTAINER, "ReadOnly"),
    "init": at(*_CONTAINER, "Init"),
    "stop_signal": at(*_CONTAINER, "StopSignal"),
    "stop_grace_period": at(*_CONTAINER, "StopGracePeriod"),
    "health_cmd": at(*_HEALTH, "Test", through=lambda text: ["CMD-SHELL", text]),
    "health_interval": at(*_HEALTH, "Interval"),
    "health_timeout": at(*_HEALTH, "Timeout"),
    "health_retries": at(*_HEALTH, "Retries"),
    "health_start_period": at(*_HEALTH, "StartPeriod"),
    "health_start_interval": at(*_HEALTH, "StartInterval"),
    "limit_cpu": at(*_LIMITS, "NanoCPUs"),
    "limit_memory": at(*_LIMITS, "MemoryBytes"),
    "limit_pids": at(*_LIMITS, "Pids"),
    "reserve_cpu": at(*_RESERVATIONS, "NanoCPUs"),
    "reserve_memory": at(*_RESERVATIONS, "MemoryBytes"),
    "restart_condition": at(*_RESTART, "Condition"),
    "restart_delay": at(*_RESTART, "Delay"),
    "restart_max_attempts": at(*_RESTART, "MaxAttempts"),
    "restart_window": at(*_RESTART, "Window"),
    "replicas_max_per_node": at("TaskTemplate", "Placement", "MaxReplicas"),
    "endpoint_mode": at("EndpointSpec", "Mode"),
    **{
        f"{kind}_{flag}": at(f"{kind.capitalize()}Config", field)
        for kind in ("update", "rollback")
        for flag, field in (
            ("parallelism", "Parallelism"),
            ("delay", "Delay"),
            ("order", "Order"),
            ("failure_action", "FailureAction"),
            ("monitor", "Monitor"),
            ("max_failure_ratio", "MaxFailureRatio"),
        )
    },
}


def created(flags: Mapping[str, Any], present_env: dict[str, str]) -> Spec:
    """The spec that `service create` sends. `flags` holds only those that were given."""
    spec: Spec = {
        "Name": flags.get("name", ""),
        "Labels": options.pairs(flags.get("label", ()), "--label"),
        "TaskTemplate": {"ContainerSpec": {}},
        "Mode": _mode(flags),
    }
    apply(spec, flags)
    wishes.apply(spec, flags)
    container = spec["TaskTemplate"]["ContainerSpec"]
    env = options.environment(flags.get("env", ()), flags.get("env_file", ()), present_env)
    if env:
        container["Env"] = env
    if labels := options.pairs(flags.get("container_label", ()), "--container-label"):
        container["Labels"] = labels
    if mounts := flags.get("mount"):
        container["Mounts"] = [options.mount(text) for text in mounts]
    if networks := flags.get("network"):
        spec["TaskTemplate"]["Networks"] = [options.network(text) for text in networks]
    if constraints := flags.get("constraint"):
        at("TaskTemplate", "Placement", "Constraints")(spec, list(constraints))
    if preferences := flags.get("placement_pref"):
        spreads = [_preference(text) for text in preferences]
        at("TaskTemplate", "Placement", "Preferences")(spec, spreads)
    if ports := flags.get("publish"):
        at("EndpointSpec", "Ports")(
            spec, [port for text in ports for port in options.published(text)]
        )
    return spec


def apply(spec: Spec, flags: Mapping[str, Any]) -> None:
    """Put the given single-valued flags where they belong in `spec`."""
    if flags.get("no_healthcheck"):
        at(*_HEALTH, "Test")(spec, ["NONE"])
    for flag, setter in SETTERS.items():
        if flag in flags:
            setter(spec, flags[flag])


def updated(spec: Spec, flags: Mapping[str, Any], present_env: dict[str, str]) -> Spec:
    """`spec` with the flags of `service update` applied; changes `spec` itself."""
    apply(spec, flags)
    wishes.apply(spec, flags)
    container = spec["TaskTemplate"].setdefault("ContainerSpec", {})
    if ("replicas" in flags or "max_concurrent" in flags) and not rescale(spec["Mode"], flags):
        raise click.UsageError(f"{_COUNTED}; this is a {mode_name(spec['Mode'])}")
    if flags.get("force"):
        spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1
    _relabel(spec, "Labels", flags, "label")
    _relabel(container, "Labels", flags, "container_label")
    env = options.environment(flags.get("env_add", ()), (), present_env)
    _relist(container, "Env", env, flags.get("env_rm", ()), lambda text: text.partition("=")[0])
    mounts = [options.mount(text) for text in flags.get("mount_add", ())]
    _relist(container, "Mounts", mounts, flags.get("mount_rm", ()), lambda item: item["Target"])
    for kind in ("Secret", "Config"):
        files, gone = flags.get(f"{kind.lower()}_add", ()), flags.get(f"{kind.lower()}_rm", ())
        _relist(container, f"{kind}s", list(files), gone, _name_of(f"{kind}Name"))
    template = spec["TaskTemplate"]
    networks = [options.network(text) for text in flags.get("network_add", ())]
    _relist(
        template, "Networks", networks, flags.get("network_rm", ()), lambda item: item["Target"]
    )
    if flags.get("constraint_add") or flags.get("constraint_rm"):
        placement = template.setdefault("Placement", {})
        added, removed = flags.get("constraint_add", ()), flags.get("constraint_rm", ())
        _relist(placement, "Constraints", list(added), removed, lambda text: text)
    if flags.get("publish_add") or flags.get("publish_rm"):
        ports = [port for text in flags.get("publish_add", ()) for port in options.published(text)]
        endpoint = spec.setdefault("EndpointSpec", {})
        _relist(endpoint, "Ports", ports, flags.get("publish_rm", ()), _target_port)
    return spec


_COUNTED = "--replicas goes with replicated services and jobs, --max-concurrent with the latter"
_FIELDS = {
    "Replicated": "replicated",
    "Global": "global",
    "ReplicatedJob": "replicated-job",
    "GlobalJob": "global-job",
}


def mode_name(mode: Spec) -> str:
    """What the mode of a service is called on the command line."""
    return next((name for field, name in _FIELDS.items() if mode.get(field) is not None), "?")


def rescale(mode: Spec, flags: Mapping[str, Any]) -> bool:
    """Put the counts among `flags` into `mode`; False if it has no such counts."""
    if "Replicated" in mode and "max_concurrent" not in flags:
        mode["Replicated"] = {"Replicas": flags["replicas"]}
        return True
    if "ReplicatedJob" in mode:
        job = mode["ReplicatedJob"]
        job["TotalCompletions"] = flags.get("replicas", job.get("TotalCompletions", 1))
        job["MaxConcurrent"] = flags.get("max_concurrent", job.get("MaxConcurrent", 1))
        return True
    return False


def _mode(flags: Mapping[str, Any]) -> Spec:
    mode = flags.get("mode", "replicated")
    if mode == "replicated-job":
        total = flags.get("replicas", 1)
        at_once = flags.get("max_concurrent", total)
        return {"ReplicatedJob": {"MaxConcurrent": at_once, "TotalCompletions": total}}
    if "max_concurrent" in flags or (mode != "replicated" and "replicas" in flags):
        raise click.UsageError(f"{_COUNTED}; this is a {mode}")
    if mode == "replicated":
        return {"Replicated": {"Replicas": flags.get("replicas", 1)}}
    return {"Global": {}} if mode == "global" else {"GlobalJob": {}}


def _preference(text: str) -> Spec:
    kind, _, descriptor = text.partition("=")
    if kind != "spread" or not descriptor:
        raise click.BadParameter(
            f"{text!r}: write spread=node.labels.NAME", param_hint="--placement-pref"
        )
    return {"Spread": {"SpreadDescriptor": descriptor}}


def _target_port(port: Spec) -> str:
    return str(port.get("TargetPort", 0))


def _name_of(field: str) -> Callable[[Spec], str]:
    return lambda item: str(item.get(field, ""))


def _relabel(holder: Spec, field: str, flags: Mapping[str, Any], flag: str) -> None:
    added = options.pairs(flags.get(f"{flag}_add", ()), f"--{flag.replace('_', '-')}-add")
    removed = set(flags.get(f"{flag}_rm", ()))
    if added or removed:
        kept = {name: text for name, text in holder.get(field, {}).items() if name not in removed}
        holder[field] = kept | added


def _relist(
    holder: Spec, field: str, added: list[Any], removed: tuple[str, ...], key: Callable[[Any], str]
) -> None:
    """Take out what `removed` names and put `added` in the place of what has its key."""
    if not added and not removed:
        return
    gone = {*removed, *(key(item) for item in added)}
    holder[field] = [item for item in holder.get(field) or [] if key(item) not in gone] + added
