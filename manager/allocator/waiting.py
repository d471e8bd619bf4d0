"""What cannot be allocated at present, by what it waits for."""

from collections.abc import Hashable

Item = tuple[type, str]  # kind, id


class Waiting:
    """Items and the one cause each waits for; a cause that ends gives its items back."""

    def __init__(self) -> None:
        self._by_cause: dict[Hashable, dict[Item, None]] = {}
        self._causes: dict[Item, Hashable] = {}

    def __len__(self) -> int:
        return len(self._causes)

    def __contains__(self, item: Item) -> bool:
        return item in self._causes

    def add(self, item: Item, cause: Hashable) -> None:
        self.discard(item)
        self._causes[item] = cause
        self._by_cause.setdefault(cause, {})[item] = None

    def discard(self, item: Item) -> None:
        cause = self._causes.pop(item, None)
        if cause is not None:
            items = self._by_cause[cause]
            del items[item]
            if not items:
                del self._by_cause[cause]

    def wake(self, cause: Hashable) -> list[Item]:
        """Those that waited for `cause`, in the order in which they came."""
        items = list(self._by_cause.pop(cause, ()))
        for item in items:
            del self._causes[item]
        return items
