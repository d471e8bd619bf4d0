"""Which statuses are sent when, and to whom."""

import random

from common.model.task import TaskState, TaskStatus
from worker.agent.remotes import BACKOFF_MAX_S, Backoff, Remotes
from worker.agent.reporter import UPDATES_MAX, Reporter

READY, RUNNING = TaskStatus(state=TaskState.READY), TaskStatus(state=TaskState.RUNNING)


def said(reporter: Reporter) -> dict[str, TaskStatus] | None:
    report = reporter.next()
    return None if report is None else {u.task_id: u.status for u in report.updates}


def test_only_the_newest_status_is_sent_and_once() -> None:
    """AGT 236."""
    reporter = Reporter()
    reporter.note("a", READY)
    reporter.note("a", RUNNING)
    assert said(reporter) == {"a": RUNNING}
    assert said(reporter) is None
    reporter.stored(1)
    assert reporter.idle
    assert said(reporter) is None


def test_what_happens_meanwhile_goes_with_the_next() -> None:
    reporter = Reporter()
    reporter.note("a", READY)
    said(reporter)
    reporter.note("a", RUNNING)
    reporter.note("b", READY)
    assert said(reporter) is None
    reporter.stored(1)
    assert said(reporter) == {"a": RUNNING, "b": READY}


def test_what_was_not_stored_is_sent_again_unless_there_is_newer() -> None:
    reporter = Reporter()
    reporter.note("a", READY)
    reporter.note("b", READY)
    said(reporter)
    reporter.note("b", RUNNING)
    reporter.begin_session()
    assert said(reporter) == {"a": READY, "b": RUNNING}
    reporter.stored(0)  # not this one
    assert not reporter.idle


def test_a_dropped_task_is_not_spoken_of() -> None:
    reporter = Reporter()
    reporter.note("a", READY)
    reporter.drop("a")
    assert said(reporter) is None


def test_reports_are_bounded() -> None:
    reporter = Reporter()
    for number in range(UPDATES_MAX + 1):
        reporter.note(str(number), READY)
    first = said(reporter)
    assert first is not None
    assert len(first) == UPDATES_MAX
    reporter.stored(1)
    assert said(reporter) == {str(UPDATES_MAX): READY}


def test_failing_managers_are_tried_less_but_still() -> None:
    """AGT 231."""
    remotes = Remotes(["good", "bad"], random.Random(1))
    for _ in range(10):
        remotes.failed("bad", now=5)
    picks = [remotes.pick() for _ in range(1000)]
    assert 0 < picks.count("bad") < 60
    remotes.worked("bad")
    assert [remotes.pick() for _ in range(100)].count("bad") > 20


def test_a_manager_that_just_failed_is_not_worth_a_redirect() -> None:
    remotes = Remotes(["one"], random.Random(1))
    remotes.failed("one", now=5)
    remotes.failed("unknown", now=5)
    assert remotes.failed_lately("one", now=6)
    assert remotes.failed_lately("unknown", now=6)
    assert not remotes.failed_lately("one", now=7)
    assert not remotes.failed_lately("two", now=5)


def test_an_empty_list_of_managers_is_not_believed() -> None:
    remotes = Remotes(["one"], random.Random(1))
    remotes.update([])
    assert remotes.pick() == "one"
    remotes.update(["two"])
    assert remotes.pick() == "two"
    assert Remotes([], random.Random(1)).pick() is None


def test_backoff_grows_to_a_limit_with_jitter() -> None:
    backoff = Backoff(random.Random(1))
    waits = [backoff.next_s() for _ in range(12)]
    assert 0.05 <= waits[0] <= 0.1
    assert all(wait <= BACKOFF_MAX_S for wait in waits)
    assert len(set(waits[7:])) > 1
    assert backoff.next_s(1.0) <= 1.0
    backoff.reset()
    assert backoff.next_s() <= 0.1
