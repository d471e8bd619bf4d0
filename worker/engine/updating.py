"""Limits and restart policy of a container, changed while it lives. Pure."""

import msgspec

from common.errors import Invalid
from common.model.container import HostConfig, Limits, RestartRule
from worker.engine import request


class ContainerUpdate(Limits, frozen=True, kw_only=True):
    """The body of `POST /containers/{id}/update`: what is 0, empty or missing stays."""

    restart_policy: RestartRule | None = None


def updated(host: HostConfig, update: ContainerUpdate, available: int) -> HostConfig:
    """`host` with `update`. Raises Invalid."""
    fields = {name: getattr(update, name) for name in ContainerUpdate.__struct_fields__}
    changes = {name: value for name, value in fields.items() if value not in (0, "", None, ())}
    if update.pids_limit == 0:
        changes["pids_limit"] = -1
    rule = update.restart_policy
    if rule is not None and not rule.name:
        del changes["restart_policy"]
    elif rule is not None and host.auto_remove and rule.name != "no":
        raise Invalid("Restart policy cannot be updated because AutoRemove is enabled")
    if update.memory > 0 and not update.memory_swap and 0 < host.memory_swap < update.memory:
        raise Invalid(
            "Memory limit should be smaller than already set memoryswap limit, update the "
            "memoryswap at the same time"
        )
    return request.check_host(msgspec.structs.replace(host, **changes), available)
