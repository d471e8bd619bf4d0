import datetime as dt
import random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from common.errors import Invalid
from manager.ca import tokens
from manager.ca.certificates import new_root

ROOT, _ = new_root("c" * 25, dt.datetime.now(dt.UTC))


def test_a_token_has_digest_and_secret() -> None:
    text = tokens.new_token(ROOT, random.Random(1))
    parsed = tokens.parse(f" {text}\n")
    assert text == f"SWMTKN-1-{parsed.digest}-{parsed.secret}"
    assert parsed.digest == tokens.digest(ROOT)
    other, _ = new_root("c" * 25, dt.datetime.now(dt.UTC))
    assert tokens.digest(other) != parsed.digest
    assert tokens.new_token(ROOT, random.Random(2)) != text


@given(some.text(max_size=120))
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        tokens.parse(text)
    assert len(text) < 5 or text not in str(refused.value)


def test_a_token_for_fips_is_no_token_of_ours() -> None:
    text = tokens.new_token(ROOT, random.Random(1))
    with pytest.raises(Invalid):
        tokens.parse(text.replace("SWMTKN-1", "SWMTKN-2"))
    assert tokens.matches(text, text)
    assert not tokens.matches(text, text[:-1] + "0")
