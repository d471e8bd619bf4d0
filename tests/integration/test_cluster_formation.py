"""Clusters form, lose members and change roles: real TLS and logs, on loopback, without root."""

import asyncio
import contextlib
import random
import shutil
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from msgspec.structs import replace

from common import rpc, tls
from common.errors import Conflict, Forbidden, Invalid, ShoalError, Unavailable
from common.model.cluster import Cluster
from common.model.node import Node, NodeState, Role
from common.protocol.ca import Issued, RenewRequest
from manager.ca import tokens
from manager.raft.disk import FileDisk
from node.forward import forward
from node.identity import IdentityFiles
from node.swarm import InitRequest, JoinRequest
from tests.support.formation import Machine, machines, until


def cluster(machine: Machine) -> Cluster:
    return machine.store.view().find(Cluster)[0]


def voters(machine: Machine) -> int:
    member = machine.swarm.member
    assert member is not None
    assert member.manager is not None
    return sum(not one.learner for one in member.manager.raft.status.members)


async def formed(made: list[Machine]) -> None:
    """All of `made` managers of one cluster, the first its maker."""
    await made[0].init()
    token = cluster(made[0]).root_ca.join_token_manager
    for machine in made[1:]:
        await machine.join(token, made[0])
    await until("all vote", lambda: all(voters(machine) == len(made) for machine in made))


async def test_three_managers_form_and_survive_the_leader(tmp_path: Path) -> None:
    """RAF 173, 175, 181."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        assert [machine.leads for machine in made] == [True, False, False]
        await made[0].crash()
        rest = made[1:]
        await until("another leads", lambda: any(machine.leads for machine in rest))
        leader = next(machine for machine in rest if machine.leads)
        await leader.set_role(made[0].swarm.node_id, Role.MANAGER)
        await made[0].restart()
        await until(
            "the old leader has what it missed",
            lambda: made[0].swarm.is_manager and made[0].store.version >= leader.store.version,
        )
        assert made[0].swarm.node_id in {node.id for node in leader.store.view().find(Node)}


async def test_a_daemon_restart_keeps_node_and_raft_id(tmp_path: Path) -> None:
    """NOD 225, RAF 182: all stop, all start; the cluster is the same."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        before = [machine.swarm.member.state for machine in made if machine.swarm.member]
        for machine in made:
            await machine.swarm.close()
        await asyncio.gather(*(machine.restart() for machine in made))
        await until("somebody leads", lambda: any(machine.leads for machine in made))
        after = [machine.swarm.member.state for machine in made if machine.swarm.member]
        assert [state.raft_id for state in before] == [state.raft_id for state in after]
        assert len(made[0].store.view().find(Node)) == 3


async def test_a_worker_is_promoted_and_demoted_again(tmp_path: Path) -> None:
    """NOD 220, 221."""
    async with machines(tmp_path, 2) as (manager, worker):
        await manager.init()
        await worker.join(cluster(manager).root_ca.join_token_worker, manager)
        assert worker.swarm.state == "active"
        assert not worker.swarm.is_manager
        await manager.set_role(worker.swarm.node_id, Role.MANAGER)
        await until("it votes", lambda: voters(manager) == 2)
        assert worker.swarm.is_manager
        await manager.set_role(worker.swarm.node_id, Role.WORKER)
        await until("it is a worker", lambda: not worker.swarm.is_manager)
        member = worker.swarm.member
        assert member is not None
        await until("its certificate says so", lambda: member.trust.role == "worker")
        await until("its log is gone", lambda: not (worker.folder / "swarm" / "raft").exists())
        assert voters(manager) == 1
        node = manager.node(worker.swarm.node_id)
        assert node is not None
        assert node.role is Role.WORKER


async def test_a_manager_demoted_and_promoted_at_once_comes_back(tmp_path: Path) -> None:
    """Removed from Raft while its certificate still says manager, it needs a new raft id."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        member = made[2].swarm.member
        assert member is not None
        before = member.state.raft_id
        await made[0].set_role(made[2].swarm.node_id, Role.WORKER)
        await until("it is out", lambda: not made[2].swarm.is_manager)
        await made[0].set_role(made[2].swarm.node_id, Role.MANAGER)
        await until("it votes", lambda: made[2].swarm.is_manager and voters(made[0]) == 3)
        assert member.state.raft_id not in ("", before)


async def test_the_leader_is_demoted(tmp_path: Path) -> None:
    """NOD 220: it hands over first."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        await made[0].set_role(made[0].swarm.node_id, Role.WORKER)
        await until("it is no manager", lambda: not made[0].swarm.is_manager)
        await until("another leads", lambda: any(machine.leads for machine in made[1:]))
        leader = next(machine for machine in made[1:] if machine.leads)
        await until("two vote", lambda: voters(leader) == 2)
        await until(
            "its certificate says so",
            lambda: (
                made[0].swarm.member is not None and made[0].swarm.member.trust.role == "worker"
            ),
        )


async def test_the_last_manager_stays_one(tmp_path: Path) -> None:
    """NOD 223: whatever the spec says."""
    async with machines(tmp_path, 1) as (only,):
        await only.init()
        await only.set_role(only.swarm.node_id, Role.WORKER)
        with pytest.raises(AssertionError):
            await until("it goes", lambda: not only.swarm.is_manager, 1.0)


async def test_a_deleted_manager_is_evicted(tmp_path: Path) -> None:
    """NOD 222."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        await made[0].store.update(lambda tx: tx.delete(Node, made[2].swarm.node_id))
        await until("two vote", lambda: voters(made[0]) == 2)


async def test_leaving(tmp_path: Path) -> None:
    """RAF 179: a follower, then the leader, then the last; a manager only with force."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        with pytest.raises(Unavailable, match="--force"):
            await made[2].swarm.leave(force=False)
        left = made[2].swarm.node_id
        await made[2].swarm.leave(force=True)
        assert made[2].swarm.state == "inactive"
        assert made[2].forgotten == 1
        await until("two vote", lambda: voters(made[0]) == 2)
        node = made[0].node(left)
        assert node is not None
        assert node.spec.role is Role.WORKER
        assert node.status.state is NodeState.DOWN
        await made[0].swarm.leave(force=True)
        await until("the other leads alone", lambda: made[1].leads and voters(made[1]) == 1)
        with pytest.raises(Unavailable, match="erases all"):
            await made[1].swarm.leave(force=False)
        await made[1].swarm.leave(force=True)
        assert not (made[1].folder / "swarm").exists()
        await made[1].init()  # and it can begin anew


async def test_a_worker_that_leaves_is_down_at_once(tmp_path: Path) -> None:
    async with machines(tmp_path, 3) as (manager, second, worker):
        await formed([manager, second])
        await worker.join(cluster(manager).root_ca.join_token_worker, second)
        left = worker.swarm.node_id
        await worker.swarm.leave(force=False)
        node = manager.node(left)
        assert node is not None
        assert node.status.state is NodeState.DOWN


async def test_one_survivor_goes_on_alone(tmp_path: Path) -> None:
    """RAF 184, 192: data, certificates and tokens are kept, the others dropped, new managers
    accepted; the old ones that come back become workers and disturb nobody."""
    async with machines(tmp_path, 5) as made:
        survivor, *lost = made[:3]
        await formed([lost[0], survivor, lost[1]])
        node_id, before = survivor.swarm.node_id, cluster(lost[0])
        raft_id = survivor.swarm.member.state.raft_id if survivor.swarm.member else ""
        with pytest.raises(Conflict, match="has a leader"):
            survivor.swarm.prospect()
        for machine in lost:
            await machine.crash()
            machine.swarm._member = None
        member = survivor.swarm.member
        assert member is not None
        assert member.manager is not None
        gone = member.manager
        await until("the loss is noticed", lambda: not gone.leader_address and not gone.is_leader)
        found = survivor.swarm.prospect()
        assert {one.addr for one in found.dropped_managers} == {one.address for one in lost}
        assert found.committed_index <= found.last_index
        assert found.objects == {"cluster": 1, "node": 3}

        assert (
            await survivor.swarm.force_new_cluster(InitRequest(force_new_cluster=True)) == node_id
        )
        assert voters(survivor) == 1
        assert survivor.leads
        assert cluster(survivor).root_ca == before.root_ca
        assert survivor.swarm.member is not None
        assert survivor.swarm.member.state.raft_id == raft_id
        roles = {node.id: node.spec.role for node in survivor.store.view().find(Node)}
        assert len(roles) == 3
        assert [id for id, role in roles.items() if role is Role.MANAGER] == [node_id]

        for machine in made[3:]:
            await machine.join(before.root_ca.join_token_manager, survivor)
        await until("three vote", lambda: voters(survivor) == 3)
        for machine in lost:
            await machine.restart()
        await until(
            "the old managers are workers",
            lambda: all(role_of(machine) == "worker" for machine in lost),
            25,
        )
        assert voters(survivor) == 3
        assert survivor.leads
        await survivor.set_role(lost[0].swarm.node_id, Role.MANAGER)
        await until("one is promoted again", lambda: voters(survivor) == 4)
        await survivor.restart()
        await until("a restart changes nothing", lambda: len(members_at(survivor)) == 4)


def role_of(machine: Machine) -> str:
    """By certificate."""
    return machine.swarm.member.trust.role if machine.swarm.member else ""


async def test_a_manager_whose_log_is_gone_begins_anew(tmp_path: Path) -> None:
    """RAF 183: what it voted for is forgotten, so it is another member from here on."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        member = made[2].swarm.member
        assert member is not None
        before = member.state.raft_id
        await made[2].crash()
        shutil.rmtree(made[2].folder / "swarm" / "raft")
        await made[2].restart()
        await until("it votes", lambda: made[2].swarm.is_manager and voters(made[2]) == 3)
        member = made[2].swarm.member
        assert member is not None
        assert member.state.raft_id not in ("", before)


async def test_a_learner_removed_while_away_finds_out(tmp_path: Path) -> None:
    """It does not campaign, so nobody tells it."""
    async with machines(tmp_path, 3) as made:
        await formed(made[:2])
        await made[2].join(cluster(made[0]).root_ca.join_token_manager, made[0])
        member, node = made[2].swarm.member, made[2].swarm.node_id
        assert member is not None
        await made[2].crash()
        raft = made[2].folder / "swarm" / "raft"
        shutil.rmtree(raft)
        # As it was before the leader's first word.
        keyring = IdentityFiles(made[2].folder).keyring
        disk = FileDisk(raft, member.state.raft_id, keyring=keyring)
        await disk.load()
        await disk.close()
        await made[0].set_role(node, Role.WORKER)
        gone = made[2].address
        await until("it is out", lambda: gone not in members_at(made[0]))
        await until("it is a worker", lambda: role(made[0], node) is Role.WORKER)
        await made[0].set_role(node, Role.MANAGER)
        await until("it is a manager again", lambda: role(made[0], node) is Role.MANAGER)
        await made[2].restart()
        await until("it votes", lambda: made[2].swarm.is_manager and voters(made[2]) == 3, 25)


def role(machine: Machine, node_id: str) -> Role:
    """What the node's next certificate says."""
    node = machine.node(node_id)
    assert node is not None
    return node.role


def told(machine: Machine) -> set[str]:
    """Where `machine` looks for managers."""
    return {address for _, address in machine.swarm.managers}


def members_at(machine: Machine) -> set[str]:
    """Where the log of `machine` says that the managers are."""
    member = machine.swarm.member
    assert member is not None
    if member.manager is None:
        return set()
    return {one.address for one in member.manager.raft.status.members}


@pytest.mark.parametrize("moving", [(2,), (0,), (0, 1)], ids=["follower", "leader", "two of three"])
async def test_managers_that_come_back_elsewhere_say_so(
    tmp_path: Path, moving: tuple[int, ...]
) -> None:
    """RAF 174, 193: the log, the other managers and a worker learn where they are."""
    async with machines(tmp_path, 4) as made:
        managers, worker = made[:3], made[3]
        await formed(managers)
        await worker.join(cluster(made[0]).root_ca.join_token_worker, made[0])
        for number in moving:
            await made[number].swarm.close()
        await asyncio.gather(*(made[number].move(f"127.0.0.{number + 20}") for number in moving))
        expected = {machine.address for machine in managers}
        assert len(expected) == 3
        await until("logs agree", lambda: all(members_at(one) == expected for one in managers))
        await until("all know", lambda: all(told(one) == expected for one in made))
        leader = next(machine for machine in managers if machine.leads)
        await leader.set_role(worker.swarm.node_id, Role.MANAGER)
        await until("writes go on", lambda: voters(leader) == 4)


async def test_tokens_that_do_not_open(tmp_path: Path) -> None:
    """SEC 203, 204, 205, 209: wrong, another cluster's, rotated; nothing is left half-made."""
    async with machines(tmp_path, 3) as (manager, other, joiner):
        await manager.init()
        await other.init()
        root = cluster(manager).root_ca
        wrong = tokens.new_token(root.certificate.encode(), random.Random(1))
        with pytest.raises(Forbidden, match="not valid for this cluster"):
            await joiner.join(wrong, manager)
        with pytest.raises(Forbidden, match="not valid for the cluster of"):
            await joiner.join(root.join_token_worker, other)
        with pytest.raises(Invalid, match="not a join token"):
            await joiner.join("let me in", manager)
        with pytest.raises(Unavailable, match="cannot reach"):
            await joiner.swarm.join(
                JoinRequest(remote_addrs=("127.0.0.9:1",), join_token=root.join_token_worker)
            )
        assert joiner.swarm.state == "inactive"
        assert not (joiner.folder / "swarm").exists()
        assert len(manager.store.view().find(Node)) == 1
        await joiner.join(root.join_token_worker, manager)
        assert not joiner.swarm.is_manager


async def test_a_manager_that_cannot_be_called_back_is_refused(tmp_path: Path) -> None:
    """RAF 185; and the node it was to be is forgotten."""
    async with machines(tmp_path, 2) as (manager, joiner):
        await manager.init()
        with pytest.raises(Invalid, match="cannot reach the new manager"):
            await joiner.swarm.join(
                JoinRequest(
                    listen_addr=joiner.address,
                    advertise_addr="127.0.0.77:1",
                    remote_addrs=(manager.address,),
                    join_token=cluster(manager).root_ca.join_token_manager,
                )
            )
        assert joiner.swarm.state == "inactive"
        assert len(manager.store.view().find(Node)) == 1
        assert voters(manager) == 1
        await joiner.join(cluster(manager).root_ca.join_token_manager, manager)


async def test_followers_hand_on_joins_and_requests(tmp_path: Path) -> None:
    async with machines(tmp_path, 3) as (first, second, joiner):
        await formed([first, second])
        await joiner.join(cluster(first).root_ca.join_token_manager, second)
        await until("three vote", lambda: voters(first) == 3)
        member = second.swarm.member
        assert member is not None
        assert member.manager is not None
        assert member.manager.leader_address == first.address
        attempt = rpc.Attempt()
        answer = await member.trust.client.request(
            first.address, "POST", "/forward/v1.43/x?a=b", b"body", host="manager", headers={},
            attempt=attempt,
        )  # fmt: skip
        async with answer:
            assert (answer.status, await answer.text()) == (201, "POST /forward/v1.43/x body")
        assert attempt.sent


async def test_certificates_open_only_what_they_should(tmp_path: Path) -> None:
    """SEC 208, NOD 226: a worker's, another cluster's, a removed node's, none."""
    async with machines(tmp_path, 4) as (manager, worker, other, stranger):
        await manager.init()
        await other.init()
        await worker.join(cluster(manager).root_ca.join_token_worker, manager)
        held = worker.swarm.member
        foreign = other.swarm.member
        assert held is not None
        assert foreign is not None
        with pytest.raises(Forbidden, match="worker may not"):
            await held.trust.client.call(manager.address, "POST", "/raft/join", {"address": "x:1"})
        with pytest.raises(Forbidden, match="worker may not"):
            await held.trust.client.call(manager.address, "GET", "/forward/info")
        with pytest.raises(ShoalError, match="another cluster"):
            await foreign.trust.client.call(manager.address, "GET", "/ping")
        nobody = rpc.Client(tls.client_context(held.trust.root))
        with pytest.raises(Forbidden, match="needs a certificate"):
            await nobody.call(manager.address, "GET", "/session")
        await nobody.close()

        def remove(tx: object) -> None:
            found = tx.find(Cluster)[0]  # type: ignore[attr-defined]
            gone = {worker.swarm.node_id: "2100-01-01T00:00:00+00:00"}
            tx.put(replace(found, removed_nodes=gone))  # type: ignore[attr-defined]

        await manager.store.update(remove)
        with pytest.raises(Forbidden, match="was removed"):
            await held.trust.ask(Issued, "/ca/renew", RenewRequest(request=""))
        assert stranger.swarm.state == "inactive"


async def test_a_foreign_certificate_is_turned_away_by_the_manager_too(tmp_path: Path) -> None:
    """NOD 226: with a client that does not check whom it talks to."""
    async with machines(tmp_path, 2) as (manager, other):
        await manager.init()
        await other.init()
        foreign = other.swarm.member
        assert foreign is not None
        context = tls.unverified_context()
        tls.load_chain(context, foreign.trust._credentials)
        client = rpc.Client(context)
        with pytest.raises(ShoalError, match=r"TLS handshake|broke"):
            await client.call(manager.address, "GET", "/ping", host=None)
        await client.close()


async def test_a_port_in_use_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    async with machines(tmp_path, 1) as (machine,):
        other = await asyncio.start_server(_hang_up, machine.host, machine.port)
        in_use = f"port {machine.port} is in use on {machine.host};"
        with contextlib.closing(other), pytest.raises(Invalid, match=in_use):
            await machine.init()
        assert machine.swarm.state == "inactive"
        assert not (machine.folder / "swarm").exists()
        await machine.init()
        with pytest.raises(Unavailable, match="already part of a swarm"):
            await machine.init()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_without_quorum_writes_wait_and_say_so(tmp_path: Path) -> None:
    """RAF 176, 177: two of three die, writes are refused; one comes back, they resume."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        await made[0].crash()
        await made[1].crash()
        member = made[2].swarm.member
        assert member is not None
        assert member.manager is not None
        manager = member.manager
        await until("the loss is noticed", lambda: not manager.leader_address)
        with pytest.raises(Unavailable, match="does not have a leader"):
            await manager.wait_leader(0.1)
        await made[1].restart()
        await until("one of two leads", lambda: made[1].leads or made[2].leads)


async def test_a_node_that_cannot_be_itself_again_says_why_and_may_leave(tmp_path: Path) -> None:
    """SEC 210: here a damaged file; an expired certificate takes the same way."""
    async with machines(tmp_path, 1) as (machine,):
        await machine.init()
        await machine.swarm.close()
        (machine.folder / "swarm" / "node.pem").write_bytes(b"nonsense")
        await machine.restart()
        assert machine.swarm.state == "error"
        assert "holds no key; leave and join again" in machine.swarm.error
        with pytest.raises(Unavailable, match="already part of a swarm"):
            await machine.init()
        await machine.swarm.leave(force=True)
        assert (machine.swarm.state, machine.forgotten) == ("inactive", 1)
        await machine.init()


async def test_a_damaged_log_stops_the_manager_with_its_reason(tmp_path: Path) -> None:
    async with machines(tmp_path, 1) as (machine,):
        await machine.init()
        await machine.swarm.close()
        files = (machine.folder / "swarm" / "raft").rglob("*")
        segment = max(files, key=lambda path: path.stat().st_size if path.is_file() else 0)
        data = bytearray(segment.read_bytes())
        data[len(data.rstrip(b"\0")) // 3] ^= 0xFF  # not in the tail, which a crash may tear
        segment.write_bytes(data)
        await machine.restart()
        await until("the damage shows", lambda: machine.swarm.state == "error")
        assert "the Raft log is damaged" in machine.swarm.error


async def test_a_leader_whose_part_fails_gives_the_lead_away(tmp_path: Path) -> None:
    """RAF 178; alone, it tries again."""
    async with machines(tmp_path, 2) as made:
        await formed(made)
        member = made[0].swarm.member
        assert member is not None
        assert member.manager is not None
        member.manager.dispatcher.fail()
        await until("the other leads", lambda: made[1].leads)
        await made[0].swarm.leave(force=True)
        await until("it leads alone", lambda: voters(made[1]) == 1 and made[1].leads)
        member = made[1].swarm.member
        assert member is not None
        assert member.manager is not None
        failing = member.manager.dispatcher
        failing.fail()
        await until("the term ends", lambda: not made[1].leads)
        await until("it leads again", lambda: made[1].leads)
        assert member.manager.dispatcher is not failing


async def test_requests_go_on_when_the_leader_is_lost(tmp_path: Path) -> None:
    """A forwarded request that only reads, or was not sent yet, finds the next leader."""
    async with machines(tmp_path, 3) as made:
        await formed(made)
        member = made[1].swarm.member
        assert member is not None

        async def handler(request: web.Request) -> web.StreamResponse:
            assert member.manager is not None
            return await forward(member.trust.client, member.manager, request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        async with TestClient(TestServer(app)) as client:
            answer = await client.post("/services/create?a=b", data=b"spec")
            assert (answer.status, answer.headers["X-Kept"]) == (201, "yes")
            assert await answer.text() == "POST /forward/services/create spec"
            await made[0].crash()
            answer = await client.get("/services")
            assert answer.status == 201
            answer = await client.post("/services/create", data=b"spec")
            assert answer.status == 201
