"""Placeholders in a service's environment, hostname and mounts, as Swarm has them. Pure.

{{.Service.Name}}  {{.Task.Slot}}  {{.Node.Hostname}}  {{index .Service.Labels "tier"}}

Secrets and configs that are templates may also say {{env "NAME"}}, {{secret "target"}} and
{{config "target"}}.
"""

import re
from collections.abc import Mapping

import msgspec

from common.errors import Invalid
from common.model.node import NodeDescription
from common.model.task import Task

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_INDEX = re.compile(r"""^index\s+\.(Service|Node)\.Labels\s+["`]([^"`]*)["`]$""")

_CALL = re.compile(r"""^(env|secret|config)\s+["`]([^"`]*)["`]$""")

_FIELDS = (
    ".Service.ID",
    ".Service.Name",
    ".Task.ID",
    ".Task.Name",
    ".Task.Slot",
    ".Node.ID",
    ".Node.Hostname",
    ".Node.Platform.OS",
    ".Node.Platform.Architecture",
)


class Context(msgspec.Struct, frozen=True):
    """What placeholders may name."""

    fields: Mapping[str, str]
    labels: Mapping[str, Mapping[str, str]]  # "Service", "Node"
    calls: Mapping[str, Mapping[str, str]] = {}  # "env", "secret", "config"


def context(task: Task, node: NodeDescription) -> Context:
    """Of a task on the node so described. The slot of a global task is its node's id."""
    values = (
        task.service_id,
        task.service_annotations.name,
        task.id,
        task.name,
        str(task.slot) if task.slot else task.node_id,
        task.node_id,
        node.hostname,
        node.platform.os,
        node.platform.architecture,
    )
    return Context(
        fields=dict(zip(_FIELDS, values, strict=True)),
        labels={
            "Service": task.service_annotations.labels,
            "Node": node.engine.labels,
        },
    )


def check(text: str, *, calls: bool = False) -> None:
    """Raises Invalid for a placeholder that no task can fill in. `calls`: in a file's data."""
    for match in _PLACEHOLDER.finditer(text):
        expression = match[1].strip(" -")
        if expression in _FIELDS or _INDEX.match(expression):
            continue
        if not (calls and _CALL.match(expression)):
            raise _unknown(expression)


def expand(text: str, context: Context) -> str:
    """`text` with its placeholders filled in. Raises Invalid for an unknown one."""
    return _PLACEHOLDER.sub(lambda match: _value(match[1].strip(" -"), context), text)


def _value(expression: str, context: Context) -> str:
    if expression in context.fields:
        return context.fields[expression]
    if index := _INDEX.match(expression):
        return context.labels[index[1]].get(index[2], "")
    if (call := _CALL.match(expression)) and call[1] in context.calls:
        found = context.calls[call[1]].get(call[2])
        if found is None:
            raise Invalid(f"template {{{{{expression}}}}}: the task has no {call[1]} {call[2]}")
        return found
    raise _unknown(expression)


def _unknown(expression: str) -> Invalid:
    return Invalid(
        f"template {{{{{expression}}}}} cannot be expanded; what can be named is: "
        f"{' '.join(_FIELDS)},"
        ' index .Service.Labels "KEY" and index .Node.Labels "KEY"'
    )
