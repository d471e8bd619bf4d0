"""Places a group of identical tasks: one walk serves all of them. No store, no clock."""

import datetime as dt
from collections.abc import Sequence

from common.model.task import Task
from manager.scheduler.demand import demand
from manager.scheduler.filters import explain, filters, passes
from manager.scheduler.kept import Choices, Kept
from manager.scheduler.nodeset import NodeInfo, NodeSet, spec_key
from manager.scheduler.spread import Best, Branch, Rank, best_of_all, descriptors, tree


def place(
    nodes: NodeSet, tasks: Sequence[Task], now: dt.datetime, choices: Choices | None = None
) -> tuple[dict[str, str], str]:
    """Node ids by task id, entered in the books of `nodes`; and why the others found none.

    `tasks` are of one service and one version of its spec, so what fits one fits all. `choices`
    are those of earlier calls with the same `nodes`.
    """
    first = tasks[0]
    need = demand(first)
    asked = filters(first, need)
    key = spec_key(first)
    service_id = first.service_id

    def rank_at(info: NodeInfo, now: dt.datetime) -> Rank:
        return info.failures(key, now), info.active_of.get(service_id, 0), info.active

    def rank(info: NodeInfo) -> Rank:
        return rank_at(info, now)

    def fits(info: NodeInfo) -> bool:
        return passes(asked, info)

    keys = descriptors(first.spec.placement)
    chooser: Best | Branch | Kept | None = None
    if not keys and choices is not None and service_id and first.spec_version is not None:
        chooser = choices.find(key, lambda: Kept(nodes, rank_at, fits, now), now)
    if keys:
        chooser = tree(keys, nodes.all(), service_id, rank, fits)
    elif chooser is None:
        chooser = best_of_all(rank, fits, nodes.emptiest(), nodes.ready)
    placed: dict[str, str] = {}
    for task in tasks:
        info = chooser.take()
        if info is None:
            break
        nodes.add(task.id, info.id, need)
        placed[task.id] = info.id
        if isinstance(chooser, Branch):
            chooser.back(info, keys)
        else:
            chooser.back(info)
    if isinstance(chooser, Best) and choices is not None:
        choices.walked(key, chooser.looked_at - len(placed))
    return placed, "" if len(placed) == len(tasks) else explain(asked, nodes.all())


def check(nodes: NodeSet, task: Task) -> str:
    """Why a task that is bound to a node does not fit there; "" if it does, and it is entered."""
    need = demand(task)
    asked = filters(task, need)
    info = nodes.get(task.node_id)
    if info is None or info.node is None:
        return f"no suitable node (node {task.node_id} does not exist)"
    if not passes(asked, info):
        return explain(asked, [info])
    nodes.add(task.id, info.id, need)
    return ""
