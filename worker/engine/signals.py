"""Signals by name or number, as Docker's API takes them. Pure."""

import signal

from common.errors import Invalid


def number(text: str) -> int:
    """SIGTERM, TERM, 15, SIGRTMIN+3. Raises Invalid."""
    if text.isdecimal():
        if 0 < int(text) <= signal.SIGRTMAX:
            return int(text)
        raise Invalid(f"Invalid signal: {text}")
    name, plus, offset = text.upper().removeprefix("SIG").partition("+")
    base = getattr(signal, f"SIG{name}", None)
    if not isinstance(base, signal.Signals) or (plus and name != "RTMIN"):
        raise Invalid(f"Invalid signal: {text}")
    result = int(base) + (int(offset) if offset.isdecimal() else 0)
    if result > signal.SIGRTMAX or (plus and not offset.isdecimal()):
        raise Invalid(f"Invalid signal: {text}")
    return result


def name(value: int) -> str:
    """15 -> "SIGTERM"; a real-time signal by its number."""
    try:
        return signal.Signals(value).name
    except ValueError:
        return str(value)
