"""The mounts that a user asks for, in Docker's three ways of asking. Pure."""

import posixpath

import msgspec

from common.errors import Invalid, NotImplementedHere
from common.model.container import ContainerConfig, HostConfig
from common.model.mounts import DriverConfig, Mount, VolumeOptions
from worker.engine.container import MountPoint

_PROPAGATION = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_FORBIDDEN = ("/", "/proc", "/dev", "/sys")


class Wish(msgspec.Struct, frozen=True):
    """A mount, and what must be made for it first."""

    point: MountPoint
    make_source: bool = False  # a bind of a folder that need not exist
    labels: tuple[tuple[str, str], ...] = ()  # of a volume to make
    options: tuple[tuple[str, str], ...] = ()  # of its driver
    copy: bool = False  # fill a new volume from the image
    declared: bool = False  # only because the image, or the configuration, names the place


def wishes(config: ContainerConfig, host: HostConfig) -> list[Wish]:
    """All mounts; what the image declares as a volume comes last, where nothing else is mounted.

    Raises Invalid, NotImplementedHere.
    """
    found = [_bind(text) for text in host.binds or ()]
    found += [_mount(mount) for mount in host.mounts or ()]
    found += [_tmpfs(target, options) for target, options in (host.tmpfs or {}).items()]
    seen: set[str] = set()
    for wish in found:
        if wish.point.destination in seen:
            raise Invalid(f"Duplicate mount point: {wish.point.destination}")
        seen.add(wish.point.destination)
    for target in config.volumes or {}:
        clean = destination(target)
        if clean not in seen:
            point = MountPoint(type="volume", destination=clean, anonymous=True)
            found.append(Wish(point, copy=True, declared=True))
    return found


def volumes_from(text: str) -> tuple[str, str]:
    """CONTAINER[:ro|rw] as its parts. Raises Invalid."""
    ref, _, mode = text.partition(":")
    if not ref or mode not in ("", "ro", "rw"):
        raise Invalid(f"invalid mode: HostConfig.VolumesFrom {text!r}: write CONTAINER[:ro|rw]")
    return ref, mode


def lent(mounts: tuple[MountPoint, ...], read_only: bool) -> dict[str, MountPoint]:
    """What another container takes over of `mounts`, by destination."""
    return {
        point.destination: msgspec.structs.replace(point, read_only=point.read_only or read_only)
        for point in mounts
        if point.type != "tmpfs"
    }


def joined(own: list[MountPoint], inherited: dict[str, MountPoint]) -> tuple[MountPoint, ...]:
    """All mounts; what was asked for goes before what another container lends."""
    taken = {point.destination for point in own}
    return (*own, *(point for place, point in inherited.items() if place not in taken))


def destination(path: str) -> str:
    """`path` made plain. Raises Invalid."""
    clean = posixpath.normpath(path)
    if not path.startswith("/"):
        raise Invalid(f"invalid mount target {path!r}: it must be an absolute path")
    clean = "/" + clean.lstrip("/")
    if clean in _FORBIDDEN or clean.startswith("/proc/"):
        raise Invalid(f"invalid mount target {path!r}: it would cover what the container needs")
    return clean


def _bind(text: str) -> Wish:
    """SOURCE:TARGET[:OPTIONS], TARGET alone for an anonymous volume."""
    parts = text.split(":")
    if len(parts) == 1:
        point = MountPoint(type="volume", destination=destination(text), anonymous=True)
        return Wish(point, copy=True)
    if len(parts) > 3 or not parts[0]:
        raise Invalid(f"invalid volume specification: {text!r}; use SOURCE:TARGET[:OPTIONS]")
    source, target, mode = parts[0], parts[1], parts[2] if len(parts) == 3 else ""
    read_only, propagation, copy = False, "", True
    for option in filter(None, mode.split(",")):
        if option in ("ro", "rw"):
            read_only = option == "ro"
        elif option in _PROPAGATION:
            propagation = option
        elif option == "nocopy":
            copy = False
        elif option not in ("z", "Z"):  # labels of SELinux, which is not here
            raise Invalid(f"invalid mode: {mode} in {text!r}")
    bind = source.startswith("/")
    point = MountPoint(
        type="bind" if bind else "volume",
        source=posixpath.normpath(source) if bind else "",
        name="" if bind else source,
        destination=destination(target),
        read_only=read_only,
        propagation=propagation,
        mode=mode,
    )
    return Wish(point, make_source=bind, copy=copy and not bind)


def _mount(mount: Mount) -> Wish:
    target = destination(mount.target)
    if mount.type == "bind":
        return _bind_mount(mount, target)
    if mount.type == "volume":
        return _volume_mount(mount, target)
    if mount.type != "tmpfs":
        raise NotImplementedHere(f"mount type {mount.type!r} is not supported")
    if mount.source:
        raise Invalid(f"mount {target}: a tmpfs has no Source")
    options = []
    if mount.tmpfs_options is not None:
        if mount.tmpfs_options.size_bytes:
            options.append(f"size={mount.tmpfs_options.size_bytes}")
        if mount.tmpfs_options.mode:
            options.append(f"mode={mount.tmpfs_options.mode:o}")
    if mount.read_only:
        options.append("ro")
    return Wish(MountPoint(type="tmpfs", destination=target, options=tuple(options)))


def _bind_mount(mount: Mount, target: str) -> Wish:
    if not mount.source.startswith("/"):
        raise Invalid(f"mount {target}: the Source of a bind must be an absolute path")
    options = mount.bind_options
    propagation = options.propagation if options is not None else ""
    if propagation and propagation not in _PROPAGATION:
        raise Invalid(f"mount {target}: invalid propagation {propagation!r}")
    point = MountPoint(
        type="bind",
        source=posixpath.normpath(mount.source),
        destination=target,
        read_only=mount.read_only,
        propagation=propagation,
        recursive=not (options is not None and options.non_recursive),
    )
    return Wish(point, make_source=options is not None and options.create_mountpoint)


def _volume_mount(mount: Mount, target: str) -> Wish:
    options = mount.volume_options
    options = options or VolumeOptions()
    driver = options.driver_config or DriverConfig()
    if driver.name not in ("", "local"):
        raise NotImplementedHere(f"mount {target}: volume driver {driver.name!r} is not supported")
    subpath = _subpath(options.subpath, target)
    point = MountPoint(
        type="volume",
        name=mount.source,
        destination=target,
        read_only=mount.read_only,
        anonymous=not mount.source,
        subpath=subpath,
    )
    return Wish(
        point,
        labels=tuple(options.labels.items()),
        options=tuple(driver.options.items()),
        copy=not (options.no_copy or subpath),  # a part of a volume must be there before
    )


def _subpath(text: str, target: str) -> str:
    """Below the volume, made plain. Raises Invalid."""
    if not text:
        return ""
    clean = posixpath.normpath(text)
    if clean.startswith(("/", "../")) or clean == ".." or "\0" in clean:
        raise Invalid(
            f"mount {target}: VolumeOptions.Subpath {text!r} must be a relative path within the "
            "volume"
        )
    return "" if clean == "." else clean


def _tmpfs(target: str, options: str) -> Wish:
    words = tuple(filter(None, options.split(",")))
    for word in words:
        name = word.partition("=")[0]
        if name not in ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks") and word not in (
            "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime",
        ):  # fmt: skip
            raise Invalid(f"tmpfs {target}: unknown option {word!r}")
    return Wish(MountPoint(type="tmpfs", destination=destination(target), options=words))
