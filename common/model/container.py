"""Containers of one node, as Docker's API takes and shows them."""

import msgspec

from common.model.base import Model
from common.model.mounts import Mount
from common.model.task import HealthConfig, Ulimit

_f = msgspec.field


class ContainerConfig(Model, frozen=True, kw_only=True):
    """The part of a container that an image could also say (`Config` of inspect)."""

    hostname: str = _f(default_factory=str)
    domainname: str = _f(default_factory=str)
    user: str = _f(default_factory=str)
    attach_stdin: bool = _f(default_factory=bool)
    attach_stdout: bool = _f(default_factory=bool)
    attach_stderr: bool = _f(default_factory=bool)
    exposed_ports: dict[str, dict[str, str]] | None = None
    tty: bool = _f(default_factory=bool, name="Tty")
    open_stdin: bool = _f(default_factory=bool)
    stdin_once: bool = _f(default_factory=bool)
    env: tuple[str, ...] | None = _f(default_factory=lambda: None)
    cmd: tuple[str, ...] | str | None = _f(default_factory=lambda: None)
    healthcheck: HealthConfig | None = None
    image: str = _f(default_factory=str)
    volumes: dict[str, dict[str, str]] | None = _f(default_factory=lambda: None)
    working_dir: str = _f(default_factory=str)
    entrypoint: tuple[str, ...] | str | None = _f(default_factory=lambda: None)
    network_disabled: bool | None = None
    mac_address: str | None = None
    labels: dict[str, str] | None = _f(default_factory=lambda: {})
    stop_signal: str | None = None
    stop_timeout: int | None = None
    shell: tuple[str, ...] | None = None


class PortBinding(Model, frozen=True, kw_only=True):
    host_ip: str = _f(default_factory=str, name="HostIp")
    host_port: str = _f(default_factory=str)


class RestartRule(Model, frozen=True, kw_only=True):
    """`name`: "", no, always, unless-stopped, on-failure."""

    name: str = _f(default_factory=str)
    maximum_retry_count: int = _f(default_factory=int)


class LogConfig(Model, frozen=True, kw_only=True):
    type: str = _f(default_factory=lambda: "json-file")
    config: dict[str, str] | None = _f(default_factory=lambda: {})


class DeviceMapping(Model, frozen=True, kw_only=True):
    """A device of the host, or a folder of them; `cgroup_permissions`: of r, w and m."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class WeightDevice(Model, frozen=True, kw_only=True):
    path: str = ""
    weight: int = 0


class ThrottleDevice(Model, frozen=True, kw_only=True):
    """`rate`: bytes or operations a second."""

    path: str = ""
    rate: int = 0


class Limits(Model, frozen=True, kw_only=True):
    """What a container may use at the most; 0, empty or missing: no limit. All of them can be
    changed while it runs."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    nano_cpus: int = _f(default=0, name="NanoCpus")
    cpu_shares: int = _f(default=0, name="CpuShares")
    cpu_period: int = _f(default=0, name="CpuPeriod")
    cpu_quota: int = _f(default=0, name="CpuQuota")
    cpuset_cpus: str = _f(default="", name="CpusetCpus")
    cpuset_mems: str = ""
    pids_limit: int | None = None
    blkio_weight: int = 0
    blkio_weight_device: tuple[WeightDevice, ...] | None = None
    blkio_device_read_bps: tuple[ThrottleDevice, ...] | None = None
    blkio_device_write_bps: tuple[ThrottleDevice, ...] | None = None
    blkio_device_read_iops: tuple[ThrottleDevice, ...] | None = _f(
        default=None, name="BlkioDeviceReadIOps"
    )
    blkio_device_write_iops: tuple[ThrottleDevice, ...] | None = _f(
        default=None, name="BlkioDeviceWriteIOps"
    )


class HostConfig(Limits, frozen=True, kw_only=True):
    """What the host gives a container."""

    binds: tuple[str, ...] | None = None
    network_mode: str = _f(default_factory=lambda: "default")
    port_bindings: dict[str, tuple[PortBinding, ...] | None] | None = None
    publish_all_ports: bool = False
    restart_policy: RestartRule = _f(default_factory=RestartRule)
    auto_remove: bool = _f(default_factory=bool)
    log_config: LogConfig = _f(default_factory=LogConfig)
    mounts: tuple[Mount, ...] | None = None
    volumes_from: tuple[str, ...] | None = None
    tmpfs: dict[str, str] | None = None
    cap_add: tuple[str, ...] | None = None
    cap_drop: tuple[str, ...] | None = None
    privileged: bool = False
    readonly_rootfs: bool = False
    security_opt: tuple[str, ...] | None = None
    dns: tuple[str, ...] | None = _f(default=None, name="Dns")
    dns_options: tuple[str, ...] | None = _f(default=None, name="DnsOptions")
    dns_search: tuple[str, ...] | None = _f(default=None, name="DnsSearch")
    extra_hosts: tuple[str, ...] | None = None
    links: tuple[str, ...] | None = None
    group_add: tuple[str, ...] | None = None
    init: bool | None = None
    ipc_mode: str = ""
    pid_mode: str = _f(default="", name="PidMode")
    uts_mode: str = _f(default="", name="UTSMode")
    userns_mode: str = ""
    cgroupns_mode: str = ""
    cgroup_parent: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    ulimits: tuple[Ulimit, ...] | None = None
    oom_score_adj: int = 0
    oom_kill_disable: bool | None = None
    memory_swappiness: int | None = None
    devices: tuple[DeviceMapping, ...] | None = None
    device_cgroup_rules: tuple[str, ...] | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    runtime: str = ""
    annotations: dict[str, str] | None = None  # for the OCI runtime
    storage_opt: dict[str, str] | None = None  # refused, with the reason
    container_id_file: str = _f(default="", name="ContainerIDFile")  # written by the client


class EndpointIPAM(Model, frozen=True, kw_only=True):
    ipv4_address: str = _f(default="", name="IPv4Address")
    ipv6_address: str = _f(default="", name="IPv6Address")


class EndpointConfig(Model, frozen=True, kw_only=True):
    aliases: tuple[str, ...] | None = None
    links: tuple[str, ...] | None = None
    ipam_config: EndpointIPAM | None = _f(default=None, name="IPAMConfig")
    mac_address: str = ""
    network_id: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0


class NetworkingConfig(Model, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointConfig | None] | None = None


class ContainerCreate(ContainerConfig, frozen=True, kw_only=True):
    """The body of `POST /containers/create`."""

    host_config: HostConfig = _f(default_factory=HostConfig)
    networking_config: NetworkingConfig | None = None


class NetworkConnect(Model, frozen=True, kw_only=True):
    """The body of `POST /networks/{id}/connect`."""

    container: str = ""
    endpoint_config: EndpointConfig | None = None


class NetworkDisconnect(Model, frozen=True, kw_only=True):
    """The body of `POST /networks/{id}/disconnect`."""

    container: str = ""
    force: bool = False
