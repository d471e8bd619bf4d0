"""A cluster on one computer: a switch, machines, and the daemons joined by their own API."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import msgspec

from lab import cgroups
from lab.api import wait_until
from lab.box import LabError, check_tools
from lab.files import write_atomically
from lab.machine import Machine
from lab.switch import Switch

ROOT = Path("/var/lib/shoal-lab")
SUBNET = IPv4Network("192.168.231.0/24")
_PREFIX_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a later run of the lab must know to find everything again."""

    machines: int
    managers: int
    settings: dict[str, Any]


class Cluster:
    """Machines m1, m2 … Several clusters with prefixes of their own run side by side.

    `settings` go into each daemon's configuration file. Methods block; use a thread in a coroutine.
    """

    def __init__(
        self,
        prefix: str = "shoal-lab",
        *,
        root: Path = ROOT,
        settings: dict[str, Any] | None = None,
    ) -> None:
        if not prefix or len(prefix) > 24 or not _PREFIX_CHARACTERS.issuperset(prefix):
            raise LabError(f"prefix {prefix!r}: use 1 to 24 of a-z, 0-9 and -")
        self.prefix = prefix
        self.folder = root / prefix
        self.switch = Switch(self.folder / "switch", SUBNET)
        self._file = self.folder / "lab.json"
        self._found = self._read()
        self.settings = (self._found.settings if self._found else {}) | (settings or {})
        count = self._found.machines if self._found else 0
        self.machines = [self._machine(number) for number in range(1, count + 1)]

    @property
    def exists(self) -> bool:
        """Whether `up` began and `down` has not finished."""
        return self._found is not None

    def machine(self, name: str) -> Machine:
        """By name ("m2") or number ("2"). Raises LabError."""
        for machine in self.machines:
            if name in (machine.name, machine.name[1:]):
                return machine
        names = ", ".join(machine.name for machine in self.machines) or "none; run `up` first"
        raise LabError(f"no machine {name!r}; there are: {names}")

    def prepare(self, machines: int = 3, managers: int | None = None) -> None:
        """The switch, and machines that are off. Safe to repeat."""
        check_tools()
        self._describe(machines, managers if managers is not None else machines)
        self.switch.up()

    def boot(self, machines: int = 3, managers: int | None = None) -> None:
        """Switch and machines with their daemons, in no cluster yet. Safe to repeat."""
        self.prepare(machines, managers)
        self.each(lambda machine: machine.start_daemon())

    def up(self, machines: int = 3, managers: int | None = None, deadline_s: float = 60) -> None:
        """All machines in one cluster, the first `managers` of them managers (default: all).

        Goes on where an earlier attempt ended. Returns when every node is ready. Raises LabError.
        """
        self.boot(machines, managers)
        assert self._found is not None
        first, rest = self.machines[0], self.machines[1:]
        self.init(first)
        voters = rest[: self._found.managers - 1]
        for machine in voters:
            self.join(machine, "manager")
        self.each(lambda machine: self.join(machine, "worker"), rest[len(voters) :])
        self.wait_ready(len(self.machines), deadline_s)

    def init(self, machine: Machine) -> None:
        """Make `machine` the first manager, unless it is in a cluster."""
        if _state(machine) == "active":
            return
        address = {"AdvertiseAddr": f"{machine.ip}:2377", "ListenAddr": "0.0.0.0:2377"}
        machine.api.post("/swarm/init", address)

    def join(self, machine: Machine, role: str = "worker", via: Machine | None = None) -> None:
        """Join `machine` to the cluster of `via` (default: the first), unless it is in one."""
        if _state(machine) == "active":
            return
        via = via or self.machines[0]
        tokens = via.api.get("/swarm")["JoinTokens"]
        body = {
            "RemoteAddrs": [f"{via.ip}:2377"],
            "JoinToken": tokens[role.capitalize()],
            "AdvertiseAddr": f"{machine.ip}:2377",
            "ListenAddr": "0.0.0.0:2377",
        }
        machine.api.post("/swarm/join", body)
        wait_until(lambda: _state(machine) == "active", f"{machine.name} joins", 30)

    def add_machine(self) -> Machine:
        """One more machine with its daemon, in no cluster yet."""
        assert self._found is not None, "up() comes first"
        self._describe(len(self.machines) + 1, self._found.managers)
        self.machines[-1].start_daemon()
        return self.machines[-1]

    def nodes(self, via: Machine | None = None) -> list[dict[str, Any]]:
        """The nodes as the first machine that answers sees them."""
        error: LabError | None = None
        for machine in [via] if via else self.machines:
            try:
                found: list[dict[str, Any]] = machine.api.get("/nodes", deadline_s=5)
            except LabError as refused:
                error = refused
            else:
                return found
        raise error or LabError("there are no machines; run `up` first")

    def leader(self) -> Machine:
        """The machine whose manager leads. Raises LabError when there is none now."""
        for node in self.nodes():
            if (node.get("ManagerStatus") or {}).get("Leader"):
                return self.machine(node["Description"]["Hostname"])
        raise LabError("no manager leads at present")

    def wait_ready(self, count: int, deadline_s: float = 60) -> float:
        """Seconds until `count` nodes are ready."""

        def ready() -> bool:
            states = [(node.get("Status") or {}).get("State") for node in self.nodes()]
            return states.count("ready") >= count

        return wait_until(ready, f"{count} nodes are ready", deadline_s, 0.05)

    def load(self, *archives: Path) -> None:
        """Load image archives on every machine that runs."""
        running = [machine for machine in self.machines if machine.daemon is not None]
        for archive in archives:
            self.each(lambda machine, archive=archive: machine.api.load(archive), running)  # type: ignore[misc]

    def down(self) -> None:
        """Remove all that the lab made; in a new process too, and after a crash. Safe to repeat."""
        for machine in self.machines or self._strays():
            machine.kill()
        self.switch.down()
        left = cgroups.remove(self.prefix)
        if left:
            raise LabError(f"cgroup {left[0]} cannot be removed")
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            raise LabError(f"{self.folder} cannot be removed; is something mounted in it?")
        self.machines = []
        self._found = None

    def each(
        self, do: Callable[[Machine], object], machines: Iterable[Machine] | None = None
    ) -> None:
        """Do it for all machines (or those given) at the same time; the first error is raised."""
        chosen: Sequence[Machine] = self.machines if machines is None else list(machines)
        if chosen:
            with ThreadPoolExecutor(min(16, len(chosen))) as pool:
                list(pool.map(do, chosen))

    def _machine(self, number: int) -> Machine:
        address = IPv4Interface(f"{SUBNET[number]}/{SUBNET.prefixlen}")
        name = f"m{number}"
        parent = f"{self.prefix}/{name}"
        folder = self.folder / name
        return Machine(name, folder, self.switch, address, parent, self.settings)

    def _describe(self, machines: int, managers: int) -> None:
        if not 1 <= managers <= machines <= 200:
            raise LabError(f"{managers} managers of {machines} machines: give 1 to 200")
        if self._found and machines < self._found.machines:
            raise LabError(
                f"lab {self.prefix} has {self._found.machines} machines; run `down` first"
            )
        self._found = Description(machines, managers, self.settings)
        write_atomically(self._file, msgspec.json.encode(self._found))
        new = range(len(self.machines) + 1, machines + 1)
        self.machines += [self._machine(number) for number in new]

    def _read(self) -> Description | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Description)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise LabError(f"{self._file} is damaged: {error}; remove {self.folder}") from error

    def _strays(self) -> list[Machine]:
        """Machines whose description is gone."""
        names = [path.parent.name for path in self.folder.glob("m*/init.json")]
        return [self._machine(int(name[1:])) for name in names if name[1:].isdecimal()]


def _state(machine: Machine) -> str:
    info: dict[str, Any] = machine.api.get("/info")
    state: str = (info.get("Swarm") or {}).get("LocalNodeState") or "inactive"
    return state
