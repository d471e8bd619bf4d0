"""Who waits for whom before a task hears of its stop."""

from manager.dispatcher.stopping import StopBarrier


def test_released_when_all_have_applied_and_the_requests_under_way_are_done() -> None:
    barrier = StopBarrier(deadline_s=2, drain_s=0.2)
    barrier.begin(["t"], {"a": 3, "b": 7}, now=0)
    barrier.applied("a", 3, now=0.1)
    barrier.applied("b", 6, now=0.1)
    assert barrier.due(1) == []
    barrier.applied("b", 9, now=1)
    assert barrier.due(1.1) == []
    assert barrier.wake_at == 1.2
    assert barrier.due(1.2) == ["t"]
    assert barrier.due(9) == []


def test_a_node_that_does_not_answer_delays_by_the_deadline() -> None:
    barrier = StopBarrier(deadline_s=2, drain_s=0.2)
    barrier.begin(["t"], {"a": 1}, now=0)
    assert barrier.due(1.9) == []
    assert barrier.due(2.0) == []
    assert barrier.due(2.2) == ["t"]
    barrier.applied("a", 1, now=3)  # too late to matter
    assert barrier.due(9) == []


def test_nobody_waits_for_a_lost_node() -> None:
    barrier = StopBarrier(deadline_s=2, drain_s=0.2)
    barrier.begin(["t", "u"], {"a": 1, "b": 1}, now=0)
    barrier.applied("b", 1, now=0)
    barrier.forget("a", now=0.5)
    assert barrier.due(0.7) == ["t", "u"]


def test_with_nobody_to_ask_only_the_drain_is_waited_for() -> None:
    barrier = StopBarrier(deadline_s=2, drain_s=0.2)
    barrier.begin(["t"], {}, now=5)
    assert barrier.due(5.2) == ["t"]
    assert barrier.wake_at is None


def test_batches_are_independent() -> None:
    barrier = StopBarrier(deadline_s=2, drain_s=0.2)
    barrier.begin(["t"], {"a": 1}, now=0)
    barrier.begin(["u"], {"a": 2}, now=0)
    barrier.applied("a", 1, now=0)
    assert barrier.due(0.2) == ["t"]
    barrier.applied("a", 2, now=1)
    assert barrier.due(1.2) == ["u"]
