"""What --dry-run shows: the plan that a manager worked out for a change."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import format as fmt

F = TypeVar("F", bound=Callable[..., Any])
STEPS_SHOWN = 50
_HEADINGS = ("ACTION", "TASK", "FROM", "TO", "REASON")
_SUMMARY = {
    "create": "{} to create",
    "replace": "{} to replace where they are",
    "move": "{} to move",
    "stop": "{} to stop",
    "wait": "{} for which no node fits",
}


def dry_run_option(command: F) -> F:
    """--dry-run and --dry-run-json: `dry_run` is "table", "json" or None."""
    text = "Change nothing; show what would be created, stopped and moved, and where."
    for flag, output, words in (
        ("--dry-run-json", "json", "The same as JSON."),
        ("--dry-run", "table", text),
    ):
        command = click.option(flag, "dry_run", flag_value=output, default=None, help=words)(
            command
        )
    return command


def show_plan(plan: dict[str, Any], output: str) -> None:
    """Print a plan: its steps, the first ones if they are many, and how many there are."""
    if output == "json":
        click.echo(json.dumps(plan))
        return
    steps = plan["Steps"]
    rows = [_row(step) for step in steps[:STEPS_SHOWN]]
    if rows:
        click.echo(fmt.table(_HEADINGS, rows))
    if len(steps) > len(rows):
        click.echo(f"… and {len(steps) - len(rows)} more; --dry-run-json has all")
    counts = plan["Counts"]
    parts = [text.format(counts[name]) for name, text in _SUMMARY.items() if counts.get(name)]
    click.echo(f"Plan, nothing is changed: {'; '.join(parts) or 'no task would change'}")


def _row(step: dict[str, Any]) -> tuple[str, ...]:
    slot = step["Slot"]
    name = f"{step['Service']}.{slot}" if slot else step["Service"]
    reason = step.get("Reason", "")
    return step["Action"], name, step["FromNode"] or "-", step["ToNode"] or "-", reason
