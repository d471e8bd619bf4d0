"""What a start consists of, as plain data: the plan that the launcher carries out."""

from typing import Any, NamedTuple

from worker.runtime.syscalls import CLONE_NEWNET

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


class Ground(NamedTuple):
    """What a start needs before it is known which container it is for: the same for most."""

    namespaces: int  # CLONE_NEW flags of the new ones
    joins: tuple[Join, ...]  # namespaces of others to enter, but for the network's
    mapping: Mapping
    mounts: tuple[Mount, ...]  # the first of the plan's: the kernel's own at /proc and /dev
    masked: tuple[str, ...]  # of the plan's, those below /proc
    read_only: tuple[str, ...]


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


_KERNELS = {"proc", "tmpfs", "devpts", "mqueue"}  # file systems that are of no one container
GROUND_TOPS = ("/proc", "/dev")


def ground(plan: Plan) -> Ground:
    """The part of `plan` that can be done for any container like it. Pure."""
    mounts = _leading(plan.mounts)
    tops = {mount.target for mount in mounts}
    covered = any(mount.target.startswith("/proc/") for mount in plan.mounts[len(mounts) :])
    hides = tops.issuperset(GROUND_TOPS) and not covered  # what is mounted later is hidden as well
    masked, read_only = (
        tuple(path for path in paths if hides and path.startswith("/proc/"))
        for paths in (plan.masked, plan.read_only)
    )
    return Ground(
        namespaces=plan.namespaces,
        joins=tuple(join for join in plan.joins if join.kind != CLONE_NEWNET),
        mapping=plan.process.mapping,
        mounts=mounts,
        masked=masked,
        read_only=read_only,
    )


def _leading(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Those before the first that is a container's own, or lies elsewhere."""
    found: dict[str, Mount] = {}
    for mount in mounts:
        top = "/" + mount.target.split("/")[1]
        placed = mount.target in GROUND_TOPS or top in found
        if mount.kind not in _KERNELS or not placed or mount.target in found:
            break
        found[mount.target] = mount
    return tuple(found.values())
