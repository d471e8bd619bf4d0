"""crun and runc, run by their command lines on bundles equal to what the engines make."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from bench import containers_procs as procs
from bench.containers_http import Failed

# What Docker's default profile refuses, as far as it is there without a capability.
_REFUSED = [
    "acct", "add_key", "bpf", "clock_settime", "create_module", "delete_module", "fanotify_init",
    "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_mempolicy", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp",
    "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mbind", "mount",
    "mount_setattr", "move_mount", "move_pages", "nfsservctl", "open_by_handle_at", "open_tree",
    "perf_event_open", "pivot_root", "process_madvise", "quotactl", "reboot", "request_key",
    "set_mempolicy", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon",
    "sysfs", "syslog", "umount2", "unshare", "uselib", "userfaultfd", "ustat", "vhangup",
]  # fmt: skip
_CAPABILITIES = [
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
    "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
]  # fmt: skip
_RUN_S = 30


class Runtime:
    """One of the two programs. A bundle is made before its start and costs nothing then; the root
    is a plain folder, where the engines mount an overlay."""

    def __init__(self, program: str, base: Path, layer: bytes) -> None:
        self.name = program
        self._program = [program, "--root", str(base / "state")]
        self._base = base
        self._count = 0
        root = base / "root"
        root.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            tar.extractall(root)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._base / "log").open("ab"),
            timeout=_RUN_S,
            check=False,
        )
        if done.returncode:
            text = (self._base / "log").read_text(errors="replace")
            raise Failed(f"{self.name} {arguments[0]}: {text[-500:]}")

    def create(self) -> str:
        """A bundle."""
        self._count += 1
        reference = f"{self.name}-bench-{os.getpid()}-{self._count}"
        bundle = self._base / reference
        bundle.mkdir()
        configuration = _configuration(str(self._base / "root"), f"/{_cgroup()}")
        configuration["linux"]["cgroupsPath"] += f"/{reference}"
        (bundle / "config.json").write_text(json.dumps(configuration))
        return reference

    def start(self, reference: str) -> None:
        self._run("run", "--detach", "--bundle", str(self._base / reference), reference)

    def stop(self, reference: str) -> None:
        self._run("kill", reference, "KILL")

    def remove(self, reference: str) -> None:
        self._run("delete", "--force", reference)
        shutil.rmtree(self._base / reference)

    def execute(self, reference: str) -> None:
        self._run("exec", reference, "true")

    def close(self) -> None:
        for bundle in self._base.glob(f"{self.name}-bench-*"):
            with contextlib.suppress(Failed, subprocess.SubprocessError):
                self._run("delete", "--force", bundle.name)
        procs.remove_cgroup(_cgroup())
        shutil.rmtree(self._base, ignore_errors=True)


def _cgroup() -> str:
    return f"oci-bench-{os.getpid()}"


def _configuration(root: str, cgroup: str) -> dict[str, Any]:
    """As `docker create --network none` has it."""
    capabilities = [f"CAP_{name}" for name in _CAPABILITIES]
    quiet = ["nosuid", "noexec", "nodev"]

    def mount(target: str, kind: str, options: list[str]) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": kind, "options": options}

    return {
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": False},
        "hostname": "bench",
        "process": {
            "args": ["sleep", "100000"],
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "mounts": [
            mount("/proc", "proc", quiet),
            mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
            mount("/sys", "sysfs", [*quiet, "ro"]),
            mount("/sys/fs/cgroup", "cgroup", [*quiet, "ro"]),
            mount("/dev/mqueue", "mqueue", quiet),
            mount("/dev/shm", "tmpfs", [*quiet, "mode=1777", "size=67108864"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 9, "access": "rwm"},
                ]
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{"names": _REFUSED, "action": "SCMP_ACT_ERRNO"}],
            },
        },
    }
