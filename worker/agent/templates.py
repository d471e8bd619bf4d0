"""Placeholders in a service's environment, hostname and mounts, as Swarm has them. Pure.

{{.Service.Name}}  {{.Task.Slot}}  {{.Node.Hostname}}  {{index .Service.Labels "tier"}}
"""

import re
from collections.abc import Mapping

import msgspec

from common.errors import Invalid
from common.model.node import NodeDescription
from common.model.task import Task

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_INDEX = re.compile(r"""^index\s+\.(Service|Node)\.Labels\s+["`]([^"`]*)["`]$""")


class Context(msgspec.Struct, frozen=True):
    """What placeholders may name."""

    fields: Mapping[str, str]
    labels: Mapping[str, Mapping[str, str]]  # "Service", "Node"


def context(task: Task, node: NodeDescription) -> Context:
    """Of a task on the node so described. The slot of a global task is its node's id."""
    return Context(
        fields={
            ".Service.ID": task.service_id,
            ".Service.Name": task.service_annotations.name,
            ".Task.ID": task.id,
            ".Task.Name": task.name,
            ".Task.Slot": str(task.slot) if task.slot else task.node_id,
            ".Node.ID": task.node_id,
            ".Node.Hostname": node.hostname,
            ".Node.Platform.OS": node.platform.os,
            ".Node.Platform.Architecture": node.platform.architecture,
        },
        labels={
            "Service": task.service_annotations.labels,
            "Node": node.engine.labels,
        },
    )


def expand(text: str, context: Context) -> str:
    """`text` with its placeholders filled in. Raises Invalid for an unknown one."""
    return _PLACEHOLDER.sub(lambda match: _value(match[1].strip(" -"), context), text)


def _value(expression: str, context: Context) -> str:
    if expression in context.fields:
        return context.fields[expression]
    if index := _INDEX.match(expression):
        return context.labels[index[1]].get(index[2], "")
    known = " ".join(context.fields)
    raise Invalid(
        f"template {{{{{expression}}}}} cannot be expanded; what can be named is: {known},"
        ' index .Service.Labels "KEY" and index .Node.Labels "KEY"'
    )
