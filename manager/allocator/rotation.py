"""Numbers given out in turn, so that one that came back rests as long as possible.

A number used again at once can meet what still remembers its last owner: a connection, a
neighbour entry, a name that somebody looked up. Addresses, VNIs, node indexes and dynamic ports
are all such numbers.
"""


class Rotation:
    """The numbers `first` to `last`, each free or taken.

    Taken numbers may lie outside of the range: they are remembered but never given out.
    """

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._last = last
        self._next = first
        self._taken: dict[int, int] = {}  # number -> how many say they own it
        self._inside = 0  # how many of the taken are in the range

    @property
    def total(self) -> int:
        return max(self._last - self._first + 1, 0)

    @property
    def used(self) -> int:
        """How many numbers of the range are taken."""
        return self._inside

    def __contains__(self, number: int) -> bool:
        return number in self._taken

    def claim(self, number: int) -> None:
        """Take `number`. Claimed twice, it must be released twice."""
        if number not in self._taken:
            self._inside += self._first <= number <= self._last
        self._taken[number] = self._taken.get(number, 0) + 1

    def take(self) -> int | None:
        """The free number whose turn it is, or None if all are taken."""
        if self._inside >= self.total:
            return None
        number = self._next
        while number in self._taken:
            number = self._after(number)
        self.claim(number)
        self._next = self._after(number)
        return number

    def release(self, number: int) -> None:
        """Give back what was claimed or taken; others' numbers are left alone."""
        owners = self._taken.get(number, 0)
        if owners > 1:
            self._taken[number] = owners - 1
        elif owners == 1:
            del self._taken[number]
            self._inside -= self._first <= number <= self._last

    def resume(self) -> None:
        """Go on after the highest number taken, as whoever gave them out before would have."""
        inside = [number for number in self._taken if self._first <= number <= self._last]
        self._next = self._after(max(inside)) if inside else self._first

    def _after(self, number: int) -> int:
        return number + 1 if number < self._last else self._first
