"""Wall-clock time, passed in so that a simulation can replay it.

For time-outs the event loop's own clock is used; this one is for the times that are written down.
"""

import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Tells the time of day."""

    def now(self) -> dt.datetime:
        """The present moment, in UTC, with a time zone."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)
