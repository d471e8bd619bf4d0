"""The conversations in tests/data/raft go as written there; `REWRITE=1` writes them anew.

Each file names the behaviours it shows. Behaviours 173, 175, 176, 179, 180, 181, 191 and 192.
"""

import os
from pathlib import Path

import pytest

from tests.support.raft_script import rewrite

FOLDER = Path(__file__).resolve().parents[2] / "data" / "raft"
SCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_conversation(script: Path) -> None:
    written = script.read_text()
    now = rewrite(written)
    if os.environ.get("REWRITE"):
        script.write_text(now)
    else:
        assert now == written


def test_no_conversation_is_missing() -> None:
    assert len(SCRIPTS) >= 7


def test_another_outcome_is_noticed() -> None:
    script = "> cluster abc\n> elect a\n> reads\n    none\n"
    assert rewrite(script) == script
    assert rewrite(script.replace("none", "read 1 at 2")) == script
