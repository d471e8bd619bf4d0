"""Many log lines become one piece of an answer, framed line by line."""

from node.api.logs import encoded
from worker.engine.logs import LogLine

LINES = [LogLine(1, 1_000_000_002, b"one\n"), LogLine(2, 2_000_000_000, b"two")]


def test_each_line_has_its_frame() -> None:
    out, err = b"\1\0\0\0\0\0\0\4one\n", b"\2\0\0\0\0\0\0\3two"
    assert encoded(LINES, times=False, tty=False) == out + err


def test_the_time_is_within_the_frame() -> None:
    stamp = b"1970-01-01T00:00:01.000000002Z "
    framed = b"\1\0\0\0" + (len(stamp) + 4).to_bytes(4, "big") + stamp + b"one\n"
    assert encoded(LINES[:1], times=True, tty=False) == framed


def test_a_terminal_has_no_frames() -> None:
    assert encoded(LINES, times=False, tty=True) == b"one\ntwo"


def test_details_come_between_time_and_line() -> None:
    """LOG 172, of a container: no driver adds attributes, so only their place is there."""
    stamp = b"1970-01-01T00:00:02.000000000Z "
    assert encoded(LINES[1:], times=True, tty=True, details="") == stamp + b" two"
    shown = stamp + b"A=1,tag=x two"
    assert encoded(LINES[1:], times=True, tty=True, details="A=1,tag=x") == shown
