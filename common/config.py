"""What an operator may set for one daemon: a TOML file, and the command line over it."""

import ipaddress
import tomllib
from pathlib import Path

import msgspec

from common.errors import Invalid


class RaftTiming(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast managers notice each other's loss. The same on all managers."""

    heartbeat_ms: int = 100  # a leader's sign of life; well above the network's round trip
    election_min_ms: int = 500  # at least three heartbeats, or leaders never last
    election_max_ms: int = 1000

    def __post_init__(self) -> None:
        if self.heartbeat_ms <= 0 or self.election_min_ms < 3 * self.heartbeat_ms:
            raise ValueError("raft.election_min_ms must be at least 3 x raft.heartbeat_ms")
        if self.election_max_ms <= self.election_min_ms:
            raise ValueError("raft.election_max_ms must exceed raft.election_min_ms")


class DaemonConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of `shoald`."""

    state_dir: Path = Path("/var/lib/shoal")  # survives reboots: containers, images, Raft log
    run_dir: Path = Path("/run/shoal")  # sockets and process ids; gone after a reboot
    hosts: tuple[str, ...] = ()  # unix://PATH or tcp://ADDR:PORT; default unix://RUN_DIR/shoal.sock
    socket_group: str = "shoal"  # may use the API socket besides root, if the group exists
    hostname: str = ""  # default: the machine's
    labels: dict[str, str] = {}  # engine labels, for placement
    cgroup_root: Path = Path("/sys/fs/cgroup")  # where cgroup2 is mounted, or version 1's folders
    cgroup_parent: str = "shoal"  # below each hierarchy's mount point
    runtime: str = "shoal"  # for containers that name none: shoal, crun, runc, or of `runtimes`
    userns_remap: str = ""  # user[:group] of /etc/subuid and subgid, or "default": dockremap
    runtimes: dict[str, str] = {}  # more OCI runtimes: name = "/path/to/program"
    listen_port: int = 2377  # managers' cluster listener
    # Address or interface, and port: over what init and join were told, at each start.
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 4789  # VXLAN, UDP; the same on all nodes
    mtu: int = 0  # of the underlay; 0: ask the interface of the node's address
    node_pool: str = "10.192.0.0/10"  # cut into one /22 for each node, for its containers
    overlay_pool: str = "10.0.0.0/8"  # cut into /24 for overlay networks; node_pool is left out
    dns: tuple[str, ...] = ()  # upstream resolvers; default: the machine's
    insecure_registries: tuple[str, ...] = ()  # host[:port] reached by plain HTTP
    stop_grace_s: float = 10.0
    container_open_files: int = 0  # soft limit in containers; default: that of the daemon's start
    log_level: str = "info"
    raft: RaftTiming = RaftTiming()

    def __post_init__(self) -> None:
        for name in ("listen_port", "data_path_port"):
            if not 0 < getattr(self, name) < 65536:
                raise ValueError(f"{name} is {getattr(self, name)}; use a port from 1 to 65535")
        for name in ("node_pool", "overlay_pool"):
            try:
                ipaddress.IPv4Network(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}; write it as in 10.0.0.0/8") from error
        for name, path in self.runtimes.items():
            if not path.startswith("/") or name == "shoal":
                raise ValueError(f"runtimes.{name} = {path!r}: give another name and a full path")
        if self.container_open_files < 0:
            raise ValueError(f"container_open_files is {self.container_open_files}; use 0 or more")
        if self.stop_grace_s < 0:
            raise ValueError(f"stop_grace_s is {self.stop_grace_s:g}; use 0 or more")

    @property
    def api_hosts(self) -> tuple[str, ...]:
        """Where the HTTP API listens."""
        return self.hosts or (f"unix://{self.run_dir}/shoal.sock",)


def load(path: Path | None, overrides: dict[str, object] | None = None) -> DaemonConfig:
    """The settings in `path`, if given, with `overrides` over them.

    Raises Invalid, naming the file and field.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Invalid(f"cannot read the configuration file {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise Invalid(f"{path} is not valid TOML: {error}") from error
        except UnicodeDecodeError as error:
            raise Invalid(f"{path} is not valid TOML: it is not UTF-8 text") from error
    values |= overrides or {}
    try:
        return msgspec.convert(values, DaemonConfig, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise Invalid(f"{path or 'command line'}: {error}") from error


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).absolute()  # the daemon's helpers have other working folders
    raise TypeError(f"expected {kind.__name__}, got {value!r}")
