"""What container requests say: detach keys, filters' times, updates, ps tables."""

import datetime as dt

import pytest

from common.errors import Invalid
from common.model.container import HostConfig, RestartRule
from node.api import body, detaching
from worker.engine import devices, usage
from worker.engine.updating import ContainerUpdate, updated

NOW = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "sent"),
    [("", b"\x10\x11"), ("ctrl-a,b", b"\x01b"), ("ctrl-@,ctrl-[", b"\x00\x1b"), ("x", b"x")],
)
def test_detach_keys(text: str, sent: bytes) -> None:
    assert detaching.keys(text) == sent


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-A", "alt-x", "a,,b", "é"])
def test_unknown_detach_keys(text: str) -> None:
    with pytest.raises(Invalid, match="detach key"):
        detaching.keys(text)


@pytest.mark.parametrize(
    ("pieces", "passed", "left"),
    [
        ([b"ls\x10\x11"], b"ls", True),
        ([b"ls\x10", b"\x11rest"], b"ls", True),
        ([b"\x10", b"\x10", b"x"], b"\x10\x10x", False),
        ([b"\x10", b"x\x11"], b"\x10x\x11", False),
    ],
    ids=["at once", "in two pieces", "begun twice", "broken off"],
)
def test_the_sequence_is_found(pieces: list[bytes], passed: bytes, left: bool) -> None:
    escape = detaching.Escape(detaching.DEFAULT)
    found = [escape.feed(piece) for piece in pieces]
    assert b"".join(data for data, _ in found) == passed
    assert any(done for _, done in found) == left


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("24h", NOW - dt.timedelta(days=1)),
        ("1h30m", NOW - dt.timedelta(minutes=90)),
        ("1714521600", dt.datetime(2024, 5, 1, tzinfo=dt.UTC)),
        ("2024-05-01", dt.datetime(2024, 5, 1, tzinfo=dt.UTC)),
        ("2024-05-01T01:00:00+01:00", dt.datetime(2024, 5, 1, tzinfo=dt.UTC)),
    ],
)
def test_moments(text: str, moment: dt.datetime) -> None:
    assert body.moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "5 minutes", "99999999999999999999"])
def test_no_moments(text: str) -> None:
    with pytest.raises(Invalid, match="is no time"):
        body.moment(text, NOW)


def test_an_update_changes_what_it_names() -> None:
    old = HostConfig(memory=32 << 20, cpu_shares=512, restart_policy=RestartRule(name="always"))
    new = updated(old, ContainerUpdate(memory=64 << 20, pids_limit=0), 0)
    assert (new.memory, new.cpu_shares, new.pids_limit) == (64 << 20, 512, -1)
    assert new.restart_policy.name == "always"


def test_a_disk_that_is_named_no_more_has_no_limit() -> None:
    def rates(*minors: int) -> dict[str, object]:
        rows = [{"major": 8, "minor": minor, "rate": 5} for minor in minors]
        return {"throttleReadBpsDevice": rows} if rows else {}

    assert devices.changed(rates(1), rates(1, 2)) == rates(1, 2)
    lifted = {"major": 8, "minor": 1, "rate": 0}
    kept = {"major": 8, "minor": 2, "rate": 5}
    assert devices.changed(rates(1, 2), rates(2)) == {"throttleReadBpsDevice": [lifted, kept]}
    assert devices.changed(rates(1), {"weight": 7}) == {
        "weight": 7,
        "throttleReadBpsDevice": [lifted],
    }
    one, other = HostConfig(memory=5), HostConfig(memory=6)
    assert devices.same_disks(one, other)
    assert not devices.same_disks(one, HostConfig(blkio_weight=6))


@pytest.mark.parametrize(
    ("host", "update", "complaint"),
    [
        (HostConfig(memory=8 << 20, memory_swap=9 << 20), {"memory": 64 << 20}, "memoryswap"),
        (HostConfig(cpu_quota=1000), {"nano_cpus": 10**9}, "NanoCpus"),
        (
            HostConfig(auto_remove=True),
            {"restart_policy": RestartRule(name="always")},
            "AutoRemove",
        ),
    ],
)
def test_updates_that_contradict(
    host: HostConfig, update: dict[str, object], complaint: str
) -> None:
    with pytest.raises(Invalid, match=complaint):
        updated(host, ContainerUpdate(**update), 0)  # type: ignore[arg-type]


def test_ps_rows_are_those_of_the_container() -> None:
    text = "  PID COMMAND\n    1 init a\n   17 sh -c true\n"
    assert usage.table(text, {"17"}) == {
        "Titles": ["PID", "COMMAND"],
        "Processes": [["17", "sh -c true"]],
    }
    with pytest.raises(Invalid, match="PID"):
        usage.table("COMMAND\nsh\n", {"17"})
