"""The machine's own firewall where it drops whatever is forwarded, as ufw and Docker have it do.

What a table of ours accepts, another table may still drop; so with such a policy containers reach
nothing outside and nobody reaches their ports. Where the chain is one of iptables, we do as every
container engine: ask its own program for two rules for each bridge that let its packets pass, find
out when they are gone, and take them away when we go. A chain that somebody wrote for nftables is
left alone, and the node tells what it lacks. Nothing here concerns overlays: their packets are not
forwarded.
"""

import logging
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from worker.network.audit import Fact
from worker.network.netlink import nft
from worker.network.netlink.channel import Channel

_DEADLINE_S = 10
_LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")  # /proc/net is the process's
_FAMILIES = {1: "inet", 2: "ip"}

log = logging.getLogger(__name__)


class Hurdle(NamedTuple):
    """A chain that drops what is forwarded unless a rule accepts it."""

    family: str
    table: str
    chain: str

    @property
    def is_iptables(self) -> bool:
        return self == ("ip", "filter", "FORWARD")

    def remedy(self, link: str) -> str:
        """What would let `link`'s packets pass, as a sentence for the node's users."""
        place = f"{self.family} {self.table} {self.chain}"
        ways = (f'iifname "{link}*"', f'oifname "{link}*" ct state established,related',
                f'oifname "{link}*" ct status dnat')  # fmt: skip
        commands = "; ".join(f"nft insert rule {place} {way} accept" for way in ways)
        return (
            f"the firewall of this machine ({place}) drops what is forwarded, so containers may "
            f"reach nothing outside and published ports may not answer; allow it: {commands}"
        )


def hurdles(chains: Sequence[nft.BaseChain]) -> list[Hurdle]:
    """Those of `chains` that are in the way of what is forwarded."""
    return [
        Hurdle(_FAMILIES[item.family], item.table, item.name)
        for item in chains
        if item.family in _FAMILIES and item.hook == nft.FORWARD and item.policy == nft.DROP
    ]


class Pass(NamedTuple):
    """A rule of ours in an iptables chain: what comes from a link may pass, or what goes to it."""

    direction: str  # -i, -o
    link: str  # "+" at its end: whatever begins so

    def words(self, comment: str) -> list[str]:
        """To a link goes only what answers, and what a published port sent there."""
        states = "DNAT,RELATED,ESTABLISHED"
        match = ["-m", "conntrack", "--ctstate", states] if self.direction == "-o" else []
        said = ["-m", "comment", "--comment", comment]
        return [self.direction, self.link, *match, *said, "-j", "ACCEPT"]


def passes(own: str, links: Iterable[str]) -> set[Pass]:
    """The rules for the node's own links, whose names begin with `own`, and for other bridges."""
    return {Pass(way, link) for link in (f"{own}+", *links) for way in ("-i", "-o")}


def listed(text: str, comment: str) -> dict[Pass, list[str]]:
    """The rules with our comment in what iptables lists, with their words."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["-A", "FORWARD"] and comment in words[2:] and words[2] in ("-i", "-o"):
            found[Pass(words[2], words[3])] = words[2:]
    return found


class Firewall:
    """For the helper thread, which is in the machine's network namespace, and so are the programs
    that it runs."""

    def __init__(self, channel: Channel, own: str, links: Callable[[], Iterable[str]]) -> None:
        """`own`: what the names of the node's links begin with, and the comment of our rules;
        `links`: further bridges, as they are now."""
        self._channel = channel
        self._own = own
        self._links = links
        self._hopeless: set[str] = set()  # programs that refused our rules
        self.warnings: tuple[str, ...] = ()

    def admit(self) -> None:
        """Have our links' packets pass where that is possible; say where it is not."""
        wanted = passes(self._own, self._links())
        for tool in self._look():
            have = self._have(tool)
            for rule in sorted(wanted - have.keys()):
                if not _run(tool, "--insert", "FORWARD", *rule.words(self._own)):
                    self._hopeless.add(tool)
            for rule in have.keys() - wanted:
                _run(tool, "--delete", "FORWARD", *have[rule])
        if self._hopeless:
            self._look()

    def missing(self) -> set[Fact]:
        """The rules that are needed and are not there."""
        wanted = passes(self._own, self._links())
        return {(tool, *rule) for tool in self._look() for rule in wanted - self._have(tool).keys()}

    def withdraw(self) -> None:
        """Take our rules away, also those that an earlier daemon added."""
        chains = {(item.family, item.table, item.name) for item in nft.base_chains(self._channel)}
        tools = ["iptables-nft"] if (2, "filter", "FORWARD") in chains else []
        tools += ["iptables-legacy"] if _legacy_filters() else []
        for tool in tools:
            for words in self._have(tool).values():
                _run(tool, "--delete", "FORWARD", *words)

    def _have(self, tool: str) -> dict[Pass, list[str]]:
        return listed(_done(tool, "--list-rules", "FORWARD").stdout, self._own)

    def _look(self) -> list[str]:
        """The programs whose chain is in the way; warnings of the chains that have none."""
        found = hurdles(nft.base_chains(self._channel))
        tools = ["iptables-nft"] if any(hurdle.is_iptables for hurdle in found) else []
        tools += ["iptables-legacy"] if _legacy_drops() else []
        self.warnings = tuple(
            hurdle.remedy(self._own)
            for hurdle in found
            if not hurdle.is_iptables or "iptables-nft" in self._hopeless
        )
        return [tool for tool in tools if tool not in self._hopeless]


def _legacy_filters() -> bool:
    """Whether the kernel's old tables are in use here."""
    try:
        return "filter" in _LEGACY_TABLES.read_text().split()
    except OSError:
        return False


def _legacy_drops() -> bool:
    words = ("--list-rules", "FORWARD")
    return _legacy_filters() and "-P FORWARD DROP" in _done("iptables-legacy", *words).stdout


def _run(tool: str, *words: str) -> bool:
    return _done(tool, *words).returncode == 0


def _done(tool: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """`--wait`: others may hold the lock of the old tables for a moment."""
    argv = [tool, "--wait", "2", *words]
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("cannot run %s: %s", tool, error)
        return subprocess.CompletedProcess(argv, 127, "", str(error))
