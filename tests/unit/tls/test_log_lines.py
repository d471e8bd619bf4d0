import io
import logging
from collections.abc import Iterator

import pytest
from aiohttp.http_exceptions import BadHttpMessage

from common import log
from common.errors import Invalid


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.setup("info", stream)
    yield stream
    root.handlers[:], root.level = handlers, level


def test_a_line_has_its_fields_and_no_more(lines: io.StringIO) -> None:
    with log.fields(node="n1"):
        logging.getLogger("part").info("task failed", extra={"task": "t 1", "code": 3})
    logging.getLogger("part").debug("not asked for")
    _, _, rest = lines.getvalue().partition(" ")
    assert rest == 'level=info part=part msg="task failed" node=n1 task="t 1" code=3\n'


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param("plain", "plain", id="a word"),
        pytest.param("", '""', id="nothing"),
        pytest.param('say "hi"', '"say \\"hi\\""', id="quotes"),
        pytest.param("a\nlevel=error", '"a\\nlevel=error"', id="a line that would forge another"),
        pytest.param("\x1b[31m", '"\\x1b[31m"', id="what would colour a terminal"),
    ],
)
def test_values_cannot_forge_lines(value: str, written: str) -> None:
    assert log.quoted(value) == written


def test_what_is_no_http_gets_a_line_and_no_trace(lines: io.StringIO) -> None:
    part = logging.getLogger("aiohttp.server")
    try:
        raise BadHttpMessage("Got more than 8190 bytes\nwhen reading")
    except BadHttpMessage:
        part.exception("Error handling request from %s", "192.0.2.7")
    try:
        raise KeyError("ours")
    except KeyError:
        part.exception("Error handling request")
    theirs, ours = lines.getvalue().splitlines()
    assert 'level=info part=aiohttp.server msg="a client sent what is not HTTP"' in theirs
    assert "Got more than 8190 bytes when reading" in theirs
    assert "Traceback" not in theirs
    assert "level=error" in ours
    assert "Traceback" in ours


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(Invalid, match="'loud' is not one of debug"):
        log.setup("loud")
