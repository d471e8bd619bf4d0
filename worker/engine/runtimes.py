"""Which OCI runtimes this node has besides its own."""

import shutil
from collections.abc import Mapping

from common.errors import Invalid

BUILT_IN = "shoal"
_FOUND = ("crun", "runc")  # where installed, without being configured


class Runtimes:
    """By name. `configured`: names and paths from the daemon's settings."""

    def __init__(self, configured: Mapping[str, str], default: str) -> None:
        """Raises Invalid if the default is none of them."""
        self.paths = {name: path for name in _FOUND if (path := shutil.which(name))}
        self.paths |= configured
        self.default = default
        self.path("")

    def path(self, name: str) -> str:
        """Of the program, "" for the built-in one; no name is the default's. Raises Invalid."""
        wanted = name or self.default
        if wanted == BUILT_IN:
            return ""
        if wanted not in self.paths:
            known = ", ".join([BUILT_IN, *sorted(self.paths)])
            raise Invalid(f"unknown or invalid runtime name: {wanted}; this node has {known}")
        return self.paths[wanted]


def init_binary() -> str:
    """A small init to put into containers of other runtimes. Raises Invalid if none is installed.

    The built-in runtime needs none.
    """
    for name in ("docker-init", "tini"):
        if path := shutil.which(name):
            return path
    raise Invalid(
        "HostConfig.Init with another runtime needs tini: install it, or leave --init out"
    )
