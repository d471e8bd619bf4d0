"""What brings roles and Raft's membership together, as a table."""

import datetime as dt

import pytest
from msgspec.structs import replace

from common.model.node import ManagerStatus, Node, NodeSpec, Role
from manager import roles
from manager.raft.membership import Promote, Remove
from manager.raft.message import Member
from manager.roles import HandOver, SetManagerStatus, SetRole, plan

M, W = Role.MANAGER, Role.WORKER


def node(id: str, spec: Role, role: Role, *, managing: bool = False) -> Node:
    status = ManagerStatus(addr=f"{id}:1", raft_id=f"r{id}") if managing else None
    return Node(id=id, spec=NodeSpec(role=spec), role=role, manager_status=status)


def member(id: str, *, learner: bool = False) -> Member:
    return Member(f"r{id}", id, f"{id}:1", learner)


A = node("a", M, M, managing=True)


@pytest.mark.parametrize(
    ("nodes", "members", "expect"),
    [
        pytest.param([A], [member("a")], [], id="all is well"),
        pytest.param(
            [A, node("b", M, W)], [member("a")], [SetRole("b", M)], id="promoted: role at once"
        ),
        pytest.param(
            [A, node("b", M, M, managing=True)],
            [member("a"), member("b", learner=True)],
            [Promote("rb")],
            id="a learner gets its vote",
        ),
        pytest.param(
            [A, node("b", M, M)],
            [member("a"), member("b", learner=True)],
            [SetManagerStatus("b", ManagerStatus(addr="b:1", raft_id="rb")), Promote("rb")],
            id="a member is recorded with its node",
        ),
        pytest.param(
            [A, node("b", W, M, managing=True)],
            [member("a"), member("b")],
            [Remove("rb")],
            id="demoted: out of Raft first",
        ),
        pytest.param(
            [A, node("b", W, M, managing=True)],
            [member("a")],
            [SetRole("b", W), SetManagerStatus("b", None)],
            id="demoted and out of Raft: now its role",
        ),
        pytest.param(
            [replace(A, spec=NodeSpec(role=W)), node("b", M, M, managing=True)],
            [member("a"), member("b")],
            [HandOver()],
            id="the leader itself is demoted: another must lead",
        ),
        pytest.param(
            [replace(A, spec=NodeSpec(role=W))], [member("a")], [], id="the last manager stays"
        ),
        pytest.param(
            [replace(A, spec=NodeSpec(role=W)), node("b", M, M, managing=True)],
            [member("a"), member("b", learner=True)],
            [],
            id="a learner cannot take over",
        ),
        pytest.param([A], [member("a"), member("b")], [Remove("rb")], id="a deleted node"),
        pytest.param(
            [replace(A, spec=NodeSpec(role=W)), node("b", W, M, managing=True)],
            [member("a"), member("b"), member("c")],
            [Remove("rb")],
            id="one at a time, itself last",
        ),
    ],
)
def test_plan(nodes: list[Node], members: list[Member], expect: list[object]) -> None:
    """NOD 220-223."""
    assert plan(nodes, members, "ra") == expect


def test_a_learner_that_is_behind_does_not_hold_up_the_next() -> None:
    nodes = [A, node("b", M, M, managing=True), node("c", M, M, managing=True)]
    members = [member("a"), member("b", learner=True), member("c", learner=True)]
    assert plan(nodes, members, "ra", {"rb"}) == [Promote("rc")]
    assert plan(nodes, members, "ra", {"rb", "rc"}) == [Promote("rb")]


def test_certificates_that_ended_leave_the_list() -> None:
    """SEC 218."""
    from tests.unit.ca.test_authority import CLUSTER, NOW

    hour = dt.timedelta(hours=1)
    times = {"old": (NOW - hour).isoformat(), "new": (NOW + hour).isoformat()}
    assert roles._outlived(replace(CLUSTER, removed_nodes=times), NOW) == ["old"]
