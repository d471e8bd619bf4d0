"""What a start consists of, as plain data: the plan that the launcher carries out."""

from typing import Any, NamedTuple

Ids = tuple[tuple[int, int, int], ...]  # first inside, first outside, count


class Mapping(NamedTuple):
    """Of a user namespace; empty: the machine's own."""

    uids: Ids
    gids: Ids


class Join(NamedTuple):
    """A namespace to enter: a CLONE_NEW flag and a path such as /proc/1/ns/net."""

    kind: int
    path: str


class Mount(NamedTuple):
    """One mount below the root. `kind`: "bind", "cgroup", a file system type, or "shm-of": the
    /dev/shm of the mount namespace that `source` names."""

    target: str
    kind: str
    source: str
    attributes: int
    data: tuple[tuple[str, str | None], ...]
    recursive: bool
    propagation: tuple[int, bool] | None
    idmapped: bool = False  # its ids are the container's
    subpath: str = ""  # of a bind: what below `source` to show, no link leads out of that


class Device(NamedTuple):
    path: str
    kind: str  # c or b
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class Identity(NamedTuple):
    """Who the process is to be, in the image's words."""

    user: str
    groups: tuple[str, ...]


class Capabilities(NamedTuple):
    """Bit sets."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class Process(NamedTuple):
    """What is executed, and with which rights. The same for a container and an exec in it."""

    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    tty: bool
    size: tuple[int, int]  # rows, columns; 0: unset
    identity: Identity
    capabilities: Capabilities
    no_new_privileges: bool
    rlimits: tuple[tuple[int, int, int], ...]
    oom_score_adj: int | None
    seccomp: str
    mapping: Mapping


class Plan(NamedTuple):
    """All that a start needs to know."""

    namespaces: int  # CLONE_NEW flags of the new ones
    joins: tuple[Join, ...]  # namespaces of others to enter
    requires: tuple[str, ...]  # containers that must run, since their namespaces are entered
    root: str
    lower: tuple[str, ...]
    upper: str
    work: str
    root_attributes: int
    root_read_only: bool
    mounts: tuple[Mount, ...]
    devices: tuple[Device, ...]
    masked: tuple[str, ...]
    read_only: tuple[str, ...]
    sysctls: tuple[tuple[str, str], ...]
    hostname: str
    domainname: str
    process: Process
    init: bool
    cgroup: str
    resources: dict[str, Any]
    log: tuple[int, int] | None  # bytes of one file, number of files; None: keep nothing
    stdin: str  # "", "open", "once"
    runtime: str  # path of another OCI runtime that is to start it; "": this one
