"""Health checks: a command inside the container, again and again.

Failures count as with Docker: one for each interval, from the first interval after the start on,
none in the start period. Between those, while the container is starting, there are quicker probes
that can only find it healthy: so a service is in use as soon as it works.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from common.clock import Clock
from common.errors import ShoalError
from common.model.task import SECOND, HealthConfig
from worker.engine.background import Background
from worker.engine.container import Container, Probe
from worker.engine.exec import Execs

_INTERVAL, _TIMEOUT, _RETRIES, _START_INTERVAL = 30 * SECOND, 30 * SECOND, 3, 5 * SECOND
_QUICK_S = 1.0
_KEPT, _OUTPUT = 5, 4096


class Rules(NamedTuple):
    """Seconds."""

    interval: float
    timeout: float
    start_period: float
    start_interval: float  # while starting
    retries: int


def rules(config: HealthConfig) -> Rules:
    """With Docker's defaults; quicker at the start where none was asked for."""
    interval = (config.interval or _INTERVAL) / SECOND
    if config.start_interval or config.start_period:
        quick = (config.start_interval or _START_INTERVAL) / SECOND
    else:
        quick = min(interval, _QUICK_S)
    return Rules(
        interval=interval,
        timeout=(config.timeout or _TIMEOUT) / SECOND,
        start_period=config.start_period / SECOND,
        start_interval=min(quick, interval),
        retries=config.retries or _RETRIES,
    )


class Verdict:
    """What the probes so far say. Times are seconds since the start."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._next_counted = rules.interval
        self.status = "starting"
        self.streak = 0

    def observe(self, at: float, good: bool) -> None:
        """Take a probe that ended `at`."""
        if good:
            self.status, self.streak = "healthy", 0
        elif self._counts(at):
            self.streak += 1
            if self.streak >= self._rules.retries:
                self.status = "unhealthy"

    def _counts(self, at: float) -> bool:
        if self.status != "starting":
            return True
        counts = at >= max(self._rules.start_period, self._next_counted)
        while self._next_counted <= at:  # also in the start period: else `wait` would be for none
            self._next_counted += self._rules.interval
        return counts

    def wait(self, at: float) -> float:
        """Seconds until the next probe."""
        if self.status != "starting":
            return self._rules.interval
        return max(min(self._rules.start_interval, self._next_counted - at), 0.01)


def command(config: HealthConfig, shell: tuple[str, ...] | None) -> tuple[str, ...]:
    """What a probe executes."""
    if config.test[0] == "CMD-SHELL":
        return (*(shell or ("/bin/sh", "-c")), " ".join(config.test[1:]))
    return config.test[1:]


class Monitors:
    """One task for each running container that has a check."""

    def __init__(
        self,
        execs: Execs,
        clock: Clock,
        background: Background,
        publish: Callable[[Container, str], None],
    ) -> None:
        self._execs = execs
        self._clock = clock
        self._background = background
        self._publish = publish
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, container: Container, adopted: bool = False) -> None:
        """After a start, or when a running one is found: that one keeps no memory of its health."""
        self.end(container)
        if container.config.healthcheck is None:
            return
        container.health, container.failing_streak, container.probes = "starting", 0, []
        work = self._watch(container, container.config.healthcheck)
        self._tasks[container.id] = self._background.start(work, f"health of {container.name}")
        container.changed()

    def end(self, container: Container) -> None:
        task = self._tasks.pop(container.id, None)
        if task is not None:
            task.cancel()

    async def _watch(self, container: Container, config: HealthConfig) -> None:
        rules_, loop = rules(config), asyncio.get_running_loop()
        verdict, begin = Verdict(rules_), loop.time()
        line = command(config, container.config.shell)
        while container.live:
            if container.state == "running":
                good = await self._probe(container, line, rules_.timeout)
                if good is None:
                    return
                verdict.observe(loop.time() - begin, good)
                self._take(container, verdict)
            await asyncio.sleep(verdict.wait(loop.time() - begin))

    async def _probe(
        self, container: Container, line: tuple[str, ...], timeout_s: float
    ) -> bool | None:
        """None: the container ended under it."""
        begin = self._clock.now()
        try:
            code, output = await self._execs.run(container, line, timeout_s, _OUTPUT)
        except ShoalError as error:
            if container.state != "running":
                return None
            code, output = getattr(error, "code", -1) or -1, str(error).encode()
        if not container.live:
            return None
        text = output.decode(errors="replace")
        if code is None:
            code, text = -1, f"Health check exceeded timeout ({timeout_s:g}s)"
        probe = Probe(start=begin, end=self._clock.now(), exit_code=code, output=text)
        container.probes = [*container.probes[-_KEPT + 1 :], probe]
        return code == 0

    def _take(self, container: Container, verdict: Verdict) -> None:
        container.failing_streak = verdict.streak
        if container.health != verdict.status:
            container.health = verdict.status
            self._publish(container, f"health_status: {verdict.status}")
            container.changed()
