"""Linux capabilities by name, and the sets Docker gives."""

_NAMES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID "
    "CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST "
    "CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO "
    "CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE "
    "CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE "
    "CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM "
    "CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE"
)
NAMES = tuple(_NAMES.split())  # by bit
_BITS = {name: bit for bit, name in enumerate(NAMES)}

DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)


def normal(name: str) -> str:
    """`net_admin` and `CAP_NET_ADMIN` are the same. Raises ValueError for what is no capability."""
    upper = name.upper()
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in _BITS:
        raise ValueError(f"unknown capability {name!r}")
    return full


def chosen(add: tuple[str, ...], drop: tuple[str, ...], privileged: bool = False) -> list[str]:
    """The capabilities of a container: Docker's default, with `add` and without `drop`.

    "ALL" in either means all; `drop` of ALL leaves just what `add` names. Raises ValueError.
    """
    names = set(NAMES if privileged else DEFAULT)
    if any(name.upper() == "ALL" for name in drop):
        names = set()
    if any(name.upper() == "ALL" for name in add):
        names = set(NAMES)
    dropped = {normal(name) for name in drop if name.upper() != "ALL"}
    names |= {normal(name) for name in add if name.upper() != "ALL"}
    return sorted(names - dropped, key=_BITS.__getitem__)


def mask(names: "list[str] | tuple[str, ...]") -> int:
    """The bit set that the kernel wants."""
    return sum(1 << _BITS[name] for name in set(names))


def own() -> int:
    """What this process may give to others: its permitted set."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapPrm:"))
