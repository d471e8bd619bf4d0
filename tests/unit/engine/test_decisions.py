"""Restart policies, health verdicts, log lines, events, words: all without a kernel."""

import asyncio
import datetime as dt
import random
from pathlib import Path
from typing import Any

import pytest

from common import names
from common.clock import SystemClock
from common.errors import Conflict, Invalid
from common.model.container import RestartRule
from common.model.task import SECOND, HealthConfig
from worker.engine import disk, restart
from worker.engine.creation import Names
from worker.engine.events import EventBus, passes
from worker.engine.health import Verdict, command, rules
from worker.engine.inspect import duration
from worker.engine.logs import Lines, Reader
from worker.runtime import logfile


def wait(name: str, **changes: object) -> float | None:
    facts = {"exit_code": 1, "manually_stopped": False, "restarts": 0, "ran_s": 1.0, "last_s": 0.0}
    rule = RestartRule(name=name, maximum_retry_count=3)
    return restart.delay(rule, **{**facts, **changes})  # type: ignore[arg-type]


def test_restart_policies() -> None:
    assert wait("no") is None
    assert wait("") is None
    assert wait("always", exit_code=0) == 0.1
    assert wait("always", manually_stopped=True) is None
    assert wait("on-failure", exit_code=0) is None
    assert wait("on-failure", restarts=2) == 0.1
    assert wait("on-failure", restarts=3) is None
    assert wait("unless-stopped", last_s=0.4) == 0.8
    assert wait("always", last_s=50.0) == 60.0
    assert wait("always", last_s=50.0, ran_s=11.0) == 0.1


def test_who_starts_with_the_daemon() -> None:
    def at_boot(name: str, stopped: bool, running: bool) -> bool:
        rule = RestartRule(name=name)
        return restart.at_boot(rule, manually_stopped=stopped, was_running=running)

    assert at_boot("always", True, False)
    assert not at_boot("unless-stopped", True, False)
    assert at_boot("unless-stopped", False, False)
    assert at_boot("on-failure", False, True)
    assert not at_boot("on-failure", False, False)
    assert not at_boot("no", False, True)


def test_health_is_found_at_once_but_failures_keep_their_pace() -> None:
    """Quick probes of a slow service may not make it unhealthy sooner than Docker would."""
    verdict = Verdict(rules(HealthConfig(test=("CMD",), interval=30 * SECOND)))
    at = 0.0
    while verdict.status == "starting":
        verdict.observe(at, False)
        if verdict.status == "starting":
            assert verdict.wait(at) <= 1.0
            at += verdict.wait(at)
    assert 89 < at < 93
    verdict.observe(at, True)
    assert (verdict.status, verdict.streak, verdict.wait(at)) == ("healthy", 0, 30.0)


def test_failures_in_the_start_period_are_free() -> None:
    config = HealthConfig(test=("CMD",), interval=SECOND, start_period=20 * SECOND, retries=1)
    verdict = Verdict(rules(config))
    for at in range(20):
        verdict.observe(float(at), False)
    assert (verdict.status, verdict.streak) == ("starting", 0)
    verdict.observe(20.5, False)
    assert verdict.status == "unhealthy"


def test_a_healthy_one_fails_by_retries() -> None:
    verdict = Verdict(rules(HealthConfig(test=("CMD",), interval=SECOND, retries=2)))
    verdict.observe(0.1, True)
    verdict.observe(1.1, False)
    assert verdict.status == "healthy"
    verdict.observe(2.1, False)
    assert verdict.status == "unhealthy"


def test_health_commands() -> None:
    assert command(HealthConfig(test=("CMD", "a", "b")), None) == ("a", "b")
    shell = command(HealthConfig(test=("CMD-SHELL", "a b")), None)
    assert shell == ("/bin/sh", "-c", "a b")
    assert command(HealthConfig(test=("CMD-SHELL", "a")), ("ash", "-c")) == ("ash", "-c", "a")


def test_lines_of_frames() -> None:
    lines = Lines()
    found = []
    for time, stream, data in ((1, 1, b"a"), (2, 2, b"x\ny"), (3, 1, b"b\nc\n"), (4, 2, b"")):
        found += list(lines.feed(logfile.Frame(time, stream, data, 0)))
    found += list(lines.flush())
    assert [(line.time_ns, line.stream, line.data) for line in found] == [
        (2, 2, b"x\n"),
        (1, 1, b"ab\n"),
        (3, 1, b"c\n"),
        (2, 2, b"y"),
    ]


def test_a_reader_loses_nothing_when_files_rotate_under_it(tmp_path: Path) -> None:
    path = tmp_path / logfile.NAME
    writer, reader = logfile.Writer(str(path), 200, 50), Reader(path)
    found: list[int] = []
    for number in range(60):
        writer.write(1, b"x" * 50, number)
        if number % 7 == 0:
            found += [frame.time_ns for frame in reader.batch()]
    found += [frame.time_ns for frame in reader.batch()]
    reader.close()
    writer.close()
    assert found == list(range(60))


async def test_events_are_filtered_and_replayed() -> None:
    bus = EventBus(SystemClock())
    bus.publish("container", "create", "id1", {"name": "web", "image": "img", "tier": "a"})
    bus.publish("volume", "create", "vol")
    filters = {"type": ["container"], "container": ["we", "web"], "label": ["tier=a"]}
    stream = bus.subscribe(since_ns=1, filters=filters)
    first = await anext(stream)
    assert (first["Actor"]["ID"], first["status"], first["from"]) == ("id1", "create", "img")
    loop = asyncio.get_running_loop()
    following: asyncio.Task[dict[str, Any]] = loop.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    bus.publish("container", "start", "id2", {"name": "db", "tier": "a"})
    bus.publish("container", "health_status: healthy", "id1", {"name": "web", "tier": "a"})
    assert (await following)["Action"] == "health_status: healthy"
    await stream.aclose()  # type: ignore[attr-defined]


def test_event_filters() -> None:
    event = {"Type": "container", "Action": "exec_start: ls -l", "scope": "local",
             "Actor": {"ID": "abc", "Attributes": {"name": "web"}}}  # fmt: skip
    assert passes(event, {"event": ["exec_start"]})
    assert not passes(event, {"event": ["exec_die"]})
    assert passes(event, {"container": ["ab"]})
    assert not passes(event, {"volume": ["abc"]})
    assert not passes(event, {"odd": ["x"]})


async def test_a_slow_subscriber_is_ended() -> None:
    bus = EventBus(SystemClock())
    stream = bus.subscribe()
    loop = asyncio.get_running_loop()
    first: asyncio.Task[dict[str, Any]] = loop.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    for number in range(5000):
        bus.publish("volume", "create", str(number))
    assert (await first)["Actor"]["ID"] != ""
    rest = [event async for event in stream]
    assert len(rest) < 5000


def test_names() -> None:
    taken = Names(random.Random(1))
    assert taken.take("/web", "id1") == "web"
    assert taken.take("web", "id1") == "web"
    with pytest.raises(Conflict, match="already in use"):
        taken.take("web", "id2")
    for wrong in ("-web", "a b", "/", "a/b"):
        with pytest.raises(Invalid, match="Invalid container name"):
            taken.take(wrong, "id3")
    taken.free("web", "id2")
    assert taken.find("web") == "id1"
    taken.free("web", "id1")
    assert taken.find("web") == ""
    given: dict[str, str] = {}
    for number in range(4000):
        given[names.new(random.Random(number), given)] = ""
    assert len(given) == 4000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
     (3599, "59 minutes"), (3600, "About an hour"), (7200, "2 hours"), (86400 * 3, "3 days"),
     (86400 * 20, "2 weeks")],
)  # fmt: skip
def test_durations(seconds: int, text: str) -> None:
    assert duration(dt.timedelta(seconds=seconds)) == text


def test_what_cannot_be_read_is_cleared(tmp_path: Path) -> None:
    store = disk.Disk(tmp_path / "containers")
    assert store.load() == []
    for name, text in (("good", "{"), ("empty", "")):
        (store.root / name).mkdir()
        (store.root / name / disk.RECORD).write_text(text)
    (store.root / ".x.removing").mkdir()
    assert store.load() == []
    assert list(store.root.iterdir()) == []
    store.remove("never there")
