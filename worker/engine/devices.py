"""The machine's devices that a container is given, and the limits on its disks."""

import os
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from common.errors import Invalid
from common.model.container import DeviceMapping, HostConfig, Limits

_ACCESS = re.compile(r"^[rwm]{1,3}$")
_RULE = re.compile(r"^([acb]) (\*|\d+):(\*|\d+) ([rwm]{1,3})$")
_THROTTLED = tuple(
    f"throttle{way}{what}Device" for way in ("Read", "Write") for what in ("Bps", "IOPS")
)
# What the container has of its own, or must not have: terminals of others, folders of sockets.
_NOT_OF_PRIVILEGED = {"pts", "shm", "fd", "mqueue", "console", ".udev", ".lxc", ".lxd-mounts"}


class Node(NamedTuple):
    """A device as a container shall have it."""

    path: str
    kind: str  # b or c
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str


class Devices(NamedTuple):
    """What was found on the machine: nodes, and `blockIO` as OCI has it."""

    nodes: tuple[Node, ...]
    block: dict[str, Any]


def check(host: HostConfig) -> None:
    """Raises Invalid, naming the field."""
    for mapping in host.devices or ():
        target = mapping.path_in_container or mapping.path_on_host
        if not (mapping.path_on_host.startswith("/") and target.startswith("/")):
            raise Invalid(f"HostConfig.Devices: {mapping.path_on_host!r} is not an absolute path")
        if ".." in target.split("/"):
            raise Invalid(f"HostConfig.Devices: {target!r} must not contain ..")
        if not _ACCESS.match(mapping.cgroup_permissions or "rwm"):
            text = mapping.cgroup_permissions
            raise Invalid(f"HostConfig.Devices: {text!r} is not made of r, w and m")
    for line in host.device_cgroup_rules or ():
        rule(line)
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise Invalid(f"HostConfig.BlkioWeight = {host.blkio_weight} is not in 10 … 1000")
    for entry in host.blkio_weight_device or ():
        if not 10 <= entry.weight <= 1000:
            raise Invalid(f"HostConfig.BlkioWeightDevice: {entry.weight} is not in 10 … 1000")
    for name, entries in _throttles(host).items():
        for throttle in entries:
            if throttle.rate <= 0:
                raise Invalid(f"HostConfig.{name}: the rate of {throttle.path} must be positive")


def rule(line: str) -> dict[str, Any]:
    """`c 1:3 rwm` as OCI has it. Raises Invalid."""
    match = _RULE.match(line)
    if match is None:
        raise Invalid(f"HostConfig.DeviceCgroupRules: {line[:40]!r} is not like 'c 1:3 rwm'")
    numbers = {
        name: int(text) for name, text in (("major", match[2]), ("minor", match[3])) if text != "*"
    }
    return {"allow": True, "type": match[1], **numbers, "access": match[4]}


def rules(host: HostConfig, nodes: tuple[Node, ...]) -> list[dict[str, Any]]:
    """What the container may use besides the usual devices."""
    given = [
        {"allow": True, "type": n.kind, "major": n.major, "minor": n.minor, "access": n.access}
        for n in nodes
    ]
    return given + [rule(line) for line in host.device_cgroup_rules or ()]


def find(host: HostConfig) -> Devices:
    """Looks them up on the machine. Blocking. Raises Invalid for what is no device."""
    nodes: list[Node] = []
    if host.privileged:
        nodes += _below("/dev", "/dev", "rwm", _NOT_OF_PRIVILEGED)
    for mapping in host.devices or ():
        nodes += _mapped(mapping)
    unique = {node.path: node for node in nodes}
    return Devices(tuple(unique.values()), block(host))


def _mapped(mapping: DeviceMapping) -> list[Node]:
    source, access = mapping.path_on_host, mapping.cgroup_permissions or "rwm"
    target = mapping.path_in_container or source
    try:
        if os.path.isdir(source):
            found = list(_below(source, target, access, set()))
        else:
            found = [_node(source, target, access)]
    except OSError as error:
        raise Invalid(f"HostConfig.Devices: {source}: {error.strerror}") from error
    if not found or not found[0].kind:
        raise Invalid(f"HostConfig.Devices: {source} is not a device")
    return found


def _below(folder: str, target: str, access: str, without: set[str]) -> Iterator[Node]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{target}/{entry.name}"
            if entry.name in without:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, path, access, without)
            elif not entry.is_symlink() and (node := _node(entry.path, path, access)).kind:
                yield node


def _node(source: str, target: str, access: str) -> Node:
    """Its kind is "" for what is no device."""
    info = os.stat(source)
    kind = "b" if stat.S_ISBLK(info.st_mode) else "c" if stat.S_ISCHR(info.st_mode) else ""
    numbers = os.major(info.st_rdev), os.minor(info.st_rdev)
    mode = stat.S_IMODE(info.st_mode)
    return Node(target, kind, *numbers, mode, info.st_uid, info.st_gid, access)


def _throttles(host: HostConfig) -> dict[str, Any]:
    return {
        "BlkioDeviceReadBps": host.blkio_device_read_bps or (),
        "BlkioDeviceWriteBps": host.blkio_device_write_bps or (),
        "BlkioDeviceReadIOps": host.blkio_device_read_iops or (),
        "BlkioDeviceWriteIOps": host.blkio_device_write_iops or (),
    }


def block(host: HostConfig) -> dict[str, Any]:
    """The limits on disks, as OCI's `blockIO`. Blocking. Raises Invalid for what is no disk."""
    found: dict[str, Any] = {}
    if host.blkio_weight:
        found["weight"] = host.blkio_weight
    if host.blkio_weight_device:
        found["weightDevice"] = [
            _disk(e.path) | {"weight": e.weight} for e in host.blkio_weight_device
        ]
    for name, entries in _throttles(host).items():
        if entries:
            kind = name.removeprefix("BlkioDevice").replace("IOps", "IOPS")
            found[f"throttle{kind}Device"] = [_disk(e.path) | {"rate": e.rate} for e in entries]
    return found


def same_disks(one: HostConfig, other: HostConfig) -> bool:
    """Whether both have the same limits on disks."""
    return all(
        getattr(one, name) == getattr(other, name)
        for name in Limits.__struct_fields__
        if name.startswith("blkio_")
    )


def changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What to write so that `blockIO` is `new` where it was `old`: a disk that is named no more is
    told 0, which lifts its limit. Pure."""
    result = dict(new)
    for name, value in ("weightDevice", "weight"), *((kind, "rate") for kind in _THROTTLED):
        kept = {(entry["major"], entry["minor"]) for entry in new.get(name, ())}
        lifted = [
            {"major": entry["major"], "minor": entry["minor"], value: 0}
            for entry in old.get(name, ())
            if (entry["major"], entry["minor"]) not in kept
        ]
        if lifted:
            result[name] = [*lifted, *new.get(name, ())]
    return result


def _disk(path: str) -> dict[str, int]:
    try:
        info = os.stat(path)
    except OSError as error:
        raise Invalid(f"HostConfig.Blkio…: {path}: {error.strerror}") from error
    if not stat.S_ISBLK(info.st_mode):
        raise Invalid(f"HostConfig.Blkio…: {path} is not a block device")
    return {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}
