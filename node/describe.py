"""What a node says of itself to the managers: its name, platform, capacity, labels."""

import contextlib
import os
import platform
import random
from pathlib import Path

from common.config import DaemonConfig
from common.model.node import EngineDescription, EnginePlugin, NodeDescription, TLSInfo
from common.model.task import SECOND, Platform, Resources
from node.files import write_atomically

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_PLUGINS = (
    ("Log", "json-file"),
    ("Log", "local"),
    ("Log", "none"),
    ("Network", "bridge"),
    ("Network", "host"),
    ("Network", "none"),
    ("Network", "overlay"),
    ("Volume", "local"),
)


def describe(config: DaemonConfig, version: str, tls_info: TLSInfo) -> NodeDescription:
    """This machine as it is now. Capacity is all it has; what tasks reserve is counted off it."""
    return NodeDescription(
        hostname=config.hostname or platform.node(),
        platform=Platform(architecture=platform.machine(), os="linux"),
        resources=Resources(
            nano_cpus=(os.cpu_count() or 1) * SECOND,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        ),
        engine=EngineDescription(
            engine_version=version,
            labels=config.labels,
            plugins=tuple(EnginePlugin(type=kind, name=name) for kind, name in _PLUGINS),
        ),
        tls_info=tls_info,
    )


def boot_id(run_dir: Path, rng: random.Random) -> str:
    """A text of 16 characters that changes when the machine starts anew. Blocking.

    It is kept in `run_dir`, which a reboot empties; what the kernel says is only a second witness,
    for a folder that stays: machines that share a kernel, as the lab's, share that.
    """
    kernel = _kernel_boot_id()
    path = run_dir / "boot"
    with contextlib.suppress(OSError):
        known, _, own = path.read_text().strip().partition(" ")
        if known == kernel and own:
            return own
    own = f"{rng.getrandbits(64):016x}"
    write_atomically(path, f"{kernel} {own}\n".encode())
    return own


def _kernel_boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
