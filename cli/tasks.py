"""How lists of tasks are shown, for services and for nodes."""

from typing import Any

from cli import format as fmt
from cli.client import ApiError, Client

_HEADINGS = ("ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS")
_ERROR_WIDTH = 60  # characters shown of an error, unless all is asked for


def show_tasks(
    client: Client, tasks: list[dict[str, Any]], *, quiet: bool, output: str, whole: bool = False
) -> None:
    """Print tasks, the newest of each slot first and its predecessors indented below."""
    services = _names(client, "/services", lambda item: item["Spec"]["Name"])
    nodes = _names(client, "/nodes", lambda item: item.get("Description", {}).get("Hostname", ""))
    tasks.sort(key=lambda task: task["CreatedAt"], reverse=True)
    tasks.sort(key=lambda task: _slot(task, services, nodes))
    rows, above = [], ""
    for task in tasks:
        name = _slot_name(task, services, nodes)
        shown = f" \\_ {name}" if name == above and not quiet else name
        rows.append(_row(task, shown, nodes, whole))
        above = name
    fmt.show(_HEADINGS, rows, tasks, quiet=quiet, output=output)


def slot(task: dict[str, Any]) -> int:
    """The number of the task's slot, from 1; 0 if its place is a node. The API counts those of
    replicated jobs from 0, as Docker's does."""
    number = int(task.get("Slot", 0))
    return number + 1 if "Slot" in task and "JobIteration" in task else number


def _names(client: Client, path: str, name_of: Any) -> dict[str, str]:
    try:
        return {item["ID"]: name_of(item) for item in client.get(path)}
    except ApiError:
        return {}  # the ids are shown instead


def _slot(
    task: dict[str, Any], services: dict[str, str], nodes: dict[str, str]
) -> tuple[str, int, str]:
    node = nodes.get(task.get("NodeID", ""), "")
    return services.get(task.get("ServiceID", ""), ""), slot(task), node


def _slot_name(task: dict[str, Any], services: dict[str, str], nodes: dict[str, str]) -> str:
    service = services.get(task.get("ServiceID", ""), task.get("ServiceID", ""))
    return f"{service}.{slot(task) or task.get('NodeID', '')}"


def _row(task: dict[str, Any], name: str, nodes: dict[str, str], whole: bool) -> tuple[str, ...]:
    status = task["Status"]
    node_id = task.get("NodeID", "")
    error = status.get("Err", "") or (
        status.get("Message", "") if status["State"] == "pending" else ""
    )
    if len(error) > _ERROR_WIDTH and not whole:
        error = error[: _ERROR_WIDTH - 1] + "…"
    ports = (status.get("PortStatus") or {}).get("Ports", [])
    return (
        task["ID"] if whole else fmt.short(task["ID"]),
        name,
        task["Spec"].get("ContainerSpec", {}).get("Image", ""),
        nodes.get(node_id) or node_id,
        fmt.state(task["DesiredState"]),
        f"{fmt.state(status['State'])} {fmt.ago(status['Timestamp'])} ago",
        error,
        ",".join(
            f"{port.get('HostIp') or '*'}:{port['PublishedPort']}->{port['TargetPort']}"
            f"/{port['Protocol']}"
            for port in ports
        ),
    )
