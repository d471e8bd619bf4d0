import io
import logging
from collections.abc import Iterator

import pytest

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


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(Invalid, match="'loud' is not one of debug"):
        log.setup("loud")
