"""Object ids: 25 characters of base 36, as Swarm's, from a random source passed in."""

import random
import re
from collections.abc import Container

from common import names

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 25
_PATTERN = re.compile(r"^[0-9a-z]{25}$")


class Ids:
    """Makes ids. The same random source gives the same ids, so that a run can be replayed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def new(self) -> str:
        """An id that nobody else has: 128 random bits."""
        number = self._rng.getrandbits(128)
        digits = []
        for _ in range(_LENGTH):
            number, digit = divmod(number, 36)
            digits.append(_ALPHABET[digit])
        return "".join(reversed(digits))

    def name(self, taken: Container[str]) -> str:
        """A name that people can read and that is a DNS label."""
        return names.new(self._rng, taken, "-")

    def hex(self, length: int = 64) -> str:
        """A container id: `length` hexadecimal digits."""
        return f"{self._rng.getrandbits(length * 4):0{length}x}"


def is_id(text: str) -> bool:
    """Whether `text` has the form of an object id."""
    return _PATTERN.match(text) is not None
