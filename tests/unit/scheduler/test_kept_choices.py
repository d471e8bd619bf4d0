"""An order of nodes that is kept between passes gives what a walk over all nodes would."""

import datetime as dt
import random

import pytest
from msgspec.structs import replace

from common.model.node import Availability
from common.model.task import Task, TaskState
from manager.scheduler import kept
from manager.scheduler.demand import demand
from manager.scheduler.filters import filters, passes
from manager.scheduler.kept import Choices
from manager.scheduler.nodeset import FAILURES_MAX, LOG_MAX, NodeInfo, NodeSet, spec_key
from manager.scheduler.placement import place
from tests.support import build

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
NODES = 12


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.nodes, self.choices, self.now = NodeSet(), Choices(), START
        self.tasks: list[Task] = []
        self._made = 0
        for number in range(NODES):
            self._node(number, Availability.ACTIVE)
        self.services = [build.service(f"s{n}", cpus=0.5, replicas=9) for n in range(3)]

    def _node(self, number: int, availability: Availability) -> None:
        made = build.node(f"n{number}", id=f"n{number}", cpus=4, availability=availability)
        self.nodes.put_node(made)

    def step(self) -> None:
        self.now += dt.timedelta(seconds=self.rng.choice([0, 1, 20]))
        match self.rng.choice(["place"] * 5 + ["end"] * 3 + ["node", "fail", "gone"]):
            case "place":
                self._place()
            case "end" if self.tasks:
                task = self.tasks.pop(self.rng.randrange(len(self.tasks)))
                self.nodes.remove_task(task.id)
            case "fail" if self.tasks:
                for _ in range(FAILURES_MAX):
                    self.nodes.note_failure(self.rng.choice(self.tasks), self.now)
            case "gone":
                self.nodes.remove_node(f"n{self.rng.randrange(NODES)}")
            case "node":
                what = self.rng.choice(list(Availability))
                self._node(self.rng.randrange(NODES), what)

    def _place(self) -> None:
        self._made += 1
        task = build.task(self.rng.choice(self.services), id=f"t{self._made}")
        need = demand(task)
        fit = [info for info in self.nodes.ready() if passes(filters(task, need), info)]
        ranks = {info.id: self._rank(task, info) for info in fit}
        placed, reason = place(self.nodes, [task], self.now, self.choices)
        if not fit:
            assert (placed, bool(reason)) == ({}, True)
            return
        node_id = placed[task.id]
        assert ranks[node_id] == min(ranks.values())
        assert not reason
        status = replace(task.status, state=TaskState.ASSIGNED)
        self.tasks.append(replace(task, node_id=node_id, status=status))

    def _rank(self, task: Task, info: NodeInfo) -> tuple[int, int, int]:
        failures = info.failures(spec_key(task), self.now)
        return failures, info.active_of.get(task.service_id, 0), info.active


@pytest.mark.parametrize("seed", range(8))
def test_the_best_node_is_always_taken(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WORTH_KEEPING", -100)
    monkeypatch.setattr(kept, "KEPT_MAX", 2 if seed % 2 else 64)
    monkeypatch.setattr("manager.scheduler.nodeset.LOG_MAX", 20 if seed % 4 == 0 else LOG_MAX)
    world = World(seed)
    for _ in range(300):
        world.step()
    assert world.choices._kept
