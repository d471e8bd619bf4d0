"""The default seccomp filter: what Docker's default profile refuses, as a BPF program.

The profile is kept as the calls that are refused, by number, for each architecture; all other
numbers up to the newest call known here are allowed, and what is newer does not exist (ENOSYS), so
that libraries fall back. Profiles that users give are in `seccomp_profile`.
"""

import errno
import hashlib
import os
import platform
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from worker.runtime import bpf, seccomp_profile

_DENY = bpf.ERRNO | errno.EPERM
_UNKNOWN = bpf.ERRNO | errno.ENOSYS

# Actions that look at an argument; beyond any real action.
_CLONE, _PERSONALITY, _SOCKET = -1, -2, -3

_NAMESPACES = 0x7E020000  # every CLONE_NEW flag that clone(2) takes
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_AF_VSOCK = 40
_MOST_CACHED = 100

# Refused unless the container has the capability. "" is never granted.
_GROUPS: dict[str, str] = {
    "": "add_key create_module get_kernel_syms io_uring_enter io_uring_register io_uring_setup "
    "kexec_file_load kexec_load keyctl migrate_pages move_pages nfsservctl query_module "
    "request_key swapoff swapon _sysctl sysfs uselib userfaultfd ustat vm86 vm86old afs_syscall "
    "getpmsg putpmsg tuxcall vserver security epoll_ctl_old epoll_wait_old bdflush ulimit",
    "CAP_SYS_ADMIN": "fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount "
    "mount_setattr move_mount open_tree pivot_root quotactl quotactl_fd setdomainname sethostname "
    "setns umount umount2 unshare",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}
# What CAP_SYS_ADMIN opens besides its own group.
_ADMIN_TOO = ("CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG")


class Architecture(NamedTuple):
    """One calling convention: its audit number, the newest call known, and numbers by name."""

    audit: int
    newest: int
    numbers: dict[str, int]


def _numbers(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


_NEW = (  # the same number everywhere
    "io_uring_setup 425 io_uring_enter 426 io_uring_register 427 open_tree 428 move_mount 429 "
    "fsopen 430 fsconfig 431 fsmount 432 fspick 433 clone3 435 pidfd_getfd 438 "
    "process_madvise 440 mount_setattr 442 quotactl_fd 443 set_mempolicy_home_node 450 "
)
_X86_64 = Architecture(
    0xC000003E,
    462,
    _numbers(
        _NEW + "socket 41 clone 56 syslog 103 uselib 134 personality 135 ustat 136 sysfs 139 "
        "vhangup 153 pivot_root 155 _sysctl 156 acct 163 settimeofday 164 mount 165 umount2 166 "
        "swapon 167 swapoff 168 reboot 169 sethostname 170 setdomainname 171 iopl 172 ioperm 173 "
        "create_module 174 init_module 175 delete_module 176 get_kernel_syms 177 "
        "query_module 178 quotactl 179 nfsservctl 180 getpmsg 181 putpmsg 182 afs_syscall 183 "
        "tuxcall 184 security 185 lookup_dcookie 212 epoll_ctl_old 214 epoll_wait_old 215 "
        "clock_settime 227 vserver 236 mbind 237 set_mempolicy 238 get_mempolicy 239 "
        "kexec_load 246 add_key 248 request_key 249 keyctl 250 migrate_pages 256 unshare 272 "
        "move_pages 279 perf_event_open 298 fanotify_init 300 open_by_handle_at 304 setns 308 "
        "kcmp 312 finit_module 313 kexec_file_load 320 bpf 321 userfaultfd 323"
    ),
)
_I386 = Architecture(
    0x40000003,
    462,
    _numbers(
        _NEW + "mount 21 umount 22 stime 25 acct 51 umount2 52 ulimit 58 ustat 62 sethostname 74 "
        "settimeofday 79 uselib 86 swapon 87 reboot 88 ioperm 101 syslog 103 iopl 110 "
        "vhangup 111 vm86old 113 swapoff 115 clone 120 setdomainname 121 create_module 127 "
        "init_module 128 delete_module 129 get_kernel_syms 130 quotactl 131 bdflush 134 sysfs 135 "
        "personality 136 afs_syscall 137 _sysctl 149 vm86 166 query_module 167 nfsservctl 169 "
        "getpmsg 188 putpmsg 189 pivot_root 217 lookup_dcookie 253 clock_settime 264 vserver 273 "
        "mbind 274 get_mempolicy 275 set_mempolicy 276 kexec_load 283 add_key 286 "
        "request_key 287 keyctl 288 migrate_pages 294 unshare 310 move_pages 317 "
        "perf_event_open 336 fanotify_init 338 open_by_handle_at 342 setns 346 kcmp 349 "
        "finit_module 350 bpf 357 socket 359 userfaultfd 374 clock_settime64 404"
    ),
)
_AARCH64 = Architecture(
    0xC00000B7,
    462,
    _numbers(
        _NEW + "lookup_dcookie 18 umount2 39 mount 40 pivot_root 41 nfsservctl 42 vhangup 58 "
        "quotactl 60 acct 89 personality 92 unshare 97 kexec_load 104 init_module 105 "
        "delete_module 106 clock_settime 112 syslog 116 reboot 142 sethostname 161 "
        "setdomainname 162 settimeofday 170 socket 198 add_key 217 request_key 218 keyctl 219 "
        "clone 220 swapon 224 swapoff 225 mbind 235 get_mempolicy 236 set_mempolicy 237 "
        "migrate_pages 238 move_pages 239 perf_event_open 241 fanotify_init 262 "
        "open_by_handle_at 265 setns 268 kcmp 272 finit_module 273 bpf 280 userfaultfd 282 "
        "kexec_file_load 294"
    ),
)
_COMPAT_NAMES = {"x86_64": ("i386",)}
_MACHINES = {"x86_64": (_X86_64, _I386), "aarch64": (_AARCH64,)}


def default_filter(capabilities: frozenset[str], machine: str = "") -> bytes:
    """The filter for a container that has `capabilities`, as the kernel takes it.

    Raises ValueError on a machine whose call numbers are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise ValueError(f"no seccomp profile for {machine}; use --security-opt seccomp=unconfined")
    return bpf.assemble(
        [
            (
                architecture.audit,
                [(first, _block(action)) for first, action in actions(architecture, capabilities)],
            )
            for architecture in _MACHINES[machine]
        ]
    )


def default_profile(capabilities: frozenset[str], machine: str = "") -> dict[str, Any]:
    """The default filter as OCI's `linux.seccomp`, for runtimes that compile it themselves.

    What is newer than the calls known here does not exist, too.
    """
    machine = machine or platform.machine()
    rules: list[dict[str, Any]] = []
    allowed: set[str] = set()
    denied: set[str] = set()
    names = [machine, *_COMPAT_NAMES.get(machine, ())]
    for architecture, name in zip(_MACHINES[machine], names, strict=True):
        table = seccomp_profile.numbers(name)
        refused = set(_denied(architecture, capabilities))
        denied |= refused
        allowed |= {n for n, number in table.items() if number <= architecture.newest}
    special = {"personality", "socket"}
    if "CAP_SYS_ADMIN" not in capabilities:
        special |= {"clone", "clone3"}
        masked = {"index": 0, "value": _NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append(_rule(["clone"], args=[masked]))
    rules.append(_rule(sorted(allowed - denied - special)))
    rules.append({"names": sorted(denied), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM})
    rules += [
        _rule(["personality"], args=[{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}])
        for value in _PERSONALITIES
    ]
    vsock = {"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_NE"}
    rules.append(_rule(["socket"], args=[vsock]))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [seccomp_profile.OURS[name] for name in names],
        "syscalls": rules,
    }


def _rule(names: list[str], **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **more}


def actions(architecture: Architecture, capabilities: frozenset[str]) -> list[tuple[int, int]]:
    """(first number, action) of each range of equal action, ascending from 0."""
    special = {
        number: _DENY for name, number in _denied(architecture, capabilities).items() if name
    }
    numbers = architecture.numbers
    special[numbers["personality"]] = _PERSONALITY
    special[numbers["socket"]] = _SOCKET
    if "CAP_SYS_ADMIN" not in capabilities:
        special[numbers["clone"]] = _CLONE
        special[numbers["clone3"]] = _UNKNOWN  # its flags are out of a filter's sight
    ranges: list[tuple[int, int]] = []
    for number in range(architecture.newest + 1):
        action = special.get(number, bpf.ALLOW)
        if not ranges or ranges[-1][1] != action:
            ranges.append((number, action))
    return [*ranges, (architecture.newest + 1, _UNKNOWN)]


def _denied(architecture: Architecture, capabilities: frozenset[str]) -> dict[str, int]:
    held = set(capabilities)
    if "CAP_SYS_ADMIN" in held:
        held |= set(_ADMIN_TOO)
    names = [n for cap, text in _GROUPS.items() if cap not in held for n in text.split()]
    return {name: architecture.numbers[name] for name in names if name in architecture.numbers}


def _block(action: int) -> bpf.Block:
    allow, deny = bpf.result(bpf.ALLOW), bpf.result(_DENY)
    load = (bpf.LOAD, 0, 0, bpf.FIRST_ARGUMENT)
    if action == _CLONE:
        return (load, (bpf.JUMP_SET, 0, 1, _NAMESPACES), *deny, *allow)
    if action == _SOCKET:
        return (load, (bpf.JUMP_EQUAL, 0, 1, _AF_VSOCK), *deny, *allow)
    if action == _PERSONALITY:
        last = len(_PERSONALITIES)
        tests = ((bpf.JUMP_EQUAL, last - i, 0, value) for i, value in enumerate(_PERSONALITIES))
        return (load, *tests, *deny, *allow)
    return bpf.result(action)


class FilterCache:
    """Filters as files, made once for each profile; the keeper reads them by path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[tuple[frozenset[str], str], Path] = {}

    def path(self, capabilities: frozenset[str], profile: str = "") -> Path:
        """The file that holds the filter for a container with `capabilities`: the default one, or
        that of a `profile` in Docker's format. Raises ValueError."""
        known = self._made.get((capabilities, profile))
        if known is None:
            known = self._write(_program(capabilities, profile))
            if len(self._made) >= _MOST_CACHED:
                self._made.clear()
            self._made[capabilities, profile] = known
        return known

    def _write(self, program: bytes) -> Path:
        name = hashlib.sha256(program).hexdigest()[:16]
        path = self._directory / f"{name}.bpf"
        if not path.exists() or path.read_bytes() != program:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Two containers may start at once, each in a thread: a name for each.
            descriptor, temporary = tempfile.mkstemp(dir=self._directory)
            with os.fdopen(descriptor, "wb") as file:
                file.write(program)
            os.rename(temporary, path)
        return path


def _program(capabilities: frozenset[str], profile: str) -> bytes:
    if not profile:
        return default_filter(capabilities)
    return seccomp_profile.compile_oci(
        seccomp_profile.resolve(profile, capabilities, kernel_version())
    )


def kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)
