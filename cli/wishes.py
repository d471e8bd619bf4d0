"""Flags of services for which Docker's API has no field: they become labels (docs/services.md)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from common.model import labels

F = TypeVar("F", bound=Callable[..., Any])

# Flag (as click names its parameter) -> the label that carries it.
LABELS = {
    "depends_on": labels.DEPENDS_ON,
    "autoscale": labels.AUTOSCALE,
    "autoscale_cpu": labels.AUTOSCALE_CPU,
    "autoscale_memory": labels.AUTOSCALE_MEMORY,
    "autoscale_cooldown": labels.AUTOSCALE_COOLDOWN,
    "schedule": labels.SCHEDULE,
    "schedule_overlap": labels.SCHEDULE_OVERLAP,
    "schedule_history": labels.SCHEDULE_HISTORY,
    "rebalance": labels.REBALANCE,
    "loss_grace": labels.LOSS_GRACE,
}


def wish_options() -> list[Callable[[F], F]]:
    """The flags, for create and update. What an empty text is given for is wished no more."""
    return [
        click.option(
            "--depends-on",
            multiple=True,
            metavar="SERVICE[:CONDITION]",
            help="Start after that one is started, healthy or completed; default: started.",
        ),
        click.option(
            "--autoscale",
            metavar="MIN-MAX",
            help="Let the cluster choose how many tasks, by what they use.",
        ),
        click.option(
            "--autoscale-cpu",
            metavar="CPUS|N%",
            help="What each task should use: 0.5, or 60% of its limit or reservation.",
        ),
        click.option("--autoscale-memory", metavar="BYTES|N%", help="The same of memory: 200m."),
        click.option(
            "--autoscale-cooldown",
            metavar="DURATION",
            help="For how long fewer must have done before some go; default: 3m.",
        ),
        click.option(
            "--schedule",
            metavar="CRON",
            help="When a job runs, in UTC: '*/5 * * * *', @daily.",
        ),
        click.option(
            "--schedule-overlap",
            type=click.Choice(["forbid", "allow", "replace", ""]),
            help="What becomes of a run that has not ended when the next is due; default: forbid.",
        ),
        click.option(
            "--schedule-history", metavar="RUNS", help="Earlier runs that are kept; default: 3."
        ),
        click.option(
            "--rebalance",
            type=click.Choice(["on", "off", ""]),
            help="Whether tasks may be moved to emptier nodes; default: on, with volumes off.",
        ),
        click.option(
            "--loss-grace",
            metavar="DURATION",
            help="How long a node may be down until its tasks are replaced; default: 0.",
        ),
    ]


def apply(spec: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Put the given flags into the labels of `spec`."""
    found: dict[str, str] = spec.get("Labels") or {}
    for flag, label in LABELS.items():
        if flag in flags:
            found.pop(label, None)
            found |= {label: text} if (text := _text(flags[flag])) else {}
    spec["Labels"] = found


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple | list) else str(value)
