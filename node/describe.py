"""What a node says of itself to the managers: its name, platform, capacity, labels."""

import os
import platform
from pathlib import Path

from common.config import DaemonConfig
from common.model.node import EngineDescription, EnginePlugin, NodeDescription, TLSInfo
from common.model.task import SECOND, Platform, Resources

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


def boot_id() -> str:
    """Changes when the machine starts anew; "" where the kernel does not tell."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
