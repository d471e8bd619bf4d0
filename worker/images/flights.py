"""One piece of work for each key, however many ask for it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Report = Callable[[dict[str, Any]], None]


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.task: asyncio.Task[T] | None = None

    def report(self, item: dict[str, Any]) -> None:
        for report in tuple(self.reports):
            report(item)


class Flights(Generic[T]):
    """Work under way. It is cancelled when the last one who waits for it gives up."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def run(self, key: str, work: Callable[[Report], Awaitable[T]], report: Report) -> T:
        """The result of `work`, or of the one under way for this key; all get its reports."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.get_running_loop().create_task(
                self._fly(key, flight, work), name=f"images: {key}"
            )
        assert flight.task is not None
        flight.reports.append(report)
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.reports.remove(report)
            if not flight.reports and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)

    async def close(self) -> None:
        """Cancel all."""
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, key: str, flight: _Flight[T], work: Callable[[Report], Awaitable[T]]) -> T:
        try:
            return await work(flight.report)
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
