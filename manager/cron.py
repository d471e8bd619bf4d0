"""Cron expressions: which moments they name. Times are UTC. Pure.

Five fields: minute, hour, day of the month, month, day of the week (0 and 7: Sunday). Each is *, a
number, a name (jan, mon), a range, a step (*/5, 10-50/10) or a list of these. As in cron(8): if
both days are restricted, a day that matches either will do.
"""

import dataclasses
import datetime as dt
import functools
from collections.abc import Sequence

from common.errors import Invalid

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SHORT = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_YEARS_AHEAD = 8  # the 29th of February may be so far away


@dataclasses.dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. Days of the week: Sunday is 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool  # the day of the month is not restricted
    any_weekday: bool

    def after(self, moment: dt.datetime) -> dt.datetime | None:
        """The first moment named after `moment`; None if there is none."""
        start = moment.replace(second=0, microsecond=0) + dt.timedelta(minutes=1)
        day = start.date()
        for _ in range(_YEARS_AHEAD * 366):
            if self._has_day(day):
                first = start.time() if day == start.date() else dt.time()
                if (time := self._time(first)) is not None:
                    return dt.datetime.combine(day, time, dt.UTC)
            day += dt.timedelta(days=1)
        return None

    def _time(self, first: dt.time) -> dt.time | None:
        """The first time of a day that is named, `first` or later."""
        for hour in sorted(self.hours):
            if hour < first.hour:
                continue
            least = first.minute if hour == first.hour else 0
            minute = min((each for each in self.minutes if each >= least), default=None)
            if minute is not None:
                return dt.time(hour, minute)
        return None

    def _has_day(self, day: dt.date) -> bool:
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return in_month and in_week
        return in_month or in_week


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Cron:
    """Raises Invalid, also for what names no moment, such as the 30th of February."""
    fields = _SHORT.get(text.strip().lower(), text).lower().split()
    if len(fields) != 5:
        raise Invalid(
            f"schedule {text[:80]!r} is not valid; write minute, hour, day, month and weekday, "
            f"as in '*/5 * * * *', or {', '.join(_SHORT)}"
        )
    minute, hour, day, month, weekday = fields
    cron = Cron(
        minutes=_values(text, minute, 0, 59),
        hours=_values(text, hour, 0, 23),
        days=_values(text, day, 1, 31),
        months=_values(text, month, 1, 12, _MONTHS),
        weekdays=frozenset(each % 7 for each in _values(text, weekday, 0, 7, _DAYS)),
        any_day=day.startswith("*"),
        any_weekday=weekday.startswith("*"),
    )
    if cron.after(dt.datetime(2024, 1, 1, tzinfo=dt.UTC)) is None:
        raise Invalid(f"schedule {text[:80]!r} names no moment; look at its day and month")
    return cron


def _values(
    whole: str, field: str, least: int, most: int, names: Sequence[str] = ()
) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(whole, step_text, 1, most) if slash else 1
        if span == "*":
            first, last = least, most
        else:
            begin, dash, end = span.partition("-")
            first = _number(whole, begin, least, most, names)
            last = _number(whole, end, least, most, names) if dash else (most if slash else first)
        if last < first:
            raise Invalid(f"schedule {whole[:80]!r}: the range {span} ends before it begins")
        found |= set(range(first, last + 1, step))
    return frozenset(found)


def _number(whole: str, text: str, least: int, most: int, names: Sequence[str] = ()) -> int:
    if text in names:
        return names.index(text) + least
    if not (text.isascii() and text.isdecimal()) or not least <= int(text[:4]) <= most:
        raise Invalid(
            f"schedule {whole[:80]!r}: {text[:20]!r} is not a number from {least} to {most}"
        )
    return int(text)
