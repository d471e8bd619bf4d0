"""Cron expressions."""

import datetime as dt
import random

import pytest

from common.errors import Invalid
from manager import cron


def after(text: str, moment: str, count: int = 1) -> list[str]:
    found, now = [], dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC)
    for _ in range(count):
        following = cron.parse(text).after(now)
        assert following is not None
        now = following
        found.append(now.strftime("%Y-%m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("text", "moment", "expected"),
    [
        ("* * * * *", "2024-01-01 00:00:00", "2024-01-01 00:01"),
        ("* * * * *", "2024-12-31 23:59:59.9", "2025-01-01 00:00"),
        ("*/15 * * * *", "2024-01-01 00:16", "2024-01-01 00:30"),
        ("5/20 * * * *", "2024-01-01 00:26", "2024-01-01 00:45"),
        ("10-50/20 3 * * *", "2024-01-01 03:30", "2024-01-01 03:50"),
        ("0 0 29 2 *", "2024-03-01 00:00", "2028-02-29 00:00"),
        ("30 9 * * mon-fri", "2024-01-06 08:00", "2024-01-08 09:30"),  # a Saturday
        ("0 0 * * 7", "2024-01-01 00:00", "2024-01-07 00:00"),
        ("0 0 13 * fri", "2024-01-01 00:00", "2024-01-05 00:00"),  # either day will do
        ("0 12 1,15 jun,DEC *", "2024-06-02 00:00", "2024-06-15 12:00"),
        ("@hourly", "2024-01-01 10:00", "2024-01-01 11:00"),
        ("@Weekly", "2024-01-01 10:00", "2024-01-07 00:00"),
    ],
)
def test_the_next_moment(text: str, moment: str, expected: str) -> None:
    assert after(text, moment) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "a * * * *",
        "0 0 30 2 *",
        "@never",
        "-1 * * * *",
        "1,, * * * *",
        "٣ * * * *",
        "99999999999999999999 * * * *",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="schedule"):
        cron.parse(text)


def test_every_moment_is_named_and_none_between() -> None:
    """Against a search minute by minute."""
    rng = random.Random(3)
    for _ in range(40):
        minute, hour = rng.randrange(60), rng.randrange(24)
        text = rng.choice([f"{minute} */{rng.randint(1, 9)} * * *", f"{minute} {hour} */9 * 1-3"])
        parsed = cron.parse(text)
        now = dt.datetime(2024, rng.randint(1, 12), 27, hour, minute, tzinfo=dt.UTC)
        found = parsed.after(now)
        now += dt.timedelta(minutes=1)
        while not (
            now.minute in parsed.minutes
            and now.hour in parsed.hours
            and now.day in parsed.days
            and now.isoweekday() % 7 in parsed.weekdays
        ):
            now += dt.timedelta(minutes=1)
        assert found == now
