"""The demo's story, step by step, as assertions. The tests build on one another."""

import subprocess
import sys

import pytest

from lab.api import wait_until
from lab.cluster import Cluster
from lab.machine import Machine
from lab.story import REPLICAS, Answers, Story, evenness

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Story:
    cluster.up(3)
    told: list[str] = []
    story = Story(cluster, told.append)
    story.load_images()
    story.create()
    story.create_client()
    return story


def assert_even(answers: Answers, responders: int = REPLICAS) -> None:
    """All replicas answered, none failed, and none had a wholly different share."""
    assert answers.failures == {}
    assert answers.responders == responders
    counts = evenness(answers)
    assert counts[0] >= 0.3 * answers.answered / responders, counts


def test_six_replicas_are_spread_over_three_machines(story: Story) -> None:
    """SCH 3."""
    assert story.spread() == {"m1": 2, "m2": 2, "m3": 2}


def test_a_command_runs_in_a_task_wherever_it_is(story: Story) -> None:
    """service exec: through any manager, with standard input and the exit code; and a plan."""

    def shoal(machine: Machine, *line: str, data: bytes = b"") -> tuple[int, bytes]:
        command = [sys.executable, "-m", "cli.main", "-H", machine.host, *line]
        done = subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    api = story.cluster.machines[0].api
    tasks = [task for task in api.get("/tasks") if task["Status"]["State"] == "running"]
    first = next(task for task in tasks if task.get("Slot") == 1)
    name = api.get(f"/services/{first['ServiceID']}")["Spec"]["Name"]
    script = "cat; echo $NUMBER >&2; hostname; exit 9"
    for machine in story.cluster.machines:
        line = ["service", "exec", "-i", "-e", "NUMBER=5", f"{name}.1", "sh", "-c", script]
        code, said = shoal(machine, *line, data=b"x" * 300_000)
        assert code == 9, said[-200:]
        container = first["Status"]["ContainerStatus"]["ContainerID"]
        assert said.count(b"x") == 300_000
        assert b"5\n" in said
        assert container[:12].encode() in said
        code, said = shoal(machine, "service", "exec", f"{name}.99", "true")
        assert (code, b"no task of service" in said) == (1, True)
        assert shoal(machine, "service", "exec", name, "nothing-there")[0] == 127
        code, said = shoal(machine, "node", "drain", "--dry-run", "m3")
        assert code == 0
        assert b"2 to move" in said


def test_the_virtual_ip_is_answered_evenly_by_all(story: Story) -> None:
    assert_even(story.ask_virtual_ip())


def test_the_published_port_of_every_machine_is_answered_evenly_by_all(story: Story) -> None:
    for machine in story.cluster.machines:
        assert_even(story.ask_port(machine))
    assert_even(story.ask_port_from_outside(story.cluster.machines[1], 300))


def test_a_rolling_update_loses_no_request(story: Story) -> None:
    """UPD 76, 84, 254: neither through a published port nor through the virtual IP."""
    _, answers = story.update(2)
    assert answers.failures == {}
    assert answers.answered > 50
    assert {text.split()[-1] for text in answers.answers} == {"1", "2"}
    assert {text.split()[-1] for text in story.ask_virtual_ip().answers} == {"2"}


def test_draining_a_machine_empties_it_and_loses_no_request(story: Story) -> None:
    """REP 66."""
    machine = story.cluster.machines[2]
    _, answers = story.drain(machine)
    assert answers.failures == {}
    assert machine.name not in story.spread()
    assert_even(story.ask_port(machine))  # a machine with no task answers as well
    story.activate(machine)


def test_the_leaders_machine_dies_and_writes_go_on(story: Story) -> None:
    """RAF 175; its tasks are replaced, and it comes back."""
    dead, _ = story.kill_leader()
    story.wait_replaced(dead)
    story.bring_back(dead)
    wait_until(lambda: len(story.running()) == REPLICAS, "all replicas run", 30)


def test_a_cut_machine_is_replaced_and_used_again(story: Story) -> None:
    """REP 66, NOD 225: it keeps its id, and stops what was replaced."""
    leader = story.cluster.leader()
    places = story.spread()
    machine = next(
        item for item in story.cluster.machines if item is not leader and item.name in places
    )
    ids = {node["ID"] for node in story.cluster.nodes()}
    story.cut(machine)
    assert machine.name not in story.spread()
    story.bring_back(machine)
    assert {node["ID"] for node in story.cluster.nodes()} == ids
    story.use_again(machine, REPLICAS + 3)
    assert_even(story.ask_port(machine, 400), REPLICAS + 3)


def test_containers_outlive_a_killed_daemon(story: Story) -> None:
    """NOD 225, AGT 237: the daemon comes back and adopts what runs."""
    machine = story.cluster.machines[1]

    def containers() -> set[str]:
        return {row["Id"] for row in machine.api.get("/containers/json")}

    before = containers()
    assert before
    machine.kill_daemon()
    machine.start_daemon()
    assert containers() == before
    wait_until(lambda: len(story.running()) == REPLICAS + 3, "all tasks still run", 30)
    assert containers() == before


def test_services_and_networks_go_without_a_trace(story: Story) -> None:
    story.remove()
    for machine in story.cluster.machines:
        wait_until(
            lambda machine=machine: machine.api.get("/containers/json", all=1) == [],  # type: ignore[misc]
            f"{machine.name} has no container",
            20,
        )
