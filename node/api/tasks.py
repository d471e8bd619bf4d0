"""/tasks: attempts to run a slot of a service on a node."""

from typing import Any

from aiohttp import web

from common.model.base import to_builtins
from common.model.network import Network
from common.model.task import Task
from node.api import body
from node.api.daemon import Daemon
from node.api.logs import cluster_logs
from node.api.routes import Route, json_response
from node.api.services import manager


class TaskRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/tasks", self.index, on_leader=True, stale=True),
            Route("GET", "/tasks/{id}", self.inspect, on_leader=True, stale=True),
            Route("GET", "/tasks/{id}/logs", self.logs, on_leader=True),
        ]

    async def index(self, request: web.Request) -> web.StreamResponse:
        """With `limit`, one page: by id, those behind the id `after`."""
        api, filters = manager(self._daemon).api.tasks, body.filters(request)
        limit = body.number(request, "limit")
        if limit is None:
            tasks = api.list(filters)
        else:
            tasks = api.page(filters, limit, request.query.get("after", ""))
        return json_response([self._json(task) for task in tasks])

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        task = manager(self._daemon).api.tasks.get(request.match_info["id"])
        return json_response(self._json(task))

    async def logs(self, request: web.Request) -> web.StreamResponse:
        task = manager(self._daemon).api.tasks.get(request.match_info["id"])
        container = task.spec.container_spec
        tty = container is not None and container.tty
        return await cluster_logs(request, self._daemon, tty=tty, task_id=task.id)

    def _json(self, task: Task) -> dict[str, Any]:
        """A task as Docker shows it: each attachment holds its whole network.

        Docker counts the slots of jobs from 0, and its clients wait for just these.
        """
        data: dict[str, Any] = to_builtins(task)
        if task.job_iteration is not None and task.slot:
            data["Slot"] = task.slot - 1
        if task.networks_attachments:
            view = manager(self._daemon).store.view()
            data["NetworksAttachments"] = [
                {
                    "Network": _network(view.get(Network, attachment.network_id)),
                    "Addresses": list(attachment.addresses),
                }
                for attachment in task.networks_attachments
            ]
        return data


def _network(network: Network | None) -> dict[str, Any]:
    if network is None:
        return {}
    return {
        "ID": network.id,
        "Version": to_builtins(network.version),
        "CreatedAt": to_builtins(network.created_at),
        "UpdatedAt": to_builtins(network.updated_at),
        "Spec": {"Name": network.spec.name, "DriverConfiguration": {"Name": "overlay"}},
        "DriverState": {"Name": "overlay", "Options": {"vni": str(network.vni)}},
        "IPAMOptions": {"Configs": to_builtins(network.ipam.config)},
    }
