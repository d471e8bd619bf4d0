"""Control groups, version 1 and 2, behind one interface.

Each version has a module that decides (pure: an OCI `linux.resources` in, files and values out) and
carries it out. A cgroup is named by its path below the mount point: "shoal/<id>". Used by the
keeper, so: standard library only.
"""

import errno
import os

from worker.runtime.cgroups.base import ROOT, Hierarchy, Usage
from worker.runtime.cgroups.v1 import V1
from worker.runtime.cgroups.v2 import V2

__all__ = ["ROOT", "V1", "V1_CONTROLLERS", "V2", "Hierarchy", "Usage", "detect"]
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "devices", "blkio")


def detect(root: str = ROOT) -> Hierarchy:
    """The hierarchy that this machine has at `root`. Raises OSError if there is none."""
    if os.path.exists(f"{root}/cgroup.controllers"):
        return V2(root)
    controllers = tuple(c for c in V1_CONTROLLERS if os.path.isdir(f"{root}/{c}"))
    if "memory" not in controllers or "pids" not in controllers:
        raise OSError(
            errno.ENOENT, f"no cgroup controllers at {root}: mount cgroup2 there, or cgroup v1"
        )
    return V1(root, controllers)
