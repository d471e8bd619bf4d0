"""Carries out the mounts of a plan, in the child, before and after it changes its root.

The image is hostile: every target is resolved with openat2 inside the new root, so that no symbolic
link of it leads out, and every mount is made detached first and then moved onto a descriptor.
"""

import contextlib
import errno
import os
import stat

from worker.runtime import syscalls as sc
from worker.runtime import targets
from worker.runtime.steps import Device, Mount, Plan

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


def prepare_root(plan: Plan, users: int = -1) -> int:
    """Mount the container's root at `plan.root`; its descriptor. `users`: the user namespace whose
    ids the layers shall show, or -1."""
    if plan.lower and users >= 0:
        mount = _mapped_overlay(plan, users)
    elif plan.lower:
        mount = overlay(plan.lower, plan.upper, plan.work, plan.root_attributes)
    else:
        try:
            mount = clone(plan.root, plan.root_attributes, recursive=True)
        except OSError as error:
            raise OSError(error.errno, f"root {plan.root}: {error.strerror}") from error
    sc.move_mount(mount, sc.AT_FDCWD, plan.root)
    return mount


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


def open_sources(plan: Plan, users: int = -1) -> dict[int, int]:
    """Detached copies of all bind sources, by index in the plan.

    Opened before anything of the image is visible, so no race can exchange one, and before the
    mounts around are made private, so that a slave or a shared one keeps its ties to the machine.
    """
    sources = {}
    for index, mount in enumerate(plan.mounts):
        if mount.kind == "shm-of":
            sources[index] = shared_memory_of(mount.source)
        elif mount.kind == "bind":
            fd = _clone_source(mount)
            if mount.idmapped and users >= 0:
                _idmap(fd, users, mount.source)
            sc.mount_propagation(fd, *(mount.propagation or (sc.MS_PRIVATE, True)))
            sources[index] = fd
    return sources


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


def mount_all(
    plan: Plan, root: int, sources: dict[int, int], cgroups: list[tuple[str, str]]
) -> None:
    """All mounts of the plan, in order, below the directory `root`."""
    for index, mount in enumerate(plan.mounts):
        try:
            if mount.kind == "cgroup":
                _mount_cgroups(mount, root, cgroups)
            else:
                _mount_one(mount, root, sources.get(index, -1))
        except OSError as error:
            text = f"mounting {mount.kind} at {mount.target}: {error.strerror}"
            raise OSError(error.errno, text) from error


def _mount_one(mount: Mount, root: int, source: int) -> None:
    if source < 0:
        source = filesystem(mount.kind, mount.data, mount.attributes)
    target = targets.open_target(root, mount.target, stat.S_ISDIR(os.fstat(source).st_mode))
    try:
        sc.move_mount(source, target)
    finally:
        os.close(target)
        os.close(source)
    if mount.target == "/dev" and mount.kind == "tmpfs":
        _fill_dev(root)


def _mount_cgroups(mount: Mount, root: int, cgroups: list[tuple[str, str]]) -> None:
    """The container's own cgroup, and nothing above it."""
    single = len(cgroups) == 1 and not cgroups[0][1]
    target = targets.open_target(root, mount.target, directory=True)
    try:
        if single:
            fd = clone(cgroups[0][0], mount.attributes)
        else:
            fd = filesystem("tmpfs", (("mode", "755"), ("size", "64k")), 0)
            for _, name in cgroups:
                os.mkdir(name, 0o555, dir_fd=fd)
        sc.move_mount(fd, target)
        if not single:
            for source, name in cgroups:
                tree = clone(source, mount.attributes)
                sc.move_mount(tree, fd, name)
                os.close(tree)
            sc.mount_setattr(fd, mount.attributes)
        os.close(fd)
    finally:
        os.close(target)


def _fill_dev(root: int) -> None:
    dev = sc.openat2(root, "/dev", os.O_DIRECTORY, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS)
    try:
        for node in _NODES:
            make_node(dev, os.path.basename(node.path), node)
        for destination, link in _LINKS:
            os.symlink(destination, os.path.basename(link), dir_fd=dev)
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=dev)
    finally:
        os.close(dev)


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
