"""Labels that say what Docker's API has no field for."""

import datetime as dt

import pytest

from common.errors import Invalid
from common.model import labels
from manager import wishes
from manager.api import validate
from tests.support import build


def of(**given: str) -> wishes.Wishes:
    return wishes.read(
        build.service(labels={f"shoal.{name}": text for name, text in given.items()}).spec
    )


def test_no_label_no_wish() -> None:
    assert wishes.of(build.service(labels={"team": "a"}).spec) == wishes.Wishes()


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("30s", 30), ("1m30s", 90), ("1.5h", 5400), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert of(loss_grace=text).loss_grace == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "-1s", "1 d", "99999h", "s"])
def test_bad_durations_name_label_value_and_remedy(text: str) -> None:
    with pytest.raises(Invalid, match=r"label shoal.loss_grace = .*(write|use)"):
        of(loss_grace=text)


def test_an_unknown_label_of_ours_is_refused() -> None:
    with pytest.raises(Invalid, match=rf"'shoal.lossgrace' is not known.*{labels.LOSS_GRACE}"):
        validate.service(build.service(labels={"shoal.lossgrace": "1m"}).spec)


def test_a_stored_spec_with_wrong_labels_wishes_nothing() -> None:
    """The leader's loops go on."""
    spec = build.service(labels={"shoal.unknown": "x", labels.LOSS_GRACE: "1m"}).spec
    assert wishes.of(spec) == wishes.Wishes()
