"""The rows of the table: a figure, and the goal that it is held against."""

import sys
from dataclasses import dataclass, field
from typing import NamedTuple


class Row(NamedTuple):
    name: str
    value: float
    unit: str = ""
    goal: float | None = None
    at_least: bool = True  # or at most
    note: str = ""

    @property
    def missed(self) -> bool:
        if self.goal is None:
            return False
        return self.value < self.goal if self.at_least else self.value > self.goal

    @property
    def cells(self) -> tuple[str, str, str, str]:
        value = f"{figure(self.value)} {self.unit}".rstrip()
        if self.goal is None:
            return self.name, value, "", self.note
        goal = f"{'>=' if self.at_least else '<'} {figure(self.goal)} {self.unit}".rstrip()
        return self.name, value + ("  MISSED" if self.missed else ""), goal, self.note


def figure(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


@dataclass
class Report:
    """Rows, shown as they come."""

    rows: list[Row] = field(default_factory=list)

    def title(self, text: str) -> None:
        print(f"\n{text}")
        sys.stdout.flush()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        name, value, goal, note = row.cells
        print(f"  {name:<58}{value:<24}{goal:<16}{note}".rstrip())
        sys.stdout.flush()

    def ratio(self, name: str, value: float, goal: float | None = None, note: str = "") -> None:
        self.add(Row(name, value, goal=goal, note=note))

    def most(self, name: str, value: float, unit: str, goal: float | None, note: str = "") -> None:
        self.add(Row(name, value, unit, goal, at_least=False, note=note))
