"""User namespaces for containers: what root is inside is an ordinary user outside.

Only the container's processes enter the namespace, at the very end of the start: its other
namespaces stay the machine's, so that its capabilities reach no further than its own files and
processes. Images, upper folders and volumes are mounted with their ids mapped and so hold the same
ids on the disk as without a user namespace.
"""

import contextlib
import os

from worker.runtime import syscalls as sc
from worker.runtime.steps import Ids, Mapping

_NO_SETUID_FIXUP = 4  # of the secure bits: another file system uid takes no capability away


class UserNamespaces:
    """One for each mapping, held by a descriptor."""

    def __init__(self) -> None:
        self._held: dict[Mapping, int] = {}

    def get(self, mapping: Mapping) -> int:
        """A descriptor, or -1 for no mapping. Raises OSError."""
        if not mapping.uids:
            return -1
        if mapping not in self._held:
            self._held[mapping] = _make(mapping)
        return self._held[mapping]


def _make(mapping: Mapping) -> int:
    waiting, ours = os.pipe()
    pid, pidfd = sc.clone3(sc.CLONE_NEWUSER)
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(ours)
            os.read(waiting, 1)
        os._exit(0)
    try:
        for name, ids in (("uid_map", mapping.uids), ("gid_map", mapping.gids)):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write("".join(f"{inside} {outside} {n}\n" for inside, outside, n in ids))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ours)
        os.close(waiting)
        os.close(pidfd)
        os.waitpid(pid, 0)


def outside(ids: Ids, number: int) -> int:
    """The machine's number for one of the container. Raises OSError if there is none. Pure."""
    for first, there, count in ids:
        if first <= number < first + count:
            return there + number - first
    if not ids:
        return number
    raise OSError(22, f"user or group id {number} is outside of the user namespace's range")


def act_as_root(mapping: Mapping) -> None:
    """What this process makes from now on belongs to the container's root."""
    sc.prctl(sc.PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
    sc.set_file_ids(outside(mapping.uids, 0), outside(mapping.gids, 0))
