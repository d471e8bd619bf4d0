"""`userns_remap`: which of the machine's ids stand for those of containers."""

import json
from pathlib import Path

from common.errors import Invalid
from common.model.container import HostConfig
from worker.engine import modes

_DEFAULT = "dockremap"  # the name that Docker's "default" stands for
Range = tuple[int, int, int]  # first inside, first outside, count


class Remap:
    """Empty without a remapping."""

    def __init__(self, uids: tuple[Range, ...] = (), gids: tuple[Range, ...] = ()) -> None:
        self._uids = uids
        self._gids = gids

    def check(self, host: HostConfig, runtime: str) -> None:
        """Raises Invalid for wishes that need the machine's own user namespace."""
        if not self._uids or host.userns_mode == "host":
            return
        wishes = {
            "privileged mode": host.privileged,
            "adding capabilities": host.cap_add,
            "sharing the machine's pid namespace": host.pid_mode == "host",
            "the machine's network": host.network_mode == "host",
            "sharing another container's namespaces": modes.donors(host),
            f"the runtime {runtime}": runtime,
        }
        for what, wanted in wishes.items():
            if wanted:
                raise Invalid(f"{what} goes with --userns=host only: this node remaps user ids")

    def note(self, host: HostConfig) -> str:
        """The annotation for the runtime; "" for the machine's own user namespace."""
        if not self._uids or host.userns_mode == "host":
            return ""
        return json.dumps({"uids": self._uids, "gids": self._gids})


def load(wanted: str, folder: Path = Path("/etc")) -> Remap:
    """For the setting `user[:group]`, or "default". Reads subuid and subgid. Raises Invalid."""
    if not wanted:
        return Remap()
    user, _, group = (_DEFAULT if wanted == "default" else wanted).partition(":")
    found = []
    for name, owner in (("subuid", user), ("subgid", group or user)):
        path = folder / name
        text = path.read_text() if path.exists() else ""
        ids = ranges(text, owner)
        if not ids:
            raise Invalid(
                f"userns_remap = {wanted!r}: {path} has no range for {owner}; "
                f"add a line such as {owner}:100000:65536"
            )
        found.append(ids)
    return Remap(*found)


def ranges(text: str, owner: str) -> tuple[Range, ...]:
    """The ranges of `owner` one after the other from 0 on. Pure."""
    found: list[Range] = []
    first = 0
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        start, _, count = rest.partition(":")
        if name == owner and start.isdecimal() and count.isdecimal() and int(count):
            found.append((first, int(start), int(count)))
            first += int(count)
    return tuple(found)
