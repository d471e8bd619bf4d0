"""When a container that ended is started again. Pure."""

from common.model.container import RestartRule

_FIRST_S, _LONGEST_S = 0.1, 60.0
_STABLE_S = 10.0  # one that ran this long starts anew with the shortest delay


def delay(
    rule: RestartRule,
    *,
    exit_code: int,
    manually_stopped: bool,
    restarts: int,
    ran_s: float,
    last_s: float,
) -> float | None:
    """Seconds until the next start, doubling from 0.1 up to 60; None: it stays ended."""
    if manually_stopped or rule.name in ("", "no"):
        return None
    if rule.name == "on-failure":
        if exit_code == 0:
            return None
        if rule.maximum_retry_count and restarts >= rule.maximum_retry_count:
            return None
    if ran_s >= _STABLE_S or last_s <= 0:
        return _FIRST_S
    return min(last_s * 2, _LONGEST_S)


def at_boot(rule: RestartRule, *, manually_stopped: bool, was_running: bool) -> bool:
    """Whether a container that does not run is started with the daemon.

    `always` also after a manual stop, `unless-stopped` not; `on-failure` if it was running.
    """
    if rule.name == "always":
        return True
    if rule.name == "unless-stopped":
        return not manually_stopped
    return rule.name == "on-failure" and was_running and not manually_stopped
