"""Restart policies and health checks of the whole engine, in virtual time and without a kernel."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.model.container import ContainerCreate, HostConfig, RestartRule
from common.model.task import SECOND, HealthConfig
from tests.support.fake_keeper import Kept, fake_engine
from worker.engine.container import Container
from worker.engine.engine import Engine


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def engine(
    tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    engine = fake_engine(tmp_path, kept, monkeypatch)
    await engine.open()
    yield engine
    await engine.close()


def body(policy: str = "", most: int = 0, **fields: Any) -> ContainerCreate:
    rule = RestartRule(name=policy, maximum_retry_count=most)
    host = HostConfig(restart_policy=rule, security_opt=("seccomp=unconfined",))
    return ContainerCreate(image="img", host_config=host, **fields)


async def begin(engine: Engine, policy: str = "", most: int = 0, **fields: Any) -> Container:
    ref = await engine.create(body(policy, most, **fields))
    await engine.start(ref)
    return engine.find(ref)


def pauses(kept: Kept, ran_s: float) -> list[float]:
    """Between each end and the next start."""
    times = [at for at, _ in kept.starts]
    return [round(b - a - ran_s, 3) for a, b in itertools.pairwise(times)]


async def test_back_off_doubles_up_to_a_minute(engine: Engine, kept: Kept) -> None:
    kept.lifetime = (1.0, 1)
    container = await begin(engine, "always")
    await container.until(lambda c: c.current.restart_count >= 12)
    assert pauses(kept, 1.0) == [
        0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0,
    ]  # fmt: skip


async def test_ten_seconds_of_running_begin_anew(engine: Engine, kept: Kept) -> None:
    kept.lifetime = (1.0, 0)
    container = await begin(engine, "unless-stopped")
    await container.until(lambda c: c.current.restart_count >= 4)
    kept.lifetime = (9.9, 0)  # from the next start on
    await container.until(lambda c: c.current.restart_count >= 5)
    kept.lifetime = (10.0, 0)
    await container.until(lambda c: c.current.restart_count >= 7)
    times = [at for at, _ in kept.starts]
    assert round(times[6] - times[5] - 9.9, 3) == 3.2
    assert round(times[7] - times[6] - 10.0, 3) == 0.1


async def test_on_failure_gives_up_and_success_is_none(engine: Engine, kept: Kept) -> None:
    kept.lifetime = (1.0, 3)
    failing = await begin(engine, "on-failure", 3)
    await failing.until(lambda c: c.state == "exited")
    assert (failing.current.restart_count, failing.exit_code) == (3, 3)
    assert pauses(kept, 1.0) == [0.1, 0.2, 0.4]
    kept.lifetime = (1.0, 0)
    fine = await begin(engine, "on-failure")
    await fine.until(lambda c: c.state == "exited")
    assert fine.current.restart_count == 0


async def test_a_stop_ends_the_loop_and_a_start_begins_anew(engine: Engine, kept: Kept) -> None:
    kept.lifetime = (1.0, 1)
    container = await begin(engine, "always")
    await container.until(lambda c: c.current.restart_count >= 8)
    await container.until(lambda c: c.state == "restarting")
    await engine.stop(container.id)
    assert container.state == "exited"
    count = len(kept.starts)
    await asyncio.sleep(3600)
    assert len(kept.starts) == count
    kept.lifetime = None
    await engine.start(container.id)
    await engine.stop(container.id)  # by its signal, as the fake dies of any
    await asyncio.sleep(3600)
    assert container.state == "exited"


async def test_who_runs_after_the_daemon_was_away(
    tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What died meanwhile, as in a reboot, and what the user had stopped before."""
    before = fake_engine(tmp_path, kept, monkeypatch)
    await before.open()
    names = {}
    for policy in ("no", "on-failure", "unless-stopped", "always"):
        for stopped in (False, True):
            container = await begin(before, policy)
            names[container.id] = (policy, stopped)
            if stopped:
                await before.stop(container.id)
    alive = await begin(before, "no")
    await before.close()
    for name in list(kept.running):
        if name != alive.id:
            kept.end(name, 137)
    kept.starts.clear()
    after = fake_engine(tmp_path, kept, monkeypatch)
    await after.open()
    await asyncio.sleep(60)
    started = {names[name] for _, name in kept.starts}
    assert started == {
        ("on-failure", False), ("unless-stopped", False), ("always", False), ("always", True),
    }  # fmt: skip
    assert {names.get(c.id) for c in after.list()} == started | {None}
    assert after.find(alive.id).state == "running"
    assert len(kept.starts) == 4
    await after.close()


async def test_a_back_off_goes_on_with_the_next_daemon(
    tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waited for its restart when the daemon ended is started by the next one."""
    kept.lifetime = (1.0, 1)
    before = fake_engine(tmp_path, kept, monkeypatch)
    await before.open()
    container = await begin(before, "always")
    await container.until(lambda c: c.current.restart_count >= 9)
    await container.until(lambda c: c.state == "restarting")
    await before.close()
    count = len(kept.starts)
    after = fake_engine(tmp_path, kept, monkeypatch)
    await after.open()
    await after.wait_for(container.id, lambda c: c.state == "running")
    assert len(kept.starts) == count + 1
    await after.close()


class Probes:
    """In place of exec: each probe takes `took_s` and says what `good` says."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.good, self.took_s, self.at = True, 0.0, list[float]()
        monkeypatch.setattr(engine._execs, "run", self._run)

    async def _run(
        self, container: Container, command: tuple[str, ...], timeout_s: float, limit: int
    ) -> tuple[int | None, bytes]:
        self.at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(min(self.took_s, timeout_s))
        if self.took_s > timeout_s:
            return None, b"slow"
        return (0 if self.good else 1), b"words"


CHECK = HealthConfig(test=("CMD", "ok"), interval=10 * SECOND, timeout=3 * SECOND, retries=2)


async def test_health_over_a_containers_life(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found healthy within a second, then probed by the interval; sick by retries; well again by
    one success; events tell of each change, and a restart begins anew."""
    probes, loop = Probes(engine, monkeypatch), asyncio.get_running_loop()
    probes.good = False
    container = await begin(engine, healthcheck=CHECK)
    begun = loop.time()
    assert container.health == "starting"
    await asyncio.sleep(4.5)
    probes.good = True
    await container.until(lambda c: c.health == "healthy")
    assert loop.time() - begun <= 5.5
    probes.good = False
    healthy = loop.time()
    await container.until(lambda c: c.health == "unhealthy")
    assert loop.time() - healthy == pytest.approx(20.0, abs=0.1)
    assert container.failing_streak == 2
    assert container.probes[-1].exit_code == 1
    probes.good = True
    await container.until(lambda c: c.health == "healthy")
    assert container.failing_streak == 0
    await asyncio.sleep(1000)
    assert len(container.probes) == 5
    probes.good = False
    await engine.restart(container.id)
    assert container.health == "starting"
    told = [
        event["Action"]
        async for event in engine.events.subscribe(since_ns=1, until_ns=_now_ns(engine))
        if event["Action"].startswith("health")
    ]
    assert told == [f"health_status: {word}" for word in ("healthy", "unhealthy", "healthy")]


def _now_ns(engine: Engine) -> int:
    return int(engine._clock.now().timestamp() * 1e9)


async def test_slow_probes_and_the_start_period(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that takes too long is a failure, and none in the start period counts."""
    probes, loop = Probes(engine, monkeypatch), asyncio.get_running_loop()
    probes.took_s = 5.0
    slow = HealthConfig(
        test=("CMD", "ok"), interval=10 * SECOND, timeout=3 * SECOND, retries=2,
        start_period=60 * SECOND, start_interval=2 * SECOND,
    )  # fmt: skip
    container = await begin(engine, healthcheck=slow)
    begun = loop.time()
    await container.until(lambda c: c.health == "unhealthy")
    assert 70 <= loop.time() - begun <= 90
    gaps = [round(b - a - 3.0, 3) for a, b in itertools.pairwise(probes.at)]
    assert max(gaps) == 2.0
    assert sum(gap < 1.0 for gap in gaps) <= len(gaps) / 3  # as an interval ends
    assert container.probes[-1].output == "Health check exceeded timeout (3s)"
    count = len(probes.at)
    await engine.stop(container.id)
    await asyncio.sleep(1000)
    assert len(probes.at) == count
