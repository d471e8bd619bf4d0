"""One thing at a time between a dispatcher and its agents, in virtual time."""

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from common.errors import Invalid, PortTaken
from common.model.cluster import Cluster
from common.model.node import Node, NodeDescription, NodeState
from common.model.task import Task, TaskState
from tests.support.agents_world import AgentsWorld

S = TaskState


@pytest.fixture
def world(tmp_path: Path) -> AgentsWorld:
    return AgentsWorld(tmp_path, seed=1, nodes=3)


def node_state(world: AgentsWorld, number: int) -> NodeState:
    node = world.store.view().get(Node, world.machines[number].id)
    assert node is not None
    return node.status.state


async def test_a_task_runs_and_its_endpoint_reaches_every_node_of_its_network(
    world: AgentsWorld,
) -> None:
    """AGT 232, DIS 152, 153."""
    async with world.running():
        first, second = world.machines[:2]
        a, b = await world.create(first), await world.create(second)
        task = await world.until_state(a, S.RUNNING, 5)
        assert task.status.node_address.startswith("10.192.4.")
        assert task.status.container_status is not None
        assert task.status.container_status.pid
        await world.until_state(b, S.RUNNING, 5)
        await world.until(lambda: first.networks.active(b) and second.networks.active(a), 5)
        assert not world.machines[2].networks.active(a)  # it has nothing on that network


async def test_states_pass_in_order(world: AgentsWorld) -> None:
    seen: list[TaskState] = []
    async with world.running():
        with world.store.watch() as watcher:
            id = await world.create(world.machines[0])
            await world.until_state(id, S.RUNNING)
            world.machines[0].engine.exit(id, 0)
            await world.until_state(id, S.COMPLETE)
            seen = [e.object.status.state for e in watcher.take() if isinstance(e.object, Task)]
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))  # the agent's own word is not echoed and repeated


@pytest.mark.parametrize(
    ("code", "oom", "state", "text"),
    [
        pytest.param(0, False, S.COMPLETE, "", id="exit 0"),
        pytest.param(3, False, S.FAILED, "non-zero exit (3)", id="exit 3"),
        pytest.param(137, True, S.FAILED, "memory", id="out of memory"),
    ],
)
async def test_an_end_is_reported(
    world: AgentsWorld, code: int, oom: bool, state: TaskState, text: str
) -> None:
    """AGT 233."""
    async with world.running():
        id = await world.create(world.machines[0])
        await world.until_state(id, S.RUNNING)
        world.machines[0].engine.exit(id, code, oom=oom)
        task = await world.until_state(id, state)
        assert text in task.status.err
        assert task.status.container_status is not None
        assert task.status.container_status.exit_code == code


async def test_what_fails_before_the_start_is_rejected(world: AgentsWorld) -> None:
    async with world.running():
        world.machines[0].engine.pull_error = Invalid("No such image: web:1")
        id = await world.create(world.machines[0])
        task = await world.until_state(id, S.REJECTED)
        assert task.status.err == "No such image: web:1"


async def test_a_task_whose_port_is_taken_is_rejected_with_the_reason(world: AgentsWorld) -> None:
    async with world.running():
        world.machines[0].engine.start_error = PortTaken("0.0.0.0:80: address already in use")
        id = await world.create(world.machines[0])
        task = await world.until_state(id, S.REJECTED)
        assert task.status.err == "0.0.0.0:80: address already in use"


async def test_what_fails_for_a_time_is_tried_again(world: AgentsWorld) -> None:
    """AGT 234."""
    async with world.running():
        world.machines[0].engine.pull_failures = 2
        id = await world.create(world.machines[0])
        await world.until_state(id, S.RUNNING)


async def test_running_waits_for_health_and_sickness_ends_the_task(world: AgentsWorld) -> None:
    async with world.running():
        engine = world.machines[0].engine
        engine.health = "starting"
        id = await world.create(world.machines[0])
        await world.until_state(id, S.STARTING)
        await asyncio.sleep(5)
        assert world.state(id) is S.STARTING
        engine.change(id, health="healthy")
        await world.until_state(id, S.RUNNING)
        engine.change(id, health="unhealthy")
        task = await world.until_state(id, S.FAILED)
        assert "unhealthy" in task.status.err
        assert engine.stopped == [id]


async def test_a_delayed_task_is_made_but_starts_when_wanted(world: AgentsWorld) -> None:
    async with world.running():
        id = await world.create(world.machines[0], desired=S.READY)
        await world.until_state(id, S.READY)
        await asyncio.sleep(3)
        assert world.machines[0].engine.started == []
        await world.want(id, S.RUNNING)
        await world.until_state(id, S.RUNNING)


async def test_the_stop_signal_comes_after_everybody_knows(world: AgentsWorld) -> None:
    async with world.running():
        first, second = world.machines[:2]
        a, b = await world.create(first), await world.create(second)
        await world.until(lambda: first.networks.active(b) and second.networks.active(a))
        second.networks.step_s = 9.0  # slow, but within the deadline
        known: list[bool] = []
        first.engine.on_stop = lambda id: known.append(second.networks.active(id))
        begin = asyncio.get_running_loop().time()
        await world.want(a, S.SHUTDOWN)
        await world.until_state(a, S.SHUTDOWN)
        assert known == [False]
        assert asyncio.get_running_loop().time() - begin >= 0.2  # the drain


async def test_a_node_that_does_not_answer_delays_a_stop_until_it_is_down(
    world: AgentsWorld,
) -> None:
    async with world.running():
        first, second = world.machines[:2]
        a, b = await world.create(first), await world.create(second)
        await world.until(lambda: first.networks.active(b) and second.networks.active(a))
        second.silence(True)
        begin = asyncio.get_running_loop().time()
        await world.want(a, S.SHUTDOWN)
        await world.until_state(a, S.SHUTDOWN)
        assert 2.2 <= asyncio.get_running_loop().time() - begin < 3.5


async def test_a_node_that_lives_but_never_agrees_delays_a_stop_by_the_deadline_only(
    world: AgentsWorld,
) -> None:
    """And it is counted: it may have sent the task requests to its end."""
    async with world.running():
        first, second = world.machines[:2]
        a, b = await world.create(first), await world.create(second)
        await world.until(lambda: first.networks.active(b) and second.networks.active(a))
        second.networks.error = Invalid("the kernel refuses")
        begin = asyncio.get_running_loop().time()
        await world.want(a, S.SHUTDOWN)
        await world.until_state(a, S.SHUTDOWN)
        assert 10.2 <= asyncio.get_running_loop().time() - begin < 10.5
        assert world.dispatcher.unanswered == 1


async def test_a_dead_nodes_tasks_get_no_new_requests_as_soon_as_it_counts_as_dead(
    world: AgentsWorld,
) -> None:
    """100 ms from the leader's verdict, the time in which the other node's kernel is changed
    included."""
    async with world.running():
        dead, other = world.machines[:2]
        id, far = await world.create(dead), await world.create(other)
        await world.until(lambda: other.networks.active(id))
        dead.silence(True)
        await world.until(lambda: node_state(world, 0) is NodeState.DOWN)
        assert other.networks.active(id)
        await world.until(lambda: not other.networks.active(id), 0.1)
        assert other.networks.active(far)


async def test_shutdown_keeps_the_container_until_the_task_goes(world: AgentsWorld) -> None:
    """Logs of a stopped task remain; with REMOVE nothing does (AGT 235)."""
    async with world.running():
        engine = world.machines[0].engine
        a, b = await world.create(world.machines[0]), await world.create(world.machines[0])
        await world.until_state(a, S.RUNNING)
        await world.until_state(b, S.RUNNING)
        await world.want(a, S.SHUTDOWN)
        await world.want(b, S.REMOVE)
        await world.until_state(a, S.SHUTDOWN)
        await world.until_state(b, S.SHUTDOWN)
        await world.until(lambda: engine.look(b) is None)
        await asyncio.sleep(5)
        assert engine.look(a) is not None
        await world.delete(a)
        await world.until(lambda: engine.look(a) is None)


async def test_a_task_that_is_deleted_while_it_runs_is_stopped_and_removed(
    world: AgentsWorld,
) -> None:
    async with world.running():
        engine = world.machines[0].engine
        id = await world.create(world.machines[0])
        await world.until_state(id, S.RUNNING)
        await world.delete(id)
        await world.until(lambda: engine.look(id) is None)
        assert engine.stopped == [id]


async def test_silence_makes_a_node_down_and_a_word_makes_it_ready(world: AgentsWorld) -> None:
    """DIS 149."""
    async with world.running():
        await world.until(lambda: node_state(world, 0) is NodeState.READY)
        await asyncio.sleep(30)
        assert node_state(world, 0) is NodeState.READY
        begin = asyncio.get_running_loop().time()
        world.machines[0].silence(True)
        await world.until(lambda: node_state(world, 0) is NodeState.DOWN)
        assert 1.9 <= asyncio.get_running_loop().time() - begin <= 4
        node = world.store.view().get(Node, "node-1")
        assert node is not None
        assert node.status.message == "heartbeat failure"
        world.machines[0].silence(False)
        world.machines[0].cut()
        await world.until(lambda: node_state(world, 0) is NodeState.READY)


async def test_a_broken_stream_alone_changes_nothing(world: AgentsWorld) -> None:
    async with world.running():
        id = await world.create(world.machines[0])
        await world.until_state(id, S.RUNNING)
        states: list[NodeState] = []
        with world.store.watch() as watcher:
            for _ in range(5):
                world.machines[0].cut()
                await asyncio.sleep(1.5)
            states = [e.object.status.state for e in watcher.take() if isinstance(e.object, Node)]
        assert set(states) <= {NodeState.READY}
        assert world.machines[0].engine.started == [id]


async def test_a_new_leader_gives_nodes_time(world: AgentsWorld) -> None:
    """DIS 163."""
    async with world.running():
        id = await world.create(world.machines[0])
        await world.until_state(id, S.RUNNING)
        world.machines[2].silence(True)
        await world.end_term()
        begin = asyncio.get_running_loop().time()
        world.lead()
        await world.until(lambda: node_state(world, 2) is NodeState.UNKNOWN)
        await world.until(lambda: node_state(world, 0) is NodeState.READY, 2)
        await world.until(lambda: node_state(world, 2) is NodeState.DOWN)
        assert 5.9 <= asyncio.get_running_loop().time() - begin <= 6.5
        assert world.state(id) is S.RUNNING
        assert world.machines[0].engine.started == [id]


async def test_a_dead_leaders_node_is_down_after_the_usual_time(world: AgentsWorld) -> None:
    """DIS 163: agents need time to find a new leader, but its Raft peers need none."""
    async with world.running():
        await world.until(lambda: node_state(world, 2) is NodeState.READY)
        for machine in world.machines[1:]:
            machine.silence(True)
        await world.end_term()
        world.silent_managers = {world.machines[2].id}
        begin = asyncio.get_running_loop().time()
        world.lead()
        await world.until(lambda: node_state(world, 2) is NodeState.DOWN)
        assert 2.9 <= asyncio.get_running_loop().time() - begin <= 3.5
        assert node_state(world, 1) is NodeState.UNKNOWN
        await world.until(lambda: node_state(world, 1) is NodeState.DOWN)
        assert asyncio.get_running_loop().time() - begin >= 5.9


async def test_an_agent_that_restarts_adopts_what_runs(world: AgentsWorld) -> None:
    """AGT 237, 240; what ended meanwhile is reported."""
    async with world.running():
        machine = world.machines[0]
        a, b = await world.create(machine), await world.create(machine)
        await world.until_state(a, S.RUNNING)
        await world.until_state(b, S.RUNNING)
        await machine.stop()
        machine.engine.exit(b, 9)
        machine.start()
        await world.until_state(b, S.FAILED)
        assert world.state(a) is S.RUNNING
        assert sorted(machine.engine.started) == [a, b]
        assert machine.engine.stopped == []


async def test_after_a_reboot_what_should_run_runs_again_without_a_manager(
    world: AgentsWorld,
) -> None:
    async with world.running():
        machine = world.machines[0]
        id = await world.create(machine)
        await world.until_state(id, S.RUNNING)
        await machine.stop()
        await world.end_term()
        machine.engine.reboot()
        machine.boot_id = "second"
        machine.start()

        def runs() -> bool:
            seen = machine.engine.look(id)
            return seen is not None and seen.live

        await world.until(runs)
        world.lead()
        await asyncio.sleep(10)
        assert world.state(id) is S.RUNNING
        now, said = machine.engine.look(id), world.task(id).status
        assert now is not None
        assert said.container_status is not None
        assert (said.node_address, said.container_status.pid) == (now.node_address, now.pid)
        assert runs()


async def test_after_a_reboot_nothing_old_is_started_that_is_wanted_no_more(
    world: AgentsWorld,
) -> None:
    """A manager in reach says so before the journal's word counts."""
    async with world.running():
        machine = world.machines[0]
        id = await world.create(machine)
        await world.until_state(id, S.RUNNING)
        await machine.stop()
        machine.engine.reboot()
        await world.delete(id)
        machine.boot_id = "second"
        machine.start()
        await world.until(lambda: machine.engine.look(id) is None)
        assert machine.engine.started == [id]


async def test_a_rebooted_nodes_tasks_get_no_requests_until_they_run_again(
    world: AgentsWorld,
) -> None:
    async with world.running():
        machine, other = world.machines[:2]
        id, far = await world.create(machine), await world.create(other)
        await world.until_state(id, S.RUNNING)
        await world.until_state(far, S.RUNNING)
        await world.until(lambda: other.networks.active(id))
        machine.engine.step_s = 20.0  # from here on it takes long to start
        await machine.stop()
        machine.engine.reboot()
        machine.boot_id = "second"
        machine.start()
        await world.until(lambda: not other.networks.active(id), 3)
        assert node_state(world, 0) is NodeState.READY
        await world.until(lambda: other.networks.active(id))
        assert world.state(id) is S.RUNNING
        assert machine.engine.started == [id, id]


async def test_a_node_that_says_goodbye_is_down_at_once_and_may_come_back(
    world: AgentsWorld,
) -> None:
    async with world.running():
        machine = world.machines[0]
        await world.until(lambda: node_state(world, 0) is NodeState.READY)
        await machine.stop()
        await world.dispatcher.left(machine.id)
        assert node_state(world, 0) is NodeState.DOWN
        machine.start()
        await world.until(lambda: node_state(world, 0) is NodeState.READY)
        await asyncio.sleep(10)
        assert node_state(world, 0) is NodeState.READY


async def test_containers_of_unknown_tasks_are_removed_after_the_first_complete_set(
    world: AgentsWorld,
) -> None:
    """AGT 238."""
    async with world.running():
        machine = world.machines[0]
        id = await world.create(machine)
        await world.until_state(id, S.RUNNING)
        await machine.stop()
        (world.folder / "node-1.sqlite").unlink()
        await world.delete(id)
        machine.start()
        await world.until(lambda: machine.engine.look(id) is None)


async def test_a_lost_journal_does_not_cost_running_containers(world: AgentsWorld) -> None:
    async with world.running():
        machine = world.machines[0]
        id = await world.create(machine)
        await world.until_state(id, S.RUNNING)
        await machine.stop()
        (world.folder / "node-1.sqlite").write_bytes(b"garbage" * 1000)
        machine.start()
        await asyncio.sleep(10)
        assert world.state(id) is S.RUNNING
        assert machine.engine.started == [id]
        assert (world.folder / "node-1.damaged").exists()


async def test_a_removed_node_leaves_nothing(world: AgentsWorld) -> None:
    async with world.running():
        machine = world.machines[0]
        id = await world.create(machine)
        await world.until_state(id, S.RUNNING)
        await world.store.update(lambda tx: tx.delete(Node, machine.id))
        await machine.ended()
        assert machine.engine.look(id) is None
        machine.start()  # so that the world can stop it


async def test_a_drifted_table_is_noticed_and_repaired(world: AgentsWorld) -> None:
    async with world.running():
        machine = world.machines[0]
        a = await world.create(machine)
        await world.until(lambda: machine.networks.active(a))
        machine.networks.items.popitem()
        await world.until(lambda: machine.networks.active(a) and len(machine.networks.items) == 5)


async def test_a_table_that_cannot_be_applied_is_tried_again(world: AgentsWorld) -> None:
    async with world.running():
        machine = world.machines[0]
        machine.networks.error = Invalid("the kernel refuses")
        id = await world.create(machine)
        await asyncio.sleep(10)
        assert world.state(id) is S.ASSIGNED  # no task starts without its network
        machine.networks.error = None
        await world.until_state(id, S.RUNNING)


async def test_a_new_description_is_told(world: AgentsWorld) -> None:
    """AGT 230."""
    async with world.running():
        machine = world.machines[0]
        machine.description = NodeDescription(hostname="renamed")

        def told() -> bool:
            node = world.store.view().get(Node, machine.id)
            return node is not None and node.description.hostname == "renamed"

        await world.until(told, 30)


async def test_a_new_heartbeat_period_reaches_running_agents(world: AgentsWorld) -> None:
    """DIS 151."""
    async with world.running():
        await asyncio.sleep(2)

        def slower(tx) -> None:  # type: ignore[no-untyped-def]
            (cluster,) = tx.find(Cluster)
            config = replace(cluster.spec.dispatcher, heartbeat_period=5_000_000_000)
            tx.put(replace(cluster, spec=replace(cluster.spec, dispatcher=config)))

        await world.store.update(slower)
        await asyncio.sleep(40)
        assert [node_state(world, n) for n in range(3)] == [NodeState.READY] * 3
        told = world.machines[0].roles[-1]
        assert msgspec.structs.asdict(told)["heartbeat_s"] == 5


async def test_tasks_of_a_node_that_is_down_for_long_are_orphaned(world: AgentsWorld) -> None:
    """DIS 164."""
    world.orphan_s = 600
    async with world.running():
        id = await world.create(world.machines[0])
        await world.until_state(id, S.RUNNING)
        world.machines[0].silence(True)
        await asyncio.sleep(595)
        assert world.state(id) is S.RUNNING
        await asyncio.sleep(10)
        assert world.state(id) is S.ORPHANED


async def test_thirty_tasks_start_in_a_moment_with_few_messages(world: AgentsWorld) -> None:
    """DIS 158."""
    async with world.running():
        await asyncio.sleep(1)
        applied = [machine.networks.applied for machine in world.machines]
        begin = asyncio.get_running_loop().time()
        ids = [await world.create(world.machines[n % 3]) for n in range(30)]
        await world.until(lambda: all(world.state(id) is S.RUNNING for id in ids))
        assert asyncio.get_running_loop().time() - begin < 1.5
        messages = [m.networks.applied - n for m, n in zip(world.machines, applied, strict=True)]
        assert max(messages) < 60


async def test_logs_of_a_service_come_from_all_nodes_each_line_once(world: AgentsWorld) -> None:
    """LOG 166, 168, 170."""
    async with world.running():
        ids = [await world.create(machine, "web") for machine in world.machines]
        for number, (id, machine) in enumerate(zip(ids, world.machines, strict=True)):
            await world.until_state(id, S.RUNNING)
            machine.engine.lines[id] = [b"%d.%d\n" % (number, line) for line in range(700)]
        lines = [line.data async for line in world.dispatcher.logs(service_id="web")]
        assert sorted(lines) == sorted(b"%d.%d\n" % (n, i) for n in range(3) for i in range(700))
        one = [line.data async for line in world.dispatcher.logs(task_id=ids[1])]
        assert one == [b"1.%d\n" % i for i in range(700)]
        assert [line async for line in world.dispatcher.logs(task_id="nobody's")] == []


async def test_following_logs_survives_a_cut_and_sees_later_tasks(world: AgentsWorld) -> None:
    """LOG 167."""
    async with world.running():
        first, second = world.machines[:2]
        a = await world.create(first, "web")
        await world.until_state(a, S.RUNNING)
        first.engine.lines[a] = [b"a\n" * 3000] * 50  # more than the credit
        found: list[bytes] = []

        async def follow() -> None:
            lines = world.dispatcher.logs(service_id="web", follow=True)
            async with contextlib.aclosing(lines) as open_lines:
                async for line in open_lines:
                    found.append(line.data)  # noqa: PERF401 - read while it grows

        following = asyncio.get_running_loop().create_task(follow())
        await world.until(lambda: len(found) == 50)
        first.engine.lines[a].append(b"late\n")
        first.cut()
        await world.until(lambda: found[-1] == b"late\n")
        b = await world.create(second, "web")
        second.engine.lines[b] = [b"b\n"]
        await world.until(lambda: found[-1] == b"b\n")
        assert len(found) == 52
        following.cancel()
