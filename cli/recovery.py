"""What `swarm init --force-new-cluster --dry-run` says. Pure."""

from typing import Any


def text(found: dict[str, Any]) -> str:
    """The daemon's prospect for people who have to decide."""
    last = f"entry {found['LastIndex']} of term {found['LastTerm']}"
    lines = [
        "Nothing was changed. With --force-new-cluster this manager would go on alone.",
        "",
        f"kept     {_counted(found['Objects'])}; certificates and join tokens",
        f"         its log up to {last}, of which all up to {found['CommittedIndex']} is",
        f"         committed for sure; newest change {found.get('LastChange') or 'unknown'}",
    ]
    if found["UncommittedEntries"]:
        changes = _counted(found["UncommittedChanges"]) or "none changes an object"
        count = found["UncommittedEntries"]
        lines += [
            f"         also the {count} log {_plural('record', count)} after that ({changes});",
            "         the lost managers may have acknowledged them",
        ]
    names = [f"{one.get('Hostname') or one['NodeID']} ({one['Addr']})" for one in _dropped(found)]
    lines += [
        f"dropped  as managers: {', '.join(names) or 'nobody'}",
        "         their nodes become workers; what ran there is replaced while they are down",
        f"lost     what was written after {last}, if anything",
        f"         {_silence(found)}",
        "",
        "Of several survivors force the one with the highest term, then entry; make sure that the",
        "managers that are dropped are off.",
    ]
    return "\n".join(lines)


def _dropped(found: dict[str, Any]) -> list[dict[str, str]]:
    return list(found["DroppedManagers"])


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {_plural(name, count)}" for name, count in sorted(counts.items()))


def _plural(name: str, count: int) -> str:
    """Of "task" and of "task written"."""
    noun, space, verb = name.partition(" ")
    return f"{noun}{'' if count == 1 else 's'}{space}{verb}"


def _silence(found: dict[str, Any]) -> str:
    seconds = found.get("LeaderSilentSeconds")
    if seconds is None:
        return "no leader was heard since this daemon started"
    return f"the last leader was heard {seconds:.0f} s ago"
