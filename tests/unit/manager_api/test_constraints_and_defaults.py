"""Constraints (features.md 1.4) and the values in force where a spec says nothing."""

import datetime as dt
from fnmatch import fnmatchcase

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.errors import Invalid
from common.model.node import Role
from common.model.service import UpdateConfig
from common.model.task import SECOND, ContainerSpec, RestartPolicy, TaskSpec
from manager import constraint
from manager.api import defaults
from tests.support import build

NODE = build.node(
    "Box-1",
    id="abc",
    role=Role.MANAGER,
    labels={"disk": "SSD", "Zone": "a", "cores": "16"},
    engine_labels={"gpu": "yes"},
    addr="192.0.2.7",
)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("node.id == abc", True),
        ("node.id==ABC", True),
        ("node.id != abc", False),
        ("node.hostname == box-1", True),
        ("node.hostname != box-1", False),
        ("node.role == manager", True),
        ("node.role != manager", False),
        ("node.ip == 192.0.2.7", True),
        ("node.ip == 192.0.2.0/24", True),
        ("node.ip != 192.0.2.7", False),
        ("node.ip != 192.0.2.0/24", False),
        ("node.ip != 198.51.100.0/24", True),
        ("node.platform.os == linux", True),
        ("node.platform.os != linux", False),
        ("node.platform.arch == amd64", True),
        ("node.platform.arch == x86_64", True),
        ("node.platform.arch != amd64", False),
        ("node.labels.disk == ssd", True),
        ("node.labels.disk != ssd", False),
        ("node.labels.zone == a", False),
        ("node.labels.Zone == a", True),
        ("node.labels.none != x", True),
        ("engine.labels.gpu == yes", True),
        ("engine.labels.gpu != yes", False),
        ("no such thing", False),
    ],
)
def test_fits(text: str, fits: bool) -> None:
    """SCH 38."""
    assert constraint.fits([text], NODE) is fits
    assert constraint.fits([text, "node.id == other"], NODE) is False


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("node.labels.disk in (hdd, SSD)", True),
        ("node.labels.disk in(ssd)", True),
        ("node.labels.disk notin (hdd, nvme)", True),
        ("node.labels.disk notin (hdd, ssd)", False),
        ("node.labels.none in (a)", False),
        ("node.labels.none notin (a)", True),
        ("node.labels.in in (ssd)", False),
        ("node.platform.arch in (arm64, x86_64)", True),
        ("node.ip in (198.51.100.0/24, 192.0.2.0/24)", True),
        ("node.ip notin (198.51.100.0/24, 192.0.2.7)", False),
        ("node.labels.cores >= 16", True),
        ("node.labels.cores>=16.5", False),
        ("node.labels.cores > 9", True),
        ("node.labels.cores < 9", False),
        ("node.labels.cores <= 16.0", True),
        ("node.labels.cores > -3", True),
        ("node.labels.disk >= 0", False),  # no number is neither more nor less
        ("node.labels.disk < 0", False),
        ("node.labels.none < 1", False),
        ("engine.labels.gpu =~ y*", True),
        ("node.hostname =~ BOX-*", True),
        ("node.hostname =~ *ox*1", True),
        ("node.hostname =~ box", False),
        ("node.hostname =~ box-1", True),
        ("node.hostname =~ *", True),
        ("node.hostname =~ box-1*1", False),  # the 1 cannot be both
        ("node.hostname !~ web-*", True),
        ("node.hostname !~ box*", False),
        ("node.labels.none !~ a*", True),
        ("node.labels.disk exists", True),
        ("node.labels.none exists", False),
        ("node.labels.none notexists", True),
        ("engine.labels.gpu notexists", False),
    ],
)
def test_beyond_swarm(text: str, fits: bool) -> None:
    """Sets, numbers, patterns, and whether there is such a label."""
    constraint.parse(text)
    assert constraint.fits([text], NODE) is fits


def test_hostile_patterns_take_no_time() -> None:
    """A matcher that backtracks would not come to an end; here each part is looked for once."""
    pattern = "node.hostname =~ " + "*a" * 20_000 + "*b"
    node = build.node("a" * 100_000)
    assert not constraint.fits([pattern], node)
    with pytest.raises(Invalid):
        constraint.parse("node.labels." + "a " * 50_000 + "in (")


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_patterns_are_those_of_the_shell(pattern: str, value: str) -> None:
    assume(pattern and value)
    node = build.node(value)
    assert constraint.fits([f"node.hostname =~ {pattern}"], node) is fnmatchcase(value, pattern)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node.labels.zone in a, b", "KEY in \\(A, B\\)"),
        ("node.labels.zone in (a, )", "'' is not a value"),
        ("node.labels.zone in ()", "'' is not a value"),
        ("node.labels.zone in (a)) ", "has no =="),
        ("node.labels.zonein (a)", "has no =="),
        ("node.labels.cores >= many", "'many' is not a number"),
        ("node.labels.cores >= 1e999999999", "is not a number"),
        ("node.labels.cores => 8", "is not a number|has no =="),
        ("node.hostname >= 8", "node.hostname is no number"),
        ("node.hostname =~ web-[0-9]+", "means nothing in a pattern"),
        ("node.hostname =~", "is not a pattern"),
        ("node.ip =~ 192.*", "write node.ip==SUBNET"),
        ("node.role exists", "only labels"),
        ("node.size in (1)", "'node.size' is not known"),
        ("in (a, b)", "is not a key|has no =="),
        ("node.role = manager", "no == or !="),
        ("node.size == 3", "'node.size' is not known"),
        ("node.labels. == 3", "is not known"),
        ("== 3", "is not a key"),
        ("node.id ==", "is not a value"),
        ("node.id == {x}", "is not a value"),
        ("node.ip == here", "no address or subnet"),
    ],
)
def test_bad_constraints(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        constraint.parse(text)


def test_update_rules() -> None:
    rules = defaults.update_rules(None)
    assert (rules.parallelism, rules.failure_action, rules.start_first) == (1, "pause", False)
    assert rules.monitor == dt.timedelta(seconds=5)
    assert defaults.update_rules(UpdateConfig()).parallelism == 1
    assert defaults.update_rules(UpdateConfig(parallelism=0)).parallelism == 0
    stretched = defaults.update_rules(UpdateConfig(delay=9 * SECOND, monitor=SECOND))
    assert stretched.monitor == dt.timedelta(seconds=10)


def test_restart_rules_and_grace() -> None:
    rules = defaults.restart_rules(TaskSpec())
    assert (rules.condition, rules.delay) == ("any", dt.timedelta(seconds=5))
    assert defaults.restart_rules(TaskSpec(restart_policy=RestartPolicy(delay=0))).delay == (
        dt.timedelta()
    )
    assert defaults.stop_grace(TaskSpec()) == dt.timedelta(seconds=10)
    longer = TaskSpec(container_spec=ContainerSpec(stop_grace_period=2**63 - 1))
    assert defaults.stop_grace(longer) > dt.timedelta(days=30_000)


def test_with_defaults_leaves_the_stored_spec_alone() -> None:
    service = build.service()
    full = defaults.with_defaults(service).spec
    assert service == build.service()
    assert full.rollback_config is not None
    assert full.rollback_config.monitor == 5 * SECOND
    assert full.endpoint_spec is not None
    assert full.endpoint_spec.mode == "vip"
    assert full.task_template.container_spec is not None
    assert full.task_template.container_spec.stop_grace_period == 10 * SECOND
    assert defaults.with_defaults(replace(service, spec=full)).spec == full
