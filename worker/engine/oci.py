"""The OCI runtime configuration of a container. Pure: paths in, a plain object out."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from common.model.container import ContainerConfig, HostConfig
from worker.engine import devices, logoptions, modes, request
from worker.engine.container import MountPoint, Record
from worker.engine.devices import Devices, Node
from worker.runtime import capabilities
from worker.runtime.cgroups.devices import DENY_ALL, USUAL
from worker.runtime.plan import PREFIX, SUBPATH

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_SHM_SIZE = 64 << 20
_SMALL_SHARE = 10_000_000  # billionths of a CPU
_LONGEST_PERIOD = 1_000_000
_NAMESPACE_FILES = {
    "pid": "pid",
    "ipc": "ipc",
    "network": "net",
    "uts": "uts",
}  # below /proc/PID/ns
_PERIOD = 100_000  # µs, of the CPU quota


class Donor(NamedTuple):
    """A running container whose namespaces another one shares."""

    id: str
    pid: int

    def namespace(self, kind: str) -> str:
        return f"/proc/{self.pid}/ns/{kind}"


class Surroundings(NamedTuple):
    """What the node adds to a container's own wishes."""

    folder: Path
    lower: tuple[Path, ...]
    netns: str  # "": the machine's own network
    cgroup: str
    seccomp: str  # file of the filter; "": none
    # Cgroup v1 filters devices. Without that no mount of the container may have working device
    # nodes, and it may make none.
    device_filter: bool
    files: Path  # folder of hosts, hostname and resolv.conf
    memory: Path  # folder of the container's files that are in memory only
    devices: Devices
    userns: str  # mapping of the user namespace; "": the machine's
    donors: dict[str, Donor]  # containers whose namespaces are shared, by OCI's names of the kinds


def configuration(record: Record, around: Surroundings) -> dict[str, Any]:
    """`config.json` for one start of the container."""
    config, host = record.config, record.host_config
    own_names = not host.uts_mode
    return {
        "ociVersion": "1.1.0",
        "root": {"path": str(around.folder / "rootfs"), "readonly": host.readonly_rootfs},
        "hostname": config.hostname if own_names else "",
        "domainname": config.domainname if own_names else "",
        "process": {
            "args": [record.path, *record.args],
            **process(config, host, device_filter=around.device_filter),
        },
        "mounts": mounts(record, around),
        "linux": {
            "namespaces": modes.namespaces(
                host,
                around.netns,
                {
                    kind: donor.namespace(_NAMESPACE_FILES[kind])
                    for kind, donor in around.donors.items()
                },
            ),
            "devices": [_device(node) for node in around.devices.nodes],
            "cgroupsPath": around.cgroup,
            "resources": resources(host, around.devices),
            "sysctl": host.sysctls or {},
            "maskedPaths": list(_paths(host.masked_paths, MASKED, host.privileged)),
            "readonlyPaths": list(_paths(host.readonly_paths, READ_ONLY, host.privileged)),
        },
        "annotations": _annotations(record, around),
    }


def for_another(
    configuration: dict[str, Any], runtime: str, profile: dict[str, Any] | None, init: str
) -> dict[str, Any]:
    """The same for the runtime at a path: it makes the seccomp filter from `profile`, and the
    program `init`, if any, is process 1."""
    process = configuration["process"]
    mounts = configuration["mounts"]
    if init:
        process = process | {"args": ["/sbin/docker-init", "--", *process["args"]]}
        mounts = [*mounts, _mount("/sbin/docker-init", "bind", ["bind", "ro"], init)]
    notes = {**configuration["annotations"], f"{PREFIX}runtime": runtime}
    linux = configuration["linux"] | ({"seccomp": profile} if profile else {})
    parts = {"process": process, "mounts": mounts, "annotations": notes, "linux": linux}
    return configuration | parts


def process(
    config: ContainerConfig,
    host: HostConfig,
    privileged: bool = False,
    device_filter: bool = True,
) -> dict[str, Any]:
    """The `process` member without its arguments; an exec has the same."""
    names = granted(host, privileged, device_filter)
    no_new_privileges = request.security(host.security_opt or ()).no_new_privileges
    return {
        "terminal": config.tty,
        "env": list(config.env or ()),
        "cwd": config.working_dir or "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "noNewPrivileges": no_new_privileges,
        "oomScoreAdj": host.oom_score_adj or None,
        "rlimits": [
            {
                "type": f"RLIMIT_{limit.name.upper().removeprefix('RLIMIT_')}",
                "soft": limit.soft,
                "hard": limit.hard,
            }
            for limit in host.ulimits or ()
        ],
    }


def granted(host: HostConfig, privileged: bool = False, device_filter: bool = True) -> list[str]:
    """The container's capabilities; an exec may be privileged on its own."""
    wide = host.privileged or privileged
    drop = (host.cap_drop or ()) + (() if wide or device_filter else ("CAP_MKNOD",))
    return capabilities.chosen(host.cap_add or (), drop, wide)


def process_notes(
    config: ContainerConfig, host: HostConfig, seccomp: str, userns: str = ""
) -> dict[str, str]:
    """The annotations that belong to a process: who it is, and its filter."""
    return {
        f"{PREFIX}user": config.user or "0",
        f"{PREFIX}groups": json.dumps(host.group_add or ()),
        f"{PREFIX}seccomp": seccomp,
        **({f"{PREFIX}userns": userns} if userns else {}),
    }


def _annotations(record: Record, around: Surroundings) -> dict[str, str]:
    config, host = record.config, record.host_config
    notes = dict(host.annotations or {})
    notes |= process_notes(config, host, around.seccomp, around.userns)
    notes |= {
        f"{PREFIX}overlay.lower": json.dumps([str(path) for path in around.lower]),
        f"{PREFIX}overlay.upper": str(around.folder / "upper"),
        f"{PREFIX}overlay.work": str(around.folder / "work"),
    }
    if not (around.device_filter or host.privileged):
        notes[f"{PREFIX}overlay.nodev"] = "true"
    if around.donors:
        ids = sorted({donor.id for donor in around.donors.values()})
        notes[f"{PREFIX}requires"] = json.dumps(ids)
    if host.init:
        notes[f"{PREFIX}init"] = "true"
    if config.open_stdin:
        notes[f"{PREFIX}stdin"] = "once" if config.stdin_once else "open"
    log = logoptions.kept(host)
    if log is None:
        notes[f"{PREFIX}log"] = "none"
    else:
        notes |= {
            f"{PREFIX}log.max-size": str(log.max_size),
            f"{PREFIX}log.max-files": str(log.files),
        }
    return notes


def _device(node: Node) -> dict[str, Any]:
    return {
        "path": node.path,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def _paths(
    own: tuple[str, ...] | None, default: tuple[str, ...], privileged: bool
) -> tuple[str, ...]:
    if own is not None:
        return own
    return () if privileged else default


def mounts(record: Record, around: Surroundings) -> list[dict[str, Any]]:
    """All mounts in order: the kernel's, the three files, then the user's by depth."""
    host = record.host_config
    ro = [] if host.privileged else ["ro"]
    safe = ["nosuid", "noexec", "nodev"]
    entries = [
        _mount("/proc", "proc", safe),
        _mount("/dev", "tmpfs", ["nosuid", "mode=755", "size=64k"]),
        _mount(
            "/dev/pts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        *_shared_memory(host, around.donors.get("ipc")),
        _mount("/dev/mqueue", "mqueue", safe),
        _mount("/sys", "sysfs", [*safe, *ro]),
        _mount("/sys/fs/cgroup", "cgroup", [*safe, *ro]),
    ]
    taken = {point.destination for point in record.mounts}
    entries += [
        _mount(f"/etc/{name}", "bind", ["bind"], str(around.files / name))
        for name in ("hosts", "hostname", "resolv.conf")
        if f"/etc/{name}" not in taken
    ]
    ordered = sorted(record.mounts, key=lambda point: point.destination.count("/"))
    nodev = not (around.device_filter or host.privileged)
    entries += [user_mount(point, nodev) for point in ordered]
    given = ["bind", "ro", "idmap", *safe]
    return entries + [
        _mount(file.destination, "bind", given, str(around.memory / str(number)))
        for number, file in enumerate(record.files)
    ]


def _shared_memory(host: HostConfig, donor: Donor | None) -> list[dict[str, Any]]:
    """/dev/shm belongs to the IPC namespace in users' eyes."""
    if host.ipc_mode == "none":
        return []
    if host.ipc_mode == "host":
        return [_mount("/dev/shm", "bind", ["bind"], "/dev/shm")]
    if donor is not None:
        return [_mount("/dev/shm", "shm-of", [], donor.namespace("mnt"))]
    size = host.shm_size or _SHM_SIZE
    return [_mount("/dev/shm", "tmpfs", ["nosuid", "noexec", "nodev", "mode=1777", f"size={size}"])]


def user_mount(point: MountPoint, nodev: bool = False) -> dict[str, Any]:
    """One mount that the user asked for."""
    if point.type == "tmpfs":
        options = ["nosuid", "nodev", *point.options]
        if not {"exec", "noexec"} & set(options):
            options.append("noexec")
        return _mount(point.destination, "tmpfs", options)
    options = ["rbind" if point.recursive else "bind", point.propagation or "rprivate"]
    options += ["ro"] * point.read_only + ["nodev"] * nodev
    if point.type == "volume":
        options.append("idmap")  # with a user namespace its ids are the container's
    if point.subpath:
        options.append(f"{SUBPATH}{point.subpath}")
    return _mount(point.destination, "bind", options, point.source)


def _mount(target: str, kind: str, options: list[str], source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": options}


def resources(host: HostConfig, found: Devices | None = None) -> dict[str, Any]:
    """`linux.resources`. Without a swap limit a container may swap as much as its memory."""
    memory: dict[str, Any] = {}
    if host.memory:
        memory = {"limit": host.memory, "swap": host.memory_swap or 2 * host.memory}
    if host.memory_reservation:
        memory["reservation"] = host.memory_reservation
    if host.oom_kill_disable:
        memory["disableOOMKiller"] = True
    if host.memory_swappiness is not None and host.memory_swappiness >= 0:
        memory["swappiness"] = host.memory_swappiness
    cpu: dict[str, Any] = {
        "shares": host.cpu_shares,
        "quota": host.cpu_quota,
        "period": host.cpu_period,
        "cpus": host.cpuset_cpus,
        "mems": host.cpuset_mems,
    }
    if host.nano_cpus:
        # The kernel refuses quotas below 1 ms: a very small share needs a longer period.
        period = _PERIOD if host.nano_cpus >= _SMALL_SHARE else _LONGEST_PERIOD
        cpu |= {"quota": host.nano_cpus * period // 10**9, "period": period}
    result: dict[str, Any] = {
        "memory": memory,
        "cpu": {name: value for name, value in cpu.items() if value},
        "devices": []
        if host.privileged
        else [DENY_ALL, *USUAL, *devices.rules(host, found.nodes if found else ())],
    }
    if found and found.block:
        result["blockIO"] = found.block
    if host.pids_limit:
        result["pids"] = {"limit": host.pids_limit}
    return result
