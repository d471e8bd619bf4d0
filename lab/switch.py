"""The switch between lab machines: a bridge in a network namespace that no machine shares.

It plays the world outside, too: its own address can reach every machine, as a client would.
"""

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Literal

from lab.box import Box, LabError

Direction = Literal["both", "in", "out"]
_BRIDGE = "lab"
_FILTER = "cuts"


class Switch(Box):
    """Ports are named after the machines."""

    def __init__(self, folder: Path, subnet: IPv4Network) -> None:
        super().__init__("switch", folder)
        self.address = IPv4Interface(f"{subnet[-2]}/{subnet.prefixlen}")

    def up(self) -> None:
        """Make the bridge. Safe to repeat."""
        super().up()
        if self.run(["ip", "link", "show", _BRIDGE], check=False).returncode == 0:
            return
        # `ip -batch` does all in one process, which counts when several machines start at once
        self._ip(f"link add {_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
        self._ip(f"address add {self.address} dev {_BRIDGE}", f"link set {_BRIDGE} up")

    def plug(self, machine: Box, address: IPv4Interface) -> None:
        """Join `machine` by a cable: its end is eth0 with `address`. Replaces an older cable."""
        init = machine.init
        if init is None:
            raise LabError(f"{machine.name} is not up")
        port = machine.name
        self.run(["ip", "link", "delete", port], check=False)
        self._ip(
            f"link add {port} type veth peer name eth0 address {_mac(address)} netns {init.pid}",
            f"link set {port} master {_BRIDGE} up",
        )
        machine.run(
            ["ip", "-batch", "-"],
            stdin=f"address add {address} dev eth0\nlink set eth0 up\n".encode(),
        )

    def cut(self, port: str, direction: Direction = "both") -> None:
        """Pull the cable; or lose all frames to (`in`) or from (`out`) that machine only."""
        if direction == "both":
            self._ip(f"link set {port} down")
            return
        self._heal_filter(port)
        match = "oifname" if direction == "in" else "iifname"
        rules = [f"add table bridge {_FILTER}"]
        for hook in ("forward", "input", "output"):
            chain = f"bridge {_FILTER} {hook}"
            rules.append(f"add chain {chain} {{ type filter hook {hook} priority 0; }}")
            if (hook, match) not in {("input", "oifname"), ("output", "iifname")}:
                rules.append(f'add rule {chain} {match} "{port}" drop')
        self.run(["nft", "-f", "-"], stdin="\n".join(rules).encode())

    def heal(self, port: str) -> None:
        """Undo `cut`, whichever way it was. Safe to repeat."""
        self._heal_filter(port)
        self._ip(f"link set {port} up")

    def is_cut(self, port: str) -> bool:
        """Whether the cable of that machine is pulled or lossy."""
        shown = self.run(["ip", "-oneline", "link", "show", port], check=False)
        up = b"UP" in shown.stdout.partition(b"<")[2].partition(b">")[0].split(b",")
        return not up or f'"{port}"' in self._rules()

    def _rules(self) -> str:
        shown = self.run(["nft", "-a", "list", "table", "bridge", _FILTER], check=False)
        return shown.stdout.decode()

    def _heal_filter(self, port: str) -> None:
        chain = ""
        for line in self._rules().splitlines():
            words = line.split()
            if words[:1] == ["chain"]:
                chain = words[1]
            elif f'"{port}"' in words:
                delete = ["nft", "delete", "rule", "bridge", _FILTER, chain, "handle", words[-1]]
                self.run(delete)

    def _ip(self, *commands: str) -> None:
        init = self.init
        if init is None:
            raise LabError("the switch is not up")
        # the network namespace alone: process ids in the commands are those seen from outside
        argv = ["nsenter", f"--target={init.pid}", "--net", "--", "ip", "-batch", "-"]
        script = ("\n".join(commands) + "\n").encode()
        done = subprocess.run(argv, input=script, capture_output=True, timeout=30, check=False)
        if done.returncode != 0:
            raise LabError(f"switch: {commands}: {done.stderr.decode(errors='replace').strip()}")


def _mac(address: IPv4Interface) -> str:
    """The same after each boot, as a network card's: or others would still send to the old one."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + address.ip.packed)


def outside(switch: Switch, argv: Sequence[str], deadline_s: float = 60) -> bytes:
    """What `argv` prints when run outside all machines, on the same wire."""
    return switch.run(argv, deadline_s=deadline_s).stdout
