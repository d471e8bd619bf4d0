"""Who is alive until when, and how often a node may register."""

from manager.dispatcher.sessions import Liveness, RateLimit


def test_three_missed_beats_and_a_node_is_lost_once() -> None:
    """DIS 149."""
    nodes = Liveness(period_s=1)
    nodes.heard("a", now=0)
    nodes.heard("b", now=0)
    nodes.heard("b", now=2)
    assert nodes.wake_at == 3
    assert nodes.lost(2.9) == []
    assert nodes.lost(3) == ["a"]
    assert nodes.lost(4) == []
    assert "a" not in nodes
    nodes.heard("a", now=4)
    assert nodes.lost(5) == ["b"]
    assert nodes.wake_at == 7


def test_after_a_change_of_leader_there_is_twice_the_time() -> None:
    """DIS 163."""
    nodes = Liveness(period_s=1)
    nodes.expect("a", now=0)
    assert nodes.lost(5.9) == []
    nodes.heard("a", now=1)  # sooner than what it was given
    assert nodes.lost(4) == ["a"]


def test_a_manager_that_raft_does_not_hear_either_gets_no_second_grace() -> None:
    """DIS 163; the machine of the old leader, say."""
    nodes = Liveness(1, {"dead"}.__contains__)
    for name in ("dead", "worker"):
        nodes.expect(name, now=0)
    assert nodes.wake_at == 3
    assert nodes.lost(2.9) == []
    assert nodes.lost(3) == ["dead"]
    assert nodes.wake_at == 6
    assert nodes.lost(6) == ["worker"]


def test_raft_alone_makes_no_node_lost_and_none_live_longer() -> None:
    nodes = Liveness(1, lambda _: True)
    nodes.expect("a", now=0)
    nodes.heard("a", now=2)
    assert nodes.lost(4.9) == []
    assert nodes.lost(5) == ["a"]
    nodes = Liveness(1, lambda _: False)
    nodes.expect("a", now=0)
    nodes.heard("a", now=2)
    assert nodes.lost(5) == ["a"]


def test_a_removed_node_is_never_lost() -> None:
    nodes = Liveness(period_s=1)
    nodes.heard("a", now=0)
    nodes.forget("a")
    assert nodes.wake_at is None
    assert nodes.lost(99) == []


def test_a_longer_period_counts_from_the_next_beat() -> None:
    nodes = Liveness(period_s=1)
    nodes.heard("a", now=0)
    nodes.period_s = 5
    nodes.heard("a", now=1)
    assert nodes.lost(15.9) == []
    assert nodes.lost(16) == ["a"]


def test_the_fourth_registration_in_the_period_is_refused() -> None:
    """DIS 146."""
    rate = RateLimit(period_s=8)
    assert [rate.admit("a", now) for now in (0, 1, 2, 3)] == [True, True, True, False]
    assert rate.admit("b", 3)
    assert rate.admit("a", 8)
    assert not rate.admit("a", 8.5)
