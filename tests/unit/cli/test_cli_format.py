"""Tables, times and sizes."""

import datetime as dt

import pytest

from cli import format as fmt

NOW = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert fmt.table(("ID", "NAME"), [("1", "web"), ("22222", "a")]) == (
        "ID      NAME\n1       web\n22222   a"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2024-05-01T11:59:59Z", "1 second"),
        ("2024-05-01T11:55:00.123456789Z", "4 minutes"),
        ("2024-05-01T10:00:00+00:00", "2 hours"),
        ("2024-04-28T12:00:00Z", "3 days"),
        ("0001-01-01T00:00:00Z", ""),
        ("", ""),
        ("2024-05-01T12:00:05Z", "0 seconds"),
    ],
)
def test_how_long_ago(text: str, shown: str) -> None:
    assert fmt.ago(text, NOW) == shown


def test_sizes_and_durations() -> None:
    assert [fmt.size(count) for count in (0, 999, 1500, 2_000_000)] == [
        "0B",
        "999B",
        "1.5kB",
        "2MB",
    ]
    assert fmt.binary_size(24 << 30) == "24GiB"
    assert [fmt.duration(value) for value in (None, 0, 500_000_000, 90_000_000_000)] == [
        "",
        "0s",
        "500ms",
        "1m30s",
    ]
