"""Whether a bind's source is on a mount that mounts can spread from, or to. Pure but for a file."""

import os
from pathlib import Path

from common.errors import Invalid


def check(source: str, wanted: str) -> None:
    """Blocking. Raises Invalid for a propagation that the machine's mount could not have."""
    kind = wanted.removeprefix("r")
    if kind not in ("shared", "slave"):
        return
    tags = tags_of(os.path.realpath(source), Path("/proc/self/mountinfo").read_text())
    fits = {"shared": ("shared",), "slave": ("shared", "master")}[kind]
    if not any(tag in tags for tag in fits):
        raise Invalid(
            f"bind {source}: propagation {wanted} needs a shared mount; make one with "
            f"`mount --bind {source} {source} && mount --make-shared {source}`"
        )


def tags_of(path: str, mountinfo: str) -> set[str]:
    """The optional fields (shared, master) of the mount that `path` is on."""
    best, found = "", set[str]()
    for line in mountinfo.splitlines():
        words = line.split()
        point = words[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later one covers an earlier one
            best = point
            found = {word.partition(":")[0] for word in words[6 : words.index("-", 6)]}
    return found
