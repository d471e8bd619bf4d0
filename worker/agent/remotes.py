"""Which manager to try next. Pure but for the random source passed in."""

import random
from collections.abc import Iterable

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 8.0
LATELY_S = 1.5  # longer than an election
_BEST = 1.0
_WORST = 0.02  # never 0: a failing manager is still tried now and then


class Remotes:
    """The managers, each with a weight that failures lower and successes raise."""

    def __init__(self, addresses: Iterable[str], rng: random.Random) -> None:
        self._weights = dict.fromkeys(addresses, _BEST)
        self._failed_at: dict[str, float] = {}
        self._rng = rng

    def update(self, addresses: Iterable[str]) -> None:
        """The managers are now these. An empty list is not believed."""
        weights = {address: self._weights.get(address, _BEST) for address in addresses}
        self._weights = weights or self._weights
        self._failed_at = {a: t for a, t in self._failed_at.items() if a in self._weights}

    def pick(self) -> str | None:
        """One of them, those that work more often than others; None if none is known."""
        if not self._weights:
            return None
        addresses = list(self._weights)
        return self._rng.choices(addresses, list(self._weights.values()))[0]

    def worked(self, address: str) -> None:
        if address in self._weights:
            self._weights[address] = _BEST

    def failed(self, address: str, now: float) -> None:
        self._failed_at[address] = now
        if address in self._weights:
            self._weights[address] = max(self._weights[address] / 4, _WORST)

    def failed_lately(self, address: str, now: float) -> bool:
        """A follower names the leader that it last knew: not worth a try if that just died."""
        return now - self._failed_at.get(address, -LATELY_S) < LATELY_S


class Backoff:
    """How long to wait before the next try: from 100 ms to 8 s, each time anywhere between half
    and all of it, so that agents do not come in step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next_s = BACKOFF_MIN_S

    def reset(self) -> None:
        self._next_s = BACKOFF_MIN_S

    def next_s(self, most_s: float = BACKOFF_MAX_S) -> float:
        wait_s = min(self._next_s, most_s) * self._rng.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, BACKOFF_MAX_S)
        return wait_s
