"""`node drain`: what it asks, shows and answers."""

from typing import Any

import pytest

from cli.drain import DrainTimeout, wait_drained


class _Node:
    """A node whose tasks leave one by one."""

    def __init__(self, *left: int) -> None:
        self._left = list(left)

    def get(self, path: str, **query: Any) -> list[dict[str, Any]]:
        assert (path, query["filters"]) == ("/tasks", {"node": ["n1"]})
        count = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        gone = {"ID": "old", "DesiredState": "shutdown", "Status": {"State": "shutdown"}}
        there = [
            {
                "ID": f"t{i}",
                "Name": f"web.{i}.t{i}",
                "DesiredState": "shutdown",
                "Status": {"State": "running"},
            }
            for i in range(count)
        ]
        return [gone, *there]


def test_progress_until_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    wait_drained(_Node(2, 2, 1, 0), "n1", None, pause=lambda _: None)  # type: ignore[arg-type]
    assert capsys.readouterr().out.splitlines() == [
        "0 of 2 tasks have left: 2 stopping; web.0, web.1",
        "1 of 2 tasks have left: 1 stopping; web.0",
        "2 of 2 tasks have left: drained",
    ]


def test_a_limit_ends_the_wait_only() -> None:
    time = iter(range(100))
    with pytest.raises(DrainTimeout, match="1 tasks are still on the node after 5 s; it goes on"):
        wait_drained(
            _Node(1),  # type: ignore[arg-type]
            "n1",
            5,
            clock=lambda: next(time),
            pause=lambda _: None,
        )
