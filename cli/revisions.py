"""What `service history` shows: when a service's spec changed, why, and in what."""

from collections.abc import Iterator
from typing import Any

from cli import format as fmt
from cli.client import Client

NAMES_SHOWN = 4


def show_history(client: Client, ref: str, *, quiet: bool, output: str) -> None:
    """List the revisions of a service, newest first."""
    found = client.get(f"/services/{ref}/history")
    headings = ("REVISION", "CREATED", "CAUSE", "IMAGE", "CHANGED")
    before = [item["Spec"] for item in found[1:]]
    rows = [
        (
            item["Revision"],
            f"{fmt.ago(item['CreatedAt'])} ago",
            item["Cause"],
            item["Spec"]["TaskTemplate"].get("ContainerSpec", {}).get("Image", ""),
            _summary(before[place], item["Spec"]) if place < len(before) else "",
        )
        for place, item in enumerate(found)
    ]
    fmt.show(headings, rows, found, quiet=quiet, output=output)


def _summary(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = list(dict.fromkeys(changed(old, new)))
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def changed(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """The names of the fields in which two specs differ, the innermost ones."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from changed(old.get(key), new.get(key), key)
    elif old != new:
        yield name
