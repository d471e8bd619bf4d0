"""The driver: what its callers may rely on. Behaviours 173 to 182, 193."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from common.errors import Conflict, NotLeader, ProposalUncertain
from manager.raft.config import RaftConfig
from manager.raft.disk import FileDisk
from manager.raft.driver import Driver, bootstrap
from manager.raft.errors import DiskFailed, LogDamaged
from manager.raft.membership import AddLearner, Promote, Remove, UpdateAddress
from manager.raft.message import Append, Heartbeat, Member, SnapshotMeta, encode
from tests.support.raft_disk import FakeDisk, Platter
from tests.support.raft_world import SIM_CONFIG, Checker, Machine, Process, World, member, until

QUIET = RaftConfig()


@contextlib.asynccontextmanager
async def world(size: int, config: RaftConfig = QUIET) -> AsyncIterator[World]:
    """A cluster of `size` members in a kind world, m1 leading."""
    async with asyncio.TaskGroup() as group:
        made = World("driver", group, config=config)
        await made.found(size)
        try:
            yield made
            if made.checker.violation:
                raise made.checker.violation
        finally:
            for process in made.alive:
                process.crash()


def now() -> float:
    return asyncio.get_running_loop().time()


async def write(process: Process, *values: bytes) -> int:
    return max(await asyncio.gather(*map(process.driver.propose, values)))


async def test_a_write_returns_when_it_is_committed_and_applied_here() -> None:
    async with world(3) as w:
        leader = w.processes["m1"]
        index = await leader.driver.propose(b"x")
        assert leader.machine.values == [(index, b"x")]
        assert leader.driver.status.applied == index


async def test_many_writers_share_syncs_and_messages() -> None:
    async with world(3) as w:
        leader = w.processes["m1"]
        syncs = 0
        real_write = leader.disk.write

        async def count(*args: object) -> None:
            nonlocal syncs
            syncs += 1
            await real_write(*args)  # type: ignore[arg-type]

        leader.disk.write = count  # type: ignore[method-assign, assignment]
        await write(leader, *(b"%d" % number for number in range(1000)))
        assert [value for _, value in leader.machine.values] == [b"%d" % n for n in range(1000)]
        assert syncs < 5


async def test_a_new_leader_writes_within_a_second_and_a_half_of_the_olds_death() -> None:
    """Behaviour 175; typically well below a second."""
    waits = []
    for _ in range(10):
        async with world(3) as w:
            await w.processes["m1"].driver.propose(b"before")
            w.crash("m1")
            died = now()
            leader = await w.await_leader()
            await leader.driver.propose(b"after")
            waits.append(now() - died)
    assert max(waits) < 1.5
    assert sum(waits) / len(waits) < 1.0


async def test_followers_die_and_nobody_notices_until_the_majority_is_gone() -> None:
    """Behaviours 175 and 176."""
    async with world(5) as w:
        leader = w.processes["m1"]
        w.crash("m2")
        w.crash("m3")
        began = now()
        await write(leader, b"1", b"2")
        assert now() - began < 0.2
        w.crash("m4")
        with pytest.raises(ProposalUncertain):
            await leader.driver.propose(b"3")
        assert now() - began < 2
        with pytest.raises(NotLeader, match="no leader"):
            await leader.driver.propose(b"4")
        w.start("m2")
        leader = await w.await_leader()
        await leader.driver.propose(b"5")


async def test_the_leader_says_which_nodes_it_no_longer_hears() -> None:
    async with world(3) as w:
        leader = w.processes["m1"].driver
        w.crash("m3")
        nodes = {member.id: member.node_id for member in leader.status.members}
        assert not leader.status.is_silent(nodes["m3"])  # it has just been heard
        await until(lambda: leader.status.is_silent(nodes["m3"]))
        assert not leader.status.is_silent(nodes["m2"])
        assert not leader.status.is_silent(nodes["m1"])
        assert not leader.status.is_silent("a worker")


async def test_a_write_for_an_old_term_is_refused() -> None:
    async with world(3) as w:
        driver = w.processes["m1"].driver
        term = driver.status.term
        await driver.propose(b"x", term=term)
        with pytest.raises(NotLeader, match="no longer leads in term"):
            await driver.propose(b"y", term=term - 1)


async def test_a_follower_says_who_leads() -> None:
    async with world(3) as w:
        follower = w.processes["m2"].driver
        for call in (follower.propose(b"x"), follower.read_barrier(), follower.transfer()):
            with pytest.raises(NotLeader) as refused:
                await call
            assert refused.value.leader_address == "m1.example:2377"
        leader = follower.status.leader
        assert leader
        assert leader.id == "m1"


async def test_an_overwritten_write_was_surely_not_written() -> None:
    """A leader that was cut off learns that another's entry has its place."""
    async with world(3) as w:
        old = w.processes["m1"]
        w.partition(["m1"])
        task = asyncio.ensure_future(old.driver.propose(b"lost"))  # noqa: TID251 - awaited below
        await until(lambda: any(p is not old and p.driver.status.is_leader for p in w.alive))
        w.heal()
        with pytest.raises((NotLeader, ProposalUncertain)):
            await task
        await w.await_applied(["m1", "m2", "m3"], old.driver.status.commit)
        assert b"lost" not in [value for _, value in w.processes["m2"].machine.values]


async def test_a_read_sees_every_write_acknowledged_before() -> None:
    async with world(3) as w:
        leader = w.processes["m1"].driver
        index = await leader.propose(b"x")
        assert await leader.read_barrier() >= index
        w.partition(["m1"])
        with pytest.raises(NotLeader):
            await leader.read_barrier()


async def test_waiting_for_a_change_misses_none() -> None:
    async with world(3) as w:
        driver = w.processes["m2"].driver
        seen = driver.status
        w.crash("m1")
        roles = []
        while not (seen.leader_id and seen.leader_id != "m1"):
            seen = await driver.wait_change(seen)
            roles.append(seen.role)
        assert roles
        members = seen.members
        leader = await w.await_leader()
        await leader.driver.change_members(UpdateAddress("m1", "elsewhere:1"))
        while seen.members == members:
            seen = await driver.wait_change(seen)
        found = next(m for m in seen.members if m.id == "m1")
        assert found.address == "elsewhere:1"


async def test_a_change_of_address_is_used_even_for_one_who_is_down() -> None:
    """Behaviour 193."""
    async with world(3) as w:
        w.crash("m3")
        await w.processes["m1"].driver.change_members(UpdateAddress("m3", "m3.new:2377"))
        w.start("m3")
        await until(lambda: Member("m3", "node-m3", "m3.new:2377") in w.processes[
            "m3"].driver.status.members)  # fmt: skip


async def test_members_come_and_go_while_writes_go_on() -> None:
    async with world(1) as w:
        leader = w.processes["m1"]
        for number in range(2, 6):
            await w.add(f"m{number}")
            await leader.driver.propose(b"%d" % number)
        for number in range(2, 5):
            await leader.driver.change_members(Remove(f"m{number}"))
            await leader.driver.propose(b"-%d" % number)
        await until(lambda: all(w.processes[f"m{n}"].driver.status.removed for n in (2, 3, 4)))
        await w.await_applied(["m5"], leader.driver.status.commit)
        assert w.processes["m5"].machine.values == leader.machine.values


async def test_two_changes_at_once_wait_for_each_other() -> None:
    async with world(3) as w:
        driver = w.processes["m1"].driver
        for name in ("m4", "m5"):
            w.start(name)
        await asyncio.gather(
            driver.change_members(AddLearner(member("m4"))),
            driver.change_members(AddLearner(member("m5"))),
        )
        await until(lambda: all(f.match > 0 for f in driver.status.followers))
        await driver.change_members(Promote("m4"))
        learners = [m.id for m in driver.status.members if m.learner]
        assert learners == ["m5"]


async def test_a_leader_that_stops_hands_over_first() -> None:
    """Behaviour 179."""
    async with world(3) as w:
        await w.processes["m1"].driver.propose(b"x")
        began = now()
        await w.processes["m1"].driver.stop()
        leader = await w.await_leader()
        assert leader.member.id != "m1"
        await leader.driver.propose(b"y")
        assert now() - began < 0.3
        await until(lambda: not w.processes["m1"].alive)


async def test_leadership_goes_to_whom_it_is_given() -> None:
    async with world(3) as w:
        await w.processes["m1"].driver.transfer("m3")
        leader = await w.await_leader()
        assert leader.member.id == "m3"


async def test_a_hand_over_to_the_unreachable_fails_and_leadership_stays() -> None:
    async with world(3) as w:
        leader = w.processes["m1"].driver
        w.partition(["m2"])
        with pytest.raises(Conflict, match="did not take over"):
            await leader.transfer("m2")
        await leader.propose(b"x")


async def test_all_restart_at_once_and_nothing_is_lost() -> None:
    """Behaviours 182 and 188: from snapshot and log."""
    async with world(3, SIM_CONFIG) as w:
        await write(w.processes["m1"], *(b"%d" % number for number in range(200)))
        before = list(w.processes["m1"].machine.values)
        await until(lambda: all(w.platters[name].snapshots for name in ("m1", "m2", "m3")))
        for name in ("m1", "m2", "m3"):
            w.crash(name)
        for name in ("m1", "m2", "m3"):
            w.start(name)
        leader = await w.await_leader()
        index = await leader.driver.propose(b"after")
        await w.await_applied(["m1", "m2", "m3"], index)
        for name in ("m1", "m2", "m3"):
            assert w.processes[name].machine.values == [*before, (index, b"after")]


async def test_logs_stay_short_under_steady_writes() -> None:
    async with world(3, SIM_CONFIG) as w:
        for _ in range(50):
            await write(w.processes["m1"], *(b"%d" % number for number in range(20)))
        for process in w.alive:
            log = process.driver.raft.log
            assert log.last_index - log.base_index < 3 * SIM_CONFIG.snapshot_entries


async def test_a_leader_without_its_disk_hands_over_and_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Behaviour 178: without waiting for the others to miss it."""
    async with world(3) as w:
        old = w.processes["m1"]
        await old.driver.propose(b"w")
        old.disk.broken = True
        began = asyncio.get_running_loop().time()
        with pytest.raises(ProposalUncertain):
            await old.driver.propose(b"x")
        leader = await w.await_leader()
        assert leader is not old
        assert asyncio.get_running_loop().time() - began < QUIET.election_min_ms / 2000
        await leader.driver.propose(b"y")
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.getMessage() == "the disk has failed"
        with pytest.raises(NotLeader, match="starting or stopping"):
            await old.driver.propose(b"z")


def alone(disk: FakeDisk | FileDisk) -> Driver:
    class Nowhere:
        def send(self, member: Member, message: bytes) -> None: ...

    return Driver(
        member_id="m1",
        config=QUIET,
        disk=disk,
        network=Nowhere(),
        machine=Machine("m1", Checker()),
        rng=random.Random(1),
    )


async def test_a_disk_failure_ends_run_with_the_disks_error() -> None:
    disk = FakeDisk(Platter(), random.Random(1))
    await bootstrap(disk, member("m1"))
    disk.broken = True
    with pytest.raises(DiskFailed, match="no space left"):
        await alone(disk).run()


async def test_a_damaged_snapshot_is_made_anew_and_not_the_leaders_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """RAF 180: found out while a new member gets it; what is in memory is good."""
    async with world(1, SIM_CONFIG) as w:
        leader = w.processes["m1"]
        for number in range(3 * SIM_CONFIG.snapshot_entries):
            await leader.driver.propose(b"%d" % number)
        damaged = leader.driver.raft.snapshot
        assert damaged
        asked = 0
        read = leader.disk.read_snapshot

        async def read_snapshot(meta: SnapshotMeta, offset: int, length: int) -> bytes:
            nonlocal asked
            if meta == damaged:
                asked += 1
                raise LogDamaged("snapshot", offset, "a frame is not what was written")
            return await read(meta, offset, length)

        monkeypatch.setattr(leader.disk, "read_snapshot", read_snapshot)
        await leader.driver.propose(b"so that the next is of another entry")
        await w.add("m2")
        await w.await_applied(["m2"], leader.driver.status.commit)
        assert leader.alive
        assert 0 < asked < 20
        assert w.processes["m2"].machine.values == leader.machine.values
        assert "a snapshot on disk is damaged" in caplog.text


async def test_a_snapshot_that_is_wanted_holds_all_that_was_written_then() -> None:
    """RAF 189: also when it was asked for before the start."""
    async with world(1) as w:
        driver = w.processes["m1"].driver
        await driver.propose(b"x")
        written = driver.raft.log.last_index
        driver.snapshot_soon()
        await until(lambda: driver.raft.snapshot is not None)
        taken = driver.raft.snapshot
        assert taken
        assert taken.index == written
        w.crash("m1")
        again = w.start("m1").driver
        again.snapshot_soon()
        await until(lambda: bool(again.raft.snapshot) and again.raft.snapshot is not taken)


async def test_a_damaged_log_ends_run_with_its_place(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path, "m1")
    await bootstrap(disk, member("m1"))
    await disk.close()
    path = tmp_path / "log-0000000000000001.wal"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(LogDamaged, match=path.name):
        await alone(FileDisk(tmp_path, "m1")).run()


async def test_a_cluster_is_not_made_over_another(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path, "m1")
    await bootstrap(disk, member("m1"))
    with pytest.raises(Conflict, match="already"):
        await bootstrap(disk, member("m1"))
    await disk.close()


@pytest.mark.real_time
async def test_on_real_files_and_time_a_member_alone_writes_and_starts_again(
    tmp_path: Path,
) -> None:
    disk = FileDisk(tmp_path, "m1")
    await bootstrap(disk, member("m1"))
    await disk.close()
    for start in range(3):
        driver = alone(FileDisk(tmp_path, "m1"))
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(driver.run())
            seen = driver.status
            while not seen.is_leader:
                seen = await driver.wait_change(seen)
            await asyncio.gather(*(driver.propose(b"%d" % n) for n in range(100)))
            machine = driver._machine
            assert isinstance(machine, Machine)
            await driver.read_barrier()
            assert len(machine.values) == 100 * (start + 1)
            await driver.stop()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff" * 50, id="no MessagePack"),
        pytest.param(msgspec.msgpack.encode(["n", "a:1", ["?", "m2", "m1", 1]]), id="no kind"),
        pytest.param(encode("n", "a:1", Heartbeat("m2", "m1", -1, 0, 0)), id="a negative term"),
        pytest.param(encode("n", "a:1", Heartbeat("m2", "m1", 1 << 63, 0, 0)), id="a huge term"),
        pytest.param(
            encode("n", "a:1", Heartbeat("m2", "m1", (1 << 62) - 1, 0, 0)), id="no terms left"
        ),
        pytest.param(encode("n", "a:1", Append("m2", "m1", 99, -5, 0, 0)), id="a negative index"),
    ],
)
async def test_hostile_bytes_are_dropped(data: bytes) -> None:
    async with world(1) as w:
        driver = w.processes["m1"].driver
        term = driver.status.term
        driver.receive(data)
        await driver.propose(b"x")
        assert driver.status.term == term


async def test_random_bytes_and_changed_messages_never_end_a_member() -> None:
    rng = random.Random(11)
    good = encode("n", "a:1", Append("m2", "m1", 1, 1, 1, 1))
    async with world(1) as w:
        driver = w.processes["m1"].driver
        for _ in range(3000):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            driver.receive(bytes(data))
            driver.receive(rng.randbytes(rng.randrange(40)))
        await asyncio.sleep(5)
        assert w.processes["m1"].alive


async def test_no_manager_speaks_for_another() -> None:
    """A certificate is that of one node; votes in others' names would make any leader."""
    async with world(3) as w:
        leader = w.processes["m1"]
        term = leader.driver.raft.term
        forged = encode("n", "a:1", Heartbeat("m2", "m1", term + 1, 0, 0))
        leader.driver.receive(forged, member("m3").node_id)
        assert leader.driver.raft.term == term
        leader.driver.receive(forged, member("m2").node_id)
        assert leader.driver.raft.term == term + 1
