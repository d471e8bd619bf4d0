"""Tables, JSON, and how times and sizes are written."""

import datetime as dt
import json
import re
from collections.abc import Sequence
from typing import Any

import click

SECOND_NS = 1_000_000_000


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, three spaces between."""
    cells = [list(headings), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def show(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    objects: Sequence[object],
    *,
    quiet: bool,
    output: str,
) -> None:
    """Print a list: as a table, as ids only, or as JSON objects, one a line."""
    if output == "json":
        for item in objects:
            click.echo(json.dumps(item))
    elif quiet:
        for row in rows:
            click.echo(row[0])
    else:
        click.echo(table(headings, rows))


def show_json(items: Sequence[object]) -> None:
    """Print what `inspect` found."""
    click.echo(json.dumps(items, indent=4))


def ago(text: str | float, now: dt.datetime | None = None) -> str:
    """An RFC 3339 time, or seconds since 1970, as "5 minutes"; empty for never."""
    moment = moment_of(text)
    if moment is None:
        return ""
    present = now or dt.datetime.now(dt.UTC)
    return span(max(0, int((present - moment).total_seconds())))


def moment_of(text: str | float) -> dt.datetime | None:
    """A time as the API writes it; None for Docker's "never"."""
    if isinstance(text, int | float):
        return dt.datetime.fromtimestamp(text, dt.UTC)
    if not text or text.startswith("0001-"):
        return None
    # Nanoseconds are more than datetime holds.
    return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00"))


def span(seconds: int) -> str:
    """A duration in one unit, as people say it."""
    for limit, size, unit in (
        (60, 1, "second"),
        (3600, 60, "minute"),
        (48 * 3600, 3600, "hour"),
        (14 * 86400, 86400, "day"),
        (10**12, 7 * 86400, "week"),
    ):
        if seconds < limit:
            count = seconds // size
            return f"{count} {unit}" + ("" if count == 1 else "s")
    return ""


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}TB"


def binary_size(count: int) -> str:
    """Bytes in binary units, as memory is written."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g}{unit}"
        value /= 1024
    return f"{value:.4g}GiB"


def duration(nanoseconds: int | None) -> str:
    """A spec's duration: 10s, 1m30s, 500ms."""
    if nanoseconds is None:
        return ""
    if nanoseconds % SECOND_NS:
        return f"{nanoseconds / 1_000_000:g}ms"
    minutes, seconds = divmod(nanoseconds // SECOND_NS, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [
        f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if count
    ]
    return "".join(parts) or "0s"


def short(identifier: str) -> str:
    """An id as lists show it."""
    return identifier.removeprefix("sha256:")[:12]


def state(text: str) -> str:
    """A state as lists show it: first letter large."""
    return text[:1].upper() + text[1:]


def label_text(labels: dict[str, Any] | None) -> str:
    return ",".join(f"{name}={value}" for name, value in (labels or {}).items())
