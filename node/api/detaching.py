"""The keys that leave a terminal without ending what runs in it. Pure."""

from common.errors import Invalid

DEFAULT = b"\x10\x11"  # Ctrl-P, Ctrl-Q
_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or `a,ctrl-x` as what a terminal sends. Raises Invalid."""
    if not text:
        return DEFAULT
    return bytes(_key(word) for word in text.split(","))


def _key(word: str) -> int:
    if len(word) == 1 and word.isascii():
        return ord(word)
    name, _, letter = word.partition("-")
    if name == "ctrl" and len(letter) == 1:
        if "a" <= letter <= "z":
            return ord(letter) - ord("a") + 1
        if letter in _CONTROL:
            return _CONTROL[letter]
    raise Invalid(f"detach key {word[:20]!r} is not known: write a letter, or ctrl- and a letter")


class Escape:
    """Finds the sequence in what is typed, however it is cut in pieces."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on to the process, and whether the sequence is complete.

        The beginning of a sequence is held back until the next key decides.
        """
        text = self._held + data
        place = text.find(self._sequence)
        if place >= 0:
            self._held = b""
            return text[:place], True
        keep = next(
            size
            for size in range(min(len(self._sequence) - 1, len(text)), -1, -1)
            if text.endswith(self._sequence[:size])
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False
