"""An OCI bundle's config.json as the built-in runtime takes it. Pure.

What this runtime does not do is refused by name; the rest is as `plan` reads it.
"""

from typing import Any

from worker.runtime.cgroups.devices import USUAL
from worker.runtime.plan import PREFIX, PlanError

VERSION = "1.1.0"
_REFUSED_LINUX = ("intelRdt", "personality", "timeOffsets", "mountLabel", "uidMappings",
                  "gidMappings", "netDevices")  # fmt: skip
_REFUSED_PROCESS = ("apparmorProfile", "selinuxLabel", "ioPriority", "scheduler", "execCPUAffinity")
_REFUSED_RESOURCES = ("hugepageLimits", "network", "rdma")
_PROPAGATION = ("private", "rprivate", "slave", "rslave", "")


def check_id(identity: str) -> str:
    """Raises PlanError for what could not be a folder's name."""
    allowed = all(letter.isalnum() or letter in "+-._" for letter in identity)
    if not identity or not allowed or identity.startswith(".") or len(identity) > 1024:
        raise PlanError(f"container id {identity!r}: use letters, digits, +, -, . and _")
    return identity


def convert(config: dict[str, Any], bundle: str, identity: str, filter_: str) -> dict[str, Any]:
    """`config` with absolute paths. `filter_`: the file that the seccomp program will be in.

    Raises PlanError naming the member.
    """
    if not isinstance(config, dict) or "ociVersion" not in config:
        raise PlanError("config.json is no OCI configuration: ociVersion is missing")
    if not str(config["ociVersion"]).startswith("1."):
        raise PlanError(f"ociVersion {config['ociVersion']!r} is not 1.x")
    linux, process = config.get("linux") or {}, config.get("process") or {}
    _refuse("linux", linux, _REFUSED_LINUX)
    _refuse("process", process, _REFUSED_PROCESS)
    _refuse("linux.resources", linux.get("resources") or {}, _REFUSED_RESOURCES)
    if linux.get("rootfsPropagation", "") not in _PROPAGATION:
        text = linux["rootfsPropagation"]
        raise PlanError(f"linux.rootfsPropagation = {text!r}: only private and slave are supported")
    notes = {k: v for k, v in (config.get("annotations") or {}).items() if not k.startswith(PREFIX)}
    if linux.get("seccomp"):
        notes[f"{PREFIX}seccomp"] = filter_
    return config | {
        "root": {
            **(config.get("root") or {}),
            "path": _absolute((config.get("root") or {}).get("path", ""), bundle),
        },
        "mounts": [_mount(entry, bundle) for entry in config.get("mounts") or ()],
        "annotations": notes,
        "linux": linux
        | {
            "cgroupsPath": cgroup(linux.get("cgroupsPath") or "", identity),
            "resources": _with_usual_devices(linux.get("resources") or {}),
        },
    }


def _refuse(where: str, holder: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if holder.get(name):
            raise PlanError(f"{where}.{name} is not supported by this runtime")


def _absolute(path: str, bundle: str) -> str:
    if not path:
        raise PlanError("root.path is missing")
    return path if path.startswith("/") else f"{bundle}/{path}"


def _with_usual_devices(resources: dict[str, Any]) -> dict[str, Any]:
    """Every container has /dev/null and its like, whatever the rules."""
    rules = resources.get("devices")
    return resources | {"devices": [*rules, *USUAL]} if rules else resources


def _mount(entry: dict[str, Any], bundle: str) -> dict[str, Any]:
    if entry.get("uidMappings") or entry.get("gidMappings"):
        raise PlanError(f"mounts: {entry.get('destination')}: idmapped mounts are not supported")
    source, options = entry.get("source") or "", entry.get("options") or []
    if entry.get("type") == "shm-of":
        raise PlanError("mounts: the type shm-of is not for bundles")
    if {"bind", "rbind"} & set(options) and not source.startswith("/"):
        source = f"{bundle}/{source}"
    kind = "cgroup" if entry.get("type") == "cgroup2" else entry.get("type")
    return entry | {"source": source, "type": kind}


def cgroup(path: str, identity: str) -> str:
    """Below the mount point. Raises PlanError for systemd's form."""
    if ":" in path:
        raise PlanError(f"linux.cgroupsPath = {path!r}: systemd's cgroups are not supported")
    return path.strip("/") or f"shoal-runtime/{identity}"


def state(
    identity: str, status: str, pid: int, bundle: str, notes: dict[str, str]
) -> dict[str, Any]:
    """The state as OCI has it."""
    shown: dict[str, Any] = {"ociVersion": VERSION, "id": identity, "status": status}
    if status != "stopped":
        shown["pid"] = pid
    return shown | {"bundle": bundle, "annotations": notes}


def template(rootfs: str = "rootfs") -> dict[str, Any]:
    """A configuration to begin with: a shell, isolated as usual."""
    safe = ["nosuid", "noexec", "nodev"]
    caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    rows = [
        ("/proc", "proc", "proc", safe),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", pts),
        ("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", safe),
        ("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), caps),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs, "readonly": True},
        "hostname": "shoal",
        "mounts": [
            {"destination": target, "type": kind, "source": source, "options": options}
            for target, kind, source, options in rows
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/sched_debug", "/sys/firmware",
                            "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                              "/proc/sysrq-trigger"],
        },
    }  # fmt: skip
