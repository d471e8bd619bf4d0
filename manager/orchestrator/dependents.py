"""Which services have to look again when another one changed: the reverse of shoal.depends_on."""

from common.model.node import Node
from common.model.service import Service
from common.model.task import Task
from manager.orchestrator.ordering import names
from manager.orchestrator.scene import is_lost
from manager.store.store import Event


class Dependents:
    """Service ids by the lower-case names of what they depend on."""

    def __init__(self) -> None:
        self._of_name: dict[str, dict[str, None]] = {}
        self._names: dict[str, list[str]] = {}

    def put(self, service: Service) -> None:
        """Take in a service, new or changed."""
        wanted = names(service.spec)
        if wanted == self._names.get(service.id, []):
            return
        self.remove(service.id)
        self._names[service.id] = wanted
        for name in wanted:
            self._of_name.setdefault(name, {})[service.id] = None

    def remove(self, id: str) -> None:
        for name in self._names.pop(id, ()):
            del self._of_name[name][id]
            if not self._of_name[name]:
                del self._of_name[name]

    def of(self, event: Event) -> dict[str, None]:
        """The services whose waiting `event` may end, or begin."""
        if not self._of_name:
            return {}
        match event.object, event.old:
            case Service() as service, _:
                return dict(self._of_name.get(service.spec.name.lower(), ()))
            case Task() as task, old:
                if isinstance(old, Task) and event.action == "update" and _alike(task, old):
                    return {}
                return dict(self._of_name.get(task.service_annotations.name.lower(), ()))
            case Node() as node, Node() as old_node if is_lost(node) != is_lost(old_node):
                return dict.fromkeys(self._names)
        return {}


def _alike(task: Task, old: Task) -> bool:
    return task.status.state is old.status.state and task.desired_state is old.desired_state
