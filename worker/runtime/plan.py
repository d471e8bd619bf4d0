"""From an OCI runtime configuration to the steps of a start. Pure: reads nothing, changes nothing.

What OCI has no word for stands in annotations:

    org.shoal.overlay.lower   layer folders, topmost first, as a JSON list; then root.path is where
                              the overlay is mounted (inside the container's mount namespace only)
    org.shoal.overlay.upper, org.shoal.overlay.work
    org.shoal.overlay.nodev   "true": no device node of the root works
    org.shoal.user            "user[:group]", resolved in the image's own passwd and group files
    org.shoal.groups          more groups, names or numbers, as a JSON list
    org.shoal.seccomp         a file that holds the filter as the kernel takes it
    org.shoal.init            "true": a small init is process 1
    org.shoal.log.max-size, org.shoal.log.max-files, org.shoal.log ("none": keep nothing)
    org.shoal.stdin           "open", or "once": closed when the first attached client closes
    org.shoal.userns          {"uids": [[inside, outside, count]], "gids": …}: a user namespace
    org.shoal.runtime         path of another OCI runtime that is to start it
    org.shoal.requires        containers that must run at the start, as a JSON list: their
                              namespaces are entered by paths below /proc
"""

import json
import resource
from typing import Any

from worker.runtime import capabilities
from worker.runtime import syscalls as sc
from worker.runtime.steps import Capabilities, Device, Identity, Join, Mapping, Mount, Plan, Process

PREFIX = "org.shoal."
SUBPATH = f"{PREFIX}subpath="  # option of a bind: what is below its source, links kept inside

_NAMESPACES = {
    "pid": sc.CLONE_NEWPID,
    "mount": sc.CLONE_NEWNS,
    "ipc": sc.CLONE_NEWIPC,
    "uts": sc.CLONE_NEWUTS,
    "cgroup": sc.CLONE_NEWCGROUP,
    "network": sc.CLONE_NEWNET,
}
ATTRIBUTES = {
    "ro": sc.MOUNT_ATTR_RDONLY,
    "nosuid": sc.MOUNT_ATTR_NOSUID,
    "nodev": sc.MOUNT_ATTR_NODEV,
    "noexec": sc.MOUNT_ATTR_NOEXEC,
    "noatime": sc.MOUNT_ATTR_NOATIME,
    "strictatime": sc.MOUNT_ATTR_STRICTATIME,
}
PLAIN = {"rw", "suid", "dev", "exec", "relatime", "defaults"}
_PROPAGATION = {
    "private": (sc.MS_PRIVATE, False),
    "rprivate": (sc.MS_PRIVATE, True),
    "slave": (sc.MS_SLAVE, False),
    "rslave": (sc.MS_SLAVE, True),
    "shared": (sc.MS_SHARED, False),
    "rshared": (sc.MS_SHARED, True),
}


class PlanError(ValueError):
    """The configuration asks for something wrong, or for what this runtime does not have."""


def plan(config: dict[str, Any]) -> Plan:
    """The steps for `config`. Raises PlanError naming the field."""
    linux, notes = config.get("linux") or {}, config.get("annotations") or {}
    root = config.get("root") or {}
    if not root.get("path"):
        raise PlanError("root.path is missing")
    namespaces, joins = _namespaces(linux.get("namespaces") or ())
    lower = tuple(json.loads(notes.get(f"{PREFIX}overlay.lower", "[]")))
    return Plan(
        namespaces=namespaces,
        joins=joins,
        requires=tuple(json.loads(notes.get(f"{PREFIX}requires", "[]"))),
        root=root["path"],
        lower=lower,
        upper=notes.get(f"{PREFIX}overlay.upper", ""),
        work=notes.get(f"{PREFIX}overlay.work", ""),
        root_attributes=_root_attributes(notes),
        root_read_only=bool(root.get("readonly")),
        mounts=tuple(mount(entry) for entry in config.get("mounts") or ()),
        devices=tuple(_device(entry) for entry in linux.get("devices") or ()),
        masked=tuple(linux.get("maskedPaths") or ()),
        read_only=tuple(linux.get("readonlyPaths") or ()),
        sysctls=tuple((_sysctl(k), str(v)) for k, v in (linux.get("sysctl") or {}).items()),
        hostname=config.get("hostname") or "",
        domainname=config.get("domainname") or "",
        process=process(config.get("process") or {}, notes),
        init=notes.get(f"{PREFIX}init") == "true",
        cgroup=_relative(linux.get("cgroupsPath") or ""),
        resources=linux.get("resources") or {},
        log=_log(notes),
        stdin=notes.get(f"{PREFIX}stdin", ""),
        runtime=notes.get(f"{PREFIX}runtime", ""),
    )


def process(entry: dict[str, Any], notes: dict[str, str]) -> Process:
    """The `process` member, whose user may be a name of the image."""
    args, user = tuple(entry.get("args") or ()), entry.get("user") or {}
    if not args:
        raise PlanError("process.args is empty: the image names no command, so give one")
    groups = tuple(json.loads(notes.get(f"{PREFIX}groups", "[]")))
    numeric = f"{user.get('uid', 0)}:{user.get('gid', 0)}"
    caps = entry.get("capabilities") or {}
    console = entry.get("consoleSize") or {}
    return Process(
        args=args,
        env=environment(entry.get("env") or ()),
        cwd=entry.get("cwd") or "/",
        tty=bool(entry.get("terminal")),
        size=(int(console.get("height", 0)), int(console.get("width", 0))),
        identity=Identity(
            notes.get(f"{PREFIX}user", numeric),
            groups + tuple(str(g) for g in user.get("additionalGids") or ()),
        ),
        capabilities=Capabilities(*(_mask(caps.get(name)) for name in Capabilities._fields)),
        no_new_privileges=bool(entry.get("noNewPrivileges")),
        rlimits=tuple(_rlimit(limit) for limit in entry.get("rlimits") or ()),
        oom_score_adj=entry.get("oomScoreAdj"),
        seccomp=notes.get(f"{PREFIX}seccomp", ""),
        mapping=_mapping(notes.get(f"{PREFIX}userns", "")),
    )


def _mapping(text: str) -> Mapping:
    given = json.loads(text or "{}")
    uids, gids = (tuple(tuple(row) for row in given.get(name, ())) for name in ("uids", "gids"))
    return Mapping(uids, gids)


def environment(lines: "tuple[str, ...] | list[str]") -> dict[str, str]:
    """`NAME=value` lines; a later one wins. A name alone is not set."""
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, equals, value in pairs if equals and name}


def mount(entry: dict[str, Any]) -> Mount:
    """One member of `mounts`. Options that are no flags go to the file system."""
    target, kind = entry.get("destination") or "", entry.get("type") or ""
    if not target.startswith("/"):
        raise PlanError(f"mounts: destination {target!r} is not an absolute path")
    attributes, data, recursive, propagation, idmapped = 0, [], False, None, False
    subpath = ""
    for option in entry.get("options") or ():
        if option in ATTRIBUTES:
            attributes |= ATTRIBUTES[option]
        elif option in ("bind", "rbind"):
            kind, recursive = "bind", option == "rbind"
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option == "idmap":
            idmapped = True
        elif option.startswith(SUBPATH):
            subpath = option.removeprefix(SUBPATH)
        elif option not in PLAIN:
            name, equals, value = option.partition("=")
            data.append((name, value if equals else None))
    if kind == "bind" and data:
        raise PlanError(f"mounts: {target}: a bind mount has no option {data[0][0]!r}")
    source = entry.get("source") or ""
    return Mount(
        target, kind, source, attributes, tuple(data), recursive, propagation, idmapped, subpath
    )


def _namespaces(entries: "list[dict[str, str]] | tuple[()]") -> tuple[int, tuple[Join, ...]]:
    flags, joins = 0, []
    for entry in entries:
        kind, path = entry.get("type", ""), entry.get("path", "")
        if kind not in _NAMESPACES:
            raise PlanError(f"linux.namespaces: {kind!r} is not supported by the built-in runtime")
        if path and kind == "mount":
            raise PlanError("linux.namespaces: a mount namespace must be a new one")
        if path:
            joins.append(Join(_NAMESPACES[kind], path))
        else:
            flags |= _NAMESPACES[kind]
    if not flags & sc.CLONE_NEWNS:
        raise PlanError("linux.namespaces: a mount namespace is needed")
    return flags, tuple(joins)


def _device(entry: dict[str, Any]) -> Device:
    return Device(
        entry["path"],
        entry.get("type", "c"),
        int(entry.get("major", 0)),
        int(entry.get("minor", 0)),
        int(entry.get("fileMode", 0o666)),
        int(entry.get("uid", 0)),
        int(entry.get("gid", 0)),
    )


def _sysctl(name: str) -> str:
    """net.ipv4.ip_forward -> net/ipv4/ip_forward; a name with slashes is a path already."""
    path = name if "/" in name else name.replace(".", "/")
    if ".." in path.split("/") or path.startswith("/"):
        raise PlanError(f"linux.sysctl: {name!r} is not a sysctl")
    return path


def _rlimit(entry: dict[str, Any]) -> tuple[int, int, int]:
    number = getattr(resource, entry["type"], None)
    if not isinstance(number, int):
        raise PlanError(f"process.rlimits: unknown limit {entry['type']!r}")
    soft, hard = (_infinite(entry[key]) for key in ("soft", "hard"))
    return number, soft, hard


def _infinite(value: int) -> int:
    return resource.RLIM_INFINITY if value < 0 or value >= 1 << 63 else value


def _relative(path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if not parts or ".." in parts:
        raise PlanError(f"linux.cgroupsPath: {path!r} must name a cgroup below the mount point")
    return "/".join(parts)


def _root_attributes(notes: dict[str, str]) -> int:
    return sc.MOUNT_ATTR_NODEV if notes.get(f"{PREFIX}overlay.nodev") == "true" else 0


def _mask(names: "list[str] | None") -> int:
    return capabilities.mask(names or [])


def _log(notes: dict[str, str]) -> tuple[int, int] | None:
    if notes.get(f"{PREFIX}log") == "none":
        return None
    size = int(notes.get(f"{PREFIX}log.max-size", "0"))
    return size, int(notes.get(f"{PREFIX}log.max-files", "1"))
