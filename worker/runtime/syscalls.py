"""The system calls that Python 3.11 has no function for.

Each function is one call and raises OSError with its name. Imported by the keeper, so: standard
library only, and little of it. `PyDLL` keeps the interpreter's lock during a call: a fork with the
lock released would leave the child without it, and none of these calls waits for anything.
"""

import ctypes
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_INTO_CGROUP = 0x200000000

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_IDMAP = 0x100000

MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NAME = 15
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

# From 424 on the numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_PIDFD_OPEN, _CLONE3, _CLOSE_RANGE, _OPENAT2, _MOUNT_SETATTR = 434, 435, 436, 437, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)

_CLOSE_RANGE_CLOEXEC = 4
_MOST_FILES = 1 << 30  # far above any descriptor
_ATTR_ATIME = 0x70
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes)

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def _check(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _call(name: str, number: int, *arguments: "int | bytes | ctypes.Array[ctypes.c_char]") -> int:
    """A bare int would be passed with 32 bits, so each is made a long."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(name, int(_syscall(ctypes.c_long(number), *converted)))


def clone3(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork with `flags`: (child's pid, pidfd), and (0, -1) in the child.

    The interpreter is told as it is by os.fork. The caller must have a single thread.
    """
    pidfd = ctypes.c_int(-1)
    if cgroup_fd >= 0:
        flags |= CLONE_INTO_CGROUP
    arguments = ctypes.create_string_buffer(
        struct.pack(
            "11Q",
            flags | CLONE_PIDFD,
            ctypes.addressof(pidfd),
            0,
            0,
            17,  # SIGCHLD
            0,
            0,
            0,
            0,
            0,
            max(cgroup_fd, 0),
        ),
        88,
    )
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_syscall(ctypes.c_long(_CLONE3), arguments, ctypes.c_long(88)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, f"clone3: {os.strerror(code)}")
    return pid, pidfd.value


def setns(fd: int, kinds: int) -> None:
    _check("setns", _libc.setns(fd, kinds))


def unshare(kinds: int) -> None:
    _check("unshare", _libc.unshare(kinds))


def pidfd_open(pid: int) -> int:
    return _call("pidfd_open", _PIDFD_OPEN, pid, 0)


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of a process that is dead and perhaps reaped by another parent.

    None: the kernel is too old to know (before 6.15), or nobody has reaped the process yet.
    """
    buffer = ctypes.create_string_buffer(struct.pack("Q", _PIDFD_INFO_EXIT), 64)
    if _libc.ioctl(pidfd, ctypes.c_ulong(_PIDFD_GET_INFO), buffer) < 0:
        return None
    mask = struct.unpack_from("Q", buffer.raw)[0]
    if not mask & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("i", buffer.raw, 60)[0])


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _call("openat2", _OPENAT2, directory, os.fsencode(path), how, len(how))


def open_tree(directory: int, path: str, flags: int) -> int:
    """A descriptor of a mount; with OPEN_TREE_CLONE of a new, detached copy of it."""
    return _call("open_tree", _OPEN_TREE, directory, os.fsencode(path), flags | os.O_CLOEXEC)


def move_mount(mount: int, directory: int, path: str = "") -> None:
    """Attach the mount of descriptor `mount` at `path` under `directory`, or on it."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    _call("move_mount", _MOVE_MOUNT, mount, b"", directory, os.fsencode(path), flags)


def mount_setattr(mount: int, set_: int, clear: int = 0, recursive: bool = False) -> None:
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if set_ & _ATTR_ATIME:  # not bits but a number, which has to be cleared to be set
        clear |= _ATTR_ATIME
    attributes = struct.pack("QQQQ", set_, clear, 0, 0)
    _call("mount_setattr", _MOUNT_SETATTR, mount, b"", flags, attributes, len(attributes))


def mount_idmap(mount: int, user_namespace: int) -> None:
    """Have a detached mount show ids as the namespace maps them."""
    attributes = struct.pack("QQQQ", MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    _call("mount_setattr", _MOUNT_SETATTR, mount, b"", AT_EMPTY_PATH, attributes, len(attributes))


def set_file_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2), which tell of no error."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)


def read_only_copy(path: str) -> int:
    """A descriptor of `path` in a detached read-only mount; -1 where that is not allowed."""
    try:
        fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE)
    except OSError:
        return -1
    try:
        mount_setattr(fd, MOUNT_ATTR_RDONLY)
    except OSError:
        os.close(fd)
        return -1
    return fd


def mount_propagation(mount: int, kind: int, recursive: bool = True) -> None:
    """`kind`: MS_PRIVATE, MS_SLAVE or MS_SHARED."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    attributes = struct.pack("QQQQ", 0, 0, kind, 0)
    _call("mount_setattr", _MOUNT_SETATTR, mount, b"", flags, attributes, len(attributes))


def fsopen(kind: str) -> int:
    return _call("fsopen", _FSOPEN, kind.encode(), 1)


def fsconfig(context: int, key: str, value: str | None) -> None:
    """Set one option. The kernel takes fewer than 256 bytes of `value`."""
    if value is None:
        _call("fsconfig", _FSCONFIG, context, FSCONFIG_SET_FLAG, key.encode(), 0, 0)
    else:
        text = os.fsencode(value)
        _call("fsconfig", _FSCONFIG, context, FSCONFIG_SET_STRING, key.encode(), text, 0)


def fsconfig_create(context: int) -> None:
    _call("fsconfig", _FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0)


def fsmount(context: int, attributes: int) -> int:
    return _call("fsmount", _FSMOUNT, context, 1, attributes)


def pivot_root(new: str, old: str) -> None:
    _call("pivot_root", _PIVOT_ROOT, os.fsencode(new), os.fsencode(old))


def make_private(path: str) -> None:
    """mount --make-rprivate PATH"""
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _check("mount", _libc.mount(b"none", os.fsencode(path), None, flags, None))


def unmount(path: str, flags: int = 0) -> None:
    _check("umount", _libc.umount2(os.fsencode(path), flags))


def sethostname(name: str) -> None:
    data = os.fsencode(name)
    _check("sethostname", _libc.sethostname(data, ctypes.c_size_t(len(data))))


def setdomainname(name: str) -> None:
    data = os.fsencode(name)
    _check("setdomainname", _libc.setdomainname(data, ctypes.c_size_t(len(data))))


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` on, also those that Python does not know of."""
    _call("close_range", _CLOSE_RANGE, first, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def close_all_but(*kept: int) -> None:
    """Close every descriptor behind stderr that is not among `kept`."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, _MOST_FILES)


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    _check("prctl", _prctl(option, value, third, 0, 0))


def set_name(name: str) -> None:
    """What ps shows: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    _check("capset", _libc.capset(header, struct.pack("6I", *low, *high)))


def load_seccomp(program: bytes) -> None:
    """Load a filter: 8 bytes for each instruction."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 16
    )
    address = ctypes.addressof(fprog)
    _check("seccomp", _prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, 0, 0))


def trim_allocator() -> None:
    """Keep large buffers in the heap: each freshly mapped one would fault page by page."""
    m_mmap_threshold, m_trim_threshold = -3, -1
    _libc.mallopt(m_mmap_threshold, 4 << 20)
    _libc.mallopt(m_trim_threshold, 8 << 20)
