"""What nodes are sent, against what they should have."""

import random

import pytest
from msgspec.structs import replace

from common.model.network import Network
from common.model.node import Node, NodeState, NodeStatus
from common.model.service import Endpoint, Service, VirtualIP
from common.model.task import NetworkAttachment, PortConfig, Task, TaskState, TaskStatus
from common.protocol.dispatcher import Assign, task_mark
from common.protocol.network import (
    Digest,
    IngressBackend,
    NetworkItem,
    OverlayEndpoint,
    OverlayNetwork,
    Peer,
    ServiceEntry,
    digest,
    key,
)
from manager.dispatcher.assignments import Assignments
from tests.support import build

S = TaskState
PORT = PortConfig(target_port=80, published_port=30000)


class Mirror:
    """What a node makes of the messages."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, ...], NetworkItem] = {}
        self.tasks: dict[str, Task] = {}

    def take(self, assign: Assign) -> None:
        if assign.complete:
            self.items, self.tasks = {}, {}
        for at in assign.network.removes:
            del self.items[at]
        for item in assign.network.puts:
            assert self.items.get(key(item)) != item, "sent twice"
            self.items[key(item)] = item
        for id in assign.removed_tasks:
            del self.tasks[id]
        for task in assign.tasks:
            self.tasks[task.id] = task
        assert digest(self.items.values()) == assign.digest
        marks = Digest()
        for task in self.tasks.values():
            marks.add(task_mark(task))
        assert marks.text == assign.tasks_digest

    def kinds(self, kind: type) -> list[NetworkItem]:
        return [item for item in self.items.values() if isinstance(item, kind)]


def node(number: int, state: NodeState = NodeState.READY) -> Node:
    return build.node(f"node-{number}", index=number, addr=f"192.0.2.{number}", state=state)


def network(name: str) -> Network:
    return replace(build.network(name), id=name, vni=4097)


def service(*networks: str, ports: bool = False, name: str = "web") -> Service:
    vips = tuple(VirtualIP(network_id=id, addr="10.0.1.2/24") for id in networks)
    endpoint = Endpoint(virtual_ips=vips, ports=(PORT,) if ports else ())
    return replace(build.service(name, networks=networks), endpoint=endpoint)


def task(
    number: int,
    on: int,
    *networks: str,
    state: TaskState = S.RUNNING,
    desired: TaskState = S.RUNNING,
) -> Task:
    attachments = tuple(
        NetworkAttachment(network_id=id, network_name=id, addresses=(f"10.0.1.{number + 10}/24",))
        for id in networks
    )
    return build.task(
        service(*networks),
        id=f"task-{number}",
        slot=number,
        node=f"node-{on}",
        desired=desired,
        status=TaskStatus(state=state, node_address=f"10.192.4.{number}"),
        networks_attachments=attachments,
    )


@pytest.fixture
def found() -> Assignments:
    assignments = Assignments()
    assignments.load([node(1), node(2), node(3)], [network("a"), network("b")], [service("a")], [])
    assignments.flush()
    return assignments


def connect(assignments: Assignments, number: int) -> Mirror:
    mirror = Mirror()
    assignments.flush()
    mirror.take(assignments.connect(f"node-{number}"))
    return mirror


def see(assignments: Assignments, *objects: object) -> dict[str, Assign]:
    for object in objects:
        assignments.observe(object, removed=False)  # type: ignore[arg-type]
    return assignments.flush().increments


def test_a_complete_set_has_assigned_tasks_and_the_networks_they_are_on(found: Assignments) -> None:
    """DIS 152."""
    see(found, task(1, 1, "a"), task(2, 1, "b", state=S.PENDING), task(3, 2, "b"))
    mirror = connect(found, 1)
    assert list(mirror.tasks) == ["task-1"]
    assert [item.id for item in mirror.kinds(OverlayNetwork)] == ["a"]  # type: ignore[union-attr]
    assert len(mirror.kinds(Peer)) == 3
    assert len(mirror.kinds(ServiceEntry)) == 1
    assert len(mirror.kinds(OverlayEndpoint)) == 1


def test_a_node_gets_a_network_with_its_first_task_and_loses_it_with_its_last(
    found: Assignments,
) -> None:
    """ALL 133 has no more to it here: a node sends to its own tasks from the address that its
    index gives it, so none is allocated on each network."""
    mirror = connect(found, 1)
    first = task(1, 1, "a", state=S.ASSIGNED)
    mirror.take(see(found, first)["node-1"])
    assert mirror.kinds(OverlayNetwork)
    mirror.take(see(found, replace(first, status=TaskStatus(state=S.FAILED)))["node-1"])
    assert not mirror.kinds(OverlayNetwork)
    assert not mirror.kinds(OverlayEndpoint)
    assert mirror.tasks


def test_an_endpoint_is_there_from_the_start_and_active_while_the_task_runs(
    found: Assignments,
) -> None:
    mirror = connect(found, 1)
    mirror.take(see(found, task(9, 1, "a"), one := task(1, 2, "a", state=S.ASSIGNED))["node-1"])

    def active() -> bool:
        item = mirror.items["endpoint", "a", "task-1"]
        assert isinstance(item, OverlayEndpoint)
        return item.active

    assert not active()
    mirror.take(see(found, one := replace(one, status=TaskStatus(state=S.RUNNING)))["node-1"])
    assert active()
    mirror.take(see(found, node(2, NodeState.DOWN))["node-1"])
    assert not active()
    mirror.take(see(found, node(2))["node-1"])
    assert active()
    mirror.take(see(found, replace(one, desired_state=S.SHUTDOWN))["node-1"])
    assert not active()


def test_published_ports_concern_all_nodes(found: Assignments) -> None:
    mirror = connect(found, 3)
    see(found, task(1, 1, "a"))
    assert not mirror.kinds(IngressBackend)
    mirror.take(see(found, service("a", ports=True))["node-3"])
    (backend,) = mirror.kinds(IngressBackend)
    assert isinstance(backend, IngressBackend)
    assert (backend.address, backend.active) == ("10.192.4.1", True)
    assert mirror.kinds(ServiceEntry)
    mirror.take(see(found, replace(service("a", ports=True), pending_delete=True))["node-3"])
    assert not mirror.kinds(IngressBackend)
    assert not mirror.kinds(ServiceEntry)


def test_the_agents_own_word_is_not_echoed(found: Assignments) -> None:
    """DIS 157."""
    connect(found, 1)
    one = build.task(id="task-1", node="node-1", state=S.ASSIGNED)
    assert see(found, one)["node-1"].tasks
    assert see(found, replace(one, status=TaskStatus(state=S.RUNNING))) == {}


def test_what_concerns_others_sends_nothing(found: Assignments) -> None:
    """DIS 155."""
    connect(found, 1)
    see(found, task(1, 1, "a"))
    labelled = service("a")
    labelled = replace(labelled, spec=replace(labelled.spec, labels={"tier": "front"}))
    assert see(found, labelled) == {}
    assert see(found, task(2, 2, "b")) == {}


def test_the_stop_of_a_running_task_is_held_back_until_released(found: Assignments) -> None:
    mirror = connect(found, 1)
    mirror.take(see(found, one := task(1, 1, "a"))["node-1"])
    found.observe(replace(one, desired_state=S.SHUTDOWN), removed=False)
    flush = found.flush()
    assert [(hold.task_id, hold.topics) for hold in flush.holds] == [("task-1", {"a"})]
    mirror.take(flush.increments["node-1"])
    assert mirror.tasks["task-1"].desired_state is S.RUNNING
    assert connect(found, 1).tasks["task-1"].desired_state is S.RUNNING  # for a new session too
    found.observe(replace(one, desired_state=S.REMOVE), removed=False)
    assert found.flush().holds == ()  # already held
    found.release("task-1")
    mirror.take(found.flush().increments["node-1"])
    assert mirror.tasks["task-1"].desired_state is S.REMOVE


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(task(1, 1, "a", state=S.STARTING), id="not running yet"),
        pytest.param(task(1, 1), id="without endpoints"),
    ],
)
def test_what_gets_no_requests_is_stopped_at_once(found: Assignments, before: Task) -> None:
    connect(found, 1)
    see(found, before)
    found.observe(replace(before, desired_state=S.SHUTDOWN), removed=False)
    flush = found.flush()
    assert flush.holds == ()
    assert flush.increments["node-1"].tasks[0].desired_state is S.SHUTDOWN


def test_a_held_task_that_ends_by_itself_or_is_deleted_is_held_no_more(found: Assignments) -> None:
    mirror = connect(found, 1)
    one, two = task(1, 1, "a"), task(2, 1, "a")
    mirror.take(see(found, one, two)["node-1"])
    stopping = [replace(one, desired_state=S.SHUTDOWN), replace(two, desired_state=S.SHUTDOWN)]
    mirror.take(see(found, *stopping)["node-1"])
    found.observe(replace(stopping[0], status=TaskStatus(state=S.FAILED)), removed=False)
    found.observe(stopping[1], removed=True)
    mirror.take(found.flush().increments["node-1"])
    assert mirror.tasks["task-1"].desired_state is S.SHUTDOWN
    assert "task-2" not in mirror.tasks
    found.release("task-1")
    found.release("task-2")
    assert found.flush().increments == {}


def test_an_orphaned_task_is_taken_from_its_node(found: Assignments) -> None:
    mirror = connect(found, 1)
    mirror.take(see(found, one := task(1, 1, "a"))["node-1"])
    mirror.take(see(found, replace(one, status=TaskStatus(state=S.ORPHANED)))["node-1"])
    assert mirror.tasks == {}


@pytest.mark.parametrize("seed", range(40))
def test_increments_lead_where_a_complete_set_would(seed: int) -> None:
    rng = random.Random(seed)
    assignments, mirrors = Assignments(), {}
    world: dict[str, object] = {}
    for _ in range(120):
        _change(rng, assignments, world)
        if rng.random() < 0.1:
            number = rng.randint(1, 4)
            for id, assign in assignments.flush().increments.items():
                mirrors[id].take(assign)
            mirrors[f"node-{number}"] = connect(assignments, number)
        if rng.random() < 0.4:
            for id, assign in assignments.flush().increments.items():
                mirrors[id].take(assign)
    flush = assignments.flush()
    for id, assign in flush.increments.items():
        mirrors[id].take(assign)
    fresh = Assignments()
    by_kind = {kind: [o for o in world.values() if isinstance(o, kind)] for kind in _KINDS}
    fresh.load(by_kind[Node], by_kind[Network], by_kind[Service], by_kind[Task])  # type: ignore[arg-type]
    for id, mirror in mirrors.items():
        number = int(id.removeprefix("node-"))
        wanted = connect(fresh, number)
        assert mirror.items == wanted.items
        assert mirror.tasks.keys() == wanted.tasks.keys()
        assert assignments.digest(id) == digest(mirror.items.values())


_KINDS = (Node, Network, Service, Task)


def _change(rng: random.Random, assignments: Assignments, world: dict[str, object]) -> None:
    if world and rng.random() < 0.15:
        gone = world.pop(rng.choice(list(world)))
        assignments.observe(gone, removed=True)  # type: ignore[arg-type]
        return
    number, on = rng.randint(1, 8), rng.randint(1, 4)
    networks = rng.choice([("a",), ("b",), ("a", "b"), ()])
    match rng.choice("nwstttt"):
        case "n":
            new: object = node(on, rng.choice([NodeState.READY, NodeState.DOWN]))
            if rng.random() < 0.2:
                assert isinstance(new, Node)
                new = replace(new, status=NodeStatus(state=NodeState.READY))
        case "w":
            new = network(rng.choice("ab"))
        case "s":
            new = service(*networks, ports=rng.random() < 0.5)
        case _:
            old = world.get(f"task-{number}")
            if isinstance(old, Task) and rng.random() < 0.8:
                state = rng.choice([s for s in S if s >= old.status.state])
                desired = rng.choice([s for s in S if s >= old.desired_state])
                status = replace(old.status, state=state)
                new = replace(old, status=status, desired_state=desired)
            elif old is None:
                new = task(number, on, *networks, state=rng.choice([S.PENDING, S.ASSIGNED]))
            else:
                return
    world[new.id] = new  # type: ignore[attr-defined]
    assignments.observe(new, removed=False)  # type: ignore[arg-type]
