"""Carries out the mounts of a plan, in the child, before and after it changes its root.

The image is hostile: every target is resolved with openat2 inside the new root, so that no symbolic
link of it leads out, and every mount is made detached first and then moved onto a descriptor.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from worker.runtime import syscalls as sc
from worker.runtime import targets
from worker.runtime.steps import GROUND_TOPS, Device, Mount, Plan

Parts = tuple[tuple[Mount, int], ...]
_COVERED = "/dev/pts"  # nothing can be reached of the folder that it is mounted on

_ATTEMPTS = 64
_LONGEST = 255  # fsconfig takes fewer bytes than 256

_NODES = (
    Device("/dev/null", "c", 1, 3, 0o666, 0, 0),
    Device("/dev/zero", "c", 1, 5, 0o666, 0, 0),
    Device("/dev/full", "c", 1, 7, 0o666, 0, 0),
    Device("/dev/random", "c", 1, 8, 0o666, 0, 0),
    Device("/dev/urandom", "c", 1, 9, 0o666, 0, 0),
    Device("/dev/tty", "c", 5, 0, 0o666, 0, 0),
)
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)


def overlay(lower: tuple[str, ...], upper: str = "", work: str = "", attributes: int = 0) -> int:
    """A detached overlay, its descriptor. Without `upper` it is read-only.

    By the new mount interface: mount(2) cuts its options at one page and would lose layers.
    """
    context = sc.fsopen("overlay")
    held: list[int] = []
    try:
        sc.fsconfig(context, "source", "overlay")
        for layer in lower:
            sc.fsconfig(context, "lowerdir+", _short(layer, held))
        if upper:
            sc.fsconfig(context, "upperdir", _short(upper, held))
            sc.fsconfig(context, "workdir", _short(work, held))
        sc.fsconfig_create(context)
        return sc.fsmount(context, attributes)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{complaint(context)}") from error
    finally:
        for fd in (context, *held):
            os.close(fd)


def filesystem(kind: str, data: tuple[tuple[str, str | None], ...], attributes: int) -> int:
    """A new, detached file system of `kind`."""
    context = sc.fsopen(kind)
    try:
        if kind != "sysfs":
            sc.fsconfig(context, "source", kind)
        for name, value in data:
            sc.fsconfig(context, name, value)
        sc.fsconfig_create(context)
        return sc.fsmount(context, attributes)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{complaint(context)}") from error
    finally:
        os.close(context)


def clone_inside(path: str, subpath: str, attributes: int = 0, recursive: bool = False) -> int:
    """The same of `subpath` inside the folder `path`, which may be hostile: no link of it leads
    out, whoever changes it meanwhile."""
    folder = os.open(path, targets.DIRECTORY)
    try:
        inner = _open_inside(folder, subpath)
        try:
            return clone("", attributes, recursive, at=inner)
        finally:
            os.close(inner)
    except (FileNotFoundError, NotADirectoryError):
        message = f"subpath {subpath!r} does not exist in {path}"
        raise FileNotFoundError(errno.ENOENT, message) from None
    finally:
        os.close(folder)


def _open_inside(folder: int, subpath: str) -> int:
    for _ in range(_ATTEMPTS):
        # EAGAIN: somebody renames folders while a `..` is followed, and it might lead out.
        with contextlib.suppress(BlockingIOError):
            return sc.openat2(folder, subpath, os.O_PATH, targets.INSIDE)
    raise FileNotFoundError(errno.ENOENT, subpath)


def clone(path: str, attributes: int = 0, recursive: bool = False, at: int = sc.AT_FDCWD) -> int:
    """A detached copy of the mount at `path`: a bind mount that is nowhere yet."""
    flags = sc.OPEN_TREE_CLONE | (sc.AT_RECURSIVE if recursive else 0)
    fd = sc.open_tree(at, path, flags | (0 if path else sc.AT_EMPTY_PATH))
    if attributes:
        try:
            sc.mount_setattr(fd, attributes, recursive=recursive)
        except OSError:
            os.close(fd)
            raise
    return fd


def prepare_root(plan: Plan) -> None:
    """Mount the container's root at `plan.root`."""
    mount = make_root(plan)
    sc.move_mount(mount, sc.AT_FDCWD, plan.root)
    os.close(mount)


def open_place(root: str) -> int:
    """Where the root is to be mounted: no mount made before it may cover that."""
    try:
        return os.open(root, targets.DIRECTORY)
    except OSError as error:
        raise OSError(error.errno, f"root {root}: {error.strerror}") from error


def make_root(plan: Plan, users: int = -1) -> int:
    """The container's root, detached; its descriptor. `users`: the user namespace whose ids the
    layers shall show, or -1."""
    if plan.lower and users >= 0:
        return _mapped_overlay(plan, users)
    if plan.lower:
        return overlay(plan.lower, plan.upper, plan.work, plan.root_attributes)
    try:
        return clone(plan.root, plan.root_attributes, recursive=True)
    except OSError as error:
        raise OSError(error.errno, f"root {plan.root}: {error.strerror}") from error


def _mapped_overlay(plan: Plan, users: int) -> int:
    held: list[int] = []

    def mapped(path: str) -> str:
        held.append(clone(path))
        _idmap(held[-1], users, path)
        return f"/proc/self/fd/{held[-1]}"

    try:
        lower = tuple(mapped(layer) for layer in plan.lower)
        if not plan.upper:
            return overlay(lower, attributes=plan.root_attributes)
        folder = mapped(os.path.dirname(plan.upper))  # both must be of one mount
        upper, work = (f"{folder}/{os.path.basename(path)}" for path in (plan.upper, plan.work))
        return overlay(lower, upper, work, plan.root_attributes)
    finally:
        for fd in held:
            os.close(fd)


def _idmap(mount: int, users: int, path: str) -> None:
    try:
        sc.mount_idmap(mount, users)
    except OSError as error:
        text = f"the file system of {path} cannot map user ids (use --userns=host)"
        raise OSError(error.errno, f"{text}: {error.strerror}") from error


class Sources(NamedTuple):
    """Detached copies of what a plan mounts from outside."""

    binds: dict[int, int]  # by index in the plan
    cgroups: list[tuple[int, str]]  # with names below /sys/fs/cgroup; "": there


def open_binds(plan: Plan, users: int = -1) -> dict[int, int]:
    found = {}
    for index, mount in enumerate(plan.mounts):
        if mount.kind == "shm-of":
            found[index] = shared_memory_of(mount.source)
        elif mount.kind == "bind":
            found[index] = _open_bind(mount, users)
    return found


def open_cgroups(plan: Plan, folders: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """`folders`: those of the container's cgroup, with their names."""
    if all(mount.kind != "cgroup" for mount in plan.mounts):
        return []
    return [(clone(path), name) for path, name in folders]


def _open_bind(mount: Mount, users: int) -> int:
    fd = _clone_source(mount)
    if mount.idmapped and users >= 0:
        _idmap(fd, users, mount.source)
    sc.mount_propagation(fd, *(mount.propagation or (sc.MS_PRIVATE, True)))
    return fd


def _clone_source(mount: Mount) -> int:
    if mount.subpath:
        return clone_inside(mount.source, mount.subpath, mount.attributes, mount.recursive)
    try:
        return clone(mount.source, mount.attributes, mount.recursive)
    except FileNotFoundError:
        message = f"bind source path does not exist: {mount.source}"
        raise FileNotFoundError(errno.ENOENT, message) from None


def shared_memory_of(namespace: str) -> int:
    """A detached copy of /dev/shm in another mount namespace, whose root is not trusted."""
    own, other = (os.open(p, os.O_RDONLY | os.O_CLOEXEC) for p in ("/proc/self/ns/mnt", namespace))
    try:
        sc.setns(other, sc.CLONE_NEWNS)
        try:
            root = os.open("/", targets.DIRECTORY)
            shm = sc.openat2(root, "/dev/shm", os.O_PATH | os.O_DIRECTORY, targets.INSIDE)
            os.close(root)
            tree = clone("", at=shm)
            os.close(shm)
        finally:
            sc.setns(own, sc.CLONE_NEWNS)
    finally:
        os.close(own)
        os.close(other)
    return tree


def mount_ground(entries: tuple[Mount, ...], root: int) -> tuple[Parts, int]:
    """Make the file systems of a ground, at places that exist; those that hold the others, and the
    folder of /dev that is covered by the terminals, or -1."""
    found, covered = [], -1
    for entry in entries:
        with _named(entry):
            mount = _make(entry)
            if entry.target == _COVERED:
                covered = targets.open_target(root, entry.target, directory=True)
            place(mount, root, entry.target)
        if entry.target in GROUND_TOPS:
            found.append((entry, mount))
        else:
            os.close(mount)
    return tuple(found), covered


def place_ground(parts: Parts, root: int) -> None:
    """Move them to the container's root."""
    for entry, mount in parts:
        with _named(entry):
            place(mount, root, entry.target)
        os.close(mount)


def mount_all(plan: Plan, root: int, sources: Sources, first: int, covered: int) -> None:
    """All mounts of the plan from the index `first` on, in order, below the directory `root`.
    `covered`: as `mount_ground` gave it."""
    for index, entry in enumerate(plan.mounts[first:], first):
        with _named(entry):
            if entry.kind == "cgroup":
                _mount_cgroups(entry, root, sources.cgroups, covered)
            else:
                mount = sources.binds[index] if index in sources.binds else _make(entry)
                place(mount, root, entry.target)
                os.close(mount)


@contextlib.contextmanager
def _named(mount: Mount) -> Iterator[None]:
    """What fails within, fails for the sake of `mount`."""
    try:
        yield
    except OSError as error:
        text = f"mounting {mount.kind} at {mount.target}: {error.strerror}"
        raise OSError(error.errno, text) from error


def _make(mount: Mount) -> int:
    fd = filesystem(mount.kind, mount.data, mount.attributes)
    if mount.target == "/dev" and mount.kind == "tmpfs":
        _fill_dev(fd)
    return fd


def place(mount: int, root: int, target: str) -> None:
    """Move a mount to `target` in the directory `root`."""
    fd = targets.open_target(root, target, stat.S_ISDIR(os.fstat(mount).st_mode))
    try:
        sc.move_mount(mount, fd)
    finally:
        os.close(fd)


def _mount_cgroups(mount: Mount, root: int, cgroups: list[tuple[int, str]], covered: int) -> None:
    """The container's own cgroup, and nothing above it.

    The folder that holds the hierarchies is the covered one: a file system of its own would make
    the map that every memory cgroup has of them larger, and take some 20 KB.
    """
    if len(cgroups) == 1 and not cgroups[0][1]:
        top = cgroups[0][0]
    else:
        own = covered < 0
        top = filesystem("tmpfs", (("mode", "755"), ("size", "64k")), 0) if own else covered
        for _, name in cgroups:
            os.mkdir(name, 0o555, dir_fd=top)
        top = top if own else clone("", at=covered)
    place(top, root, mount.target)
    for tree, name in cgroups:
        if tree != top:
            sc.move_mount(tree, top, name)
            os.close(tree)
    sc.mount_setattr(top, mount.attributes, recursive=True)
    os.close(top)


def _fill_dev(dev: int) -> None:
    for node in _NODES:
        make_node(dev, os.path.basename(node.path), node)
    for destination, link in _LINKS:
        os.symlink(destination, os.path.basename(link), dir_fd=dev)
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(name, 0o755, dir_fd=dev)


def make_node(directory: int, name: str, node: Device) -> None:
    """A device file. The caller's umask is 0."""
    kind = stat.S_IFBLK if node.kind == "b" else stat.S_IFCHR
    os.mknod(name, node.mode | kind, os.makedev(node.major, node.minor), dir_fd=directory)
    if node.uid or node.gid:
        os.chown(name, node.uid, node.gid, dir_fd=directory)


def make_devices(plan: Plan, root: int) -> None:
    """The devices that were asked for besides the usual ones."""
    for device in plan.devices:
        parent, name = os.path.split(device.path)
        folder = targets.open_target(root, parent, directory=True)
        try:
            with contextlib.suppress(FileExistsError):
                # O_PATH descriptors work as dir_fd
                make_node(folder, name, device)
        finally:
            os.close(folder)


def enter(root: int) -> None:
    """Make `root` the root and leave nothing of the old one behind."""
    old = os.open("/", targets.DIRECTORY)
    try:
        os.fchdir(root)
        sc.pivot_root(".", ".")
        os.fchdir(old)
        sc.unmount(".", sc.MNT_DETACH)
    finally:
        os.close(old)
    os.chdir("/")


def _short(path: str, held: list[int]) -> str:
    if len(os.fsencode(path)) <= _LONGEST:
        return path
    held.append(os.open(path, targets.DIRECTORY))
    return f"/proc/self/fd/{held[-1]}"


def complaint(context: int) -> str:
    """What the kernel says of a refused option; read(2) on the context gives its log."""
    with contextlib.suppress(OSError):
        text = os.read(context, 512).decode(errors="replace").strip()
        return f" ({text})" if text else ""
    return ""
