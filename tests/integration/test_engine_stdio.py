"""exec, attach and logs, with and without a terminal."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from common.errors import Conflict, Invalid, NotImplementedHere
from common.model.container import ContainerCreate, HostConfig, LogConfig
from node.api.containers import ContainerRoutes
from node.api.daemon import Daemon
from node.api.routes import API_VERSION_ASKED
from tests.support.fake_node import EngineNode, engine_node
from worker.engine.engine import Engine
from worker.engine.exec import ExecConfig
from worker.engine.logs import LogQuery
from worker.engine.streams import Attachment, Nothing, Pipes

pytestmark = pytest.mark.root


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


@pytest.fixture
def engine(node: EngineNode) -> Engine:
    return node.engine


def body(script: str, **fields: object) -> ContainerCreate:
    return ContainerCreate(image="busybox", cmd=("sh", "-c", script), **fields)  # type: ignore[arg-type]


async def sleeper(engine: Engine, **fields: object) -> str:
    container_id = await engine.create(body("sleep 100", **fields))
    await engine.start(container_id)
    return container_id


async def drained(stream: Attachment | Pipes | Nothing) -> dict[int, bytes]:
    """All output by stream, until its end."""
    found: dict[int, bytes] = {}
    async with asyncio.timeout(20):
        while (news := await stream.read()) is not None:
            found[news[0]] = found.get(news[0], b"") + news[1]
    await stream.close()
    return found


def command(*words: str, **fields: object) -> ExecConfig:
    return ExecConfig(cmd=words, attach_stdout=True, attach_stderr=True, **fields)  # type: ignore[arg-type]


async def run(engine: Engine, ref: str, config: ExecConfig) -> tuple[dict[int, bytes], int]:
    exec_id = await engine.exec_create(ref, config)
    stream = await engine.exec_start(exec_id)
    assert stream is not None
    found = await drained(stream)
    async with asyncio.timeout(10):
        await engine._execs.find(exec_id).ended.wait()
    code = engine.exec_inspect(exec_id)["ExitCode"]
    assert isinstance(code, int)
    return found, code


async def test_exec_is_inside(engine: Engine) -> None:
    ref = await sleeper(engine, hostname="inner", user="app", working_dir="/srv")
    found, code = await run(
        engine,
        ref,
        command("sh", "-c", "hostname; pwd; id -u; ps | grep -c sleep; echo e >&2; exit 9"),
    )
    lines = found[1].decode().split()
    assert lines[:3] == ["inner", "/srv", "1000"]
    assert found[2] == b"e\n"
    assert code == 9


async def test_exec_as_another_user_with_stdin(engine: Engine) -> None:
    ref = await sleeper(engine)
    config = command("sh", "-c", "id -u; id -G; cat", attach_stdin=True, user="app", env=("X=1",))
    exec_id = await engine.exec_create(ref, config)
    stream = await engine.exec_start(exec_id)
    assert isinstance(stream, Pipes)
    payload = b"x" * 300_000

    async def feed() -> None:
        await stream.write(payload)
        await stream.close_stdin()

    feeding = asyncio.get_running_loop().create_task(feed())
    found = await drained(stream)
    await feeding
    assert found[1] == b"1000\n1000 2000\n" + payload


async def test_exec_of_what_is_not_there(engine: Engine) -> None:
    ref = await sleeper(engine)
    exec_id = await engine.exec_create(ref, command("nosuch"))
    with pytest.raises(Invalid, match="executable file not found"):
        await engine.exec_start(exec_id)
    assert engine.exec_inspect(exec_id)["ExitCode"] == 127


async def test_exec_terminal(engine: Engine) -> None:
    ref = await sleeper(engine)
    config = command("sh", "-c", "tty; stty size; read x; echo got $x", tty=True, attach_stdin=True)
    exec_id = await engine.exec_create(ref, config)
    stream = await engine.exec_start(exec_id, tty=True)
    assert isinstance(stream, Pipes)
    await engine.exec_resize(exec_id, 33, 77)
    await stream.write(b"hello\n")
    text = (await drained(stream))[1].decode()
    assert "/dev/pts/" in text
    assert "got hello" in text


async def test_exec_needs_a_running_container(engine: Engine) -> None:
    ref = await engine.create(body("true"))
    with pytest.raises(Conflict, match="is not running"):
        await engine.exec_create(ref, command("true"))


async def test_execs_end_with_their_container(engine: Engine) -> None:
    ref = await sleeper(engine)
    exec_id = await engine.exec_create(ref, command("sleep", "100"))
    stream = await engine.exec_start(exec_id)
    assert stream is not None
    await engine.kill(ref)
    await drained(stream)
    assert engine.exec_inspect(exec_id)["Running"] is False


@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
async def test_input_that_comes_before_the_start_is_kept(engine: Engine, tty: bool) -> None:
    """As `echo early | docker run -i` sends it: all of it and its end, before the start."""
    script = "read line; echo got $line; cat"
    ref = await engine.create(body(script, open_stdin=True, stdin_once=True, tty=tty))
    stream = await engine.attach(ref, stdin=True)
    await stream.write(b"early\nlater\n" + b"\x04" * tty)
    await stream.close_stdin()
    await asyncio.sleep(0.05)  # so that a keeper that takes it at once shows
    await engine.start(ref)
    async with asyncio.timeout(10):
        found = await drained(stream)
    assert found[1].endswith((b"got early\nlater\n", b"got early\r\nlater\r\n"))


async def test_attach_before_start_gets_everything(engine: Engine) -> None:
    ref = await engine.create(body("echo out; echo err >&2; exit 1"))
    stream = await engine.attach(ref)
    await engine.start(ref)
    assert await drained(stream) == {1: b"out\n", 2: b"err\n"}
    assert await engine.wait(ref) == 1


async def test_attach_with_stdin(engine: Engine) -> None:
    ref = await engine.create(body("cat", open_stdin=True, stdin_once=True))
    stream = await engine.attach(ref, stdin=True)
    await engine.start(ref)
    payload = bytes(range(256)) * 2000

    async def feed() -> None:
        await stream.write(payload)
        await stream.close_stdin()

    feeding = asyncio.get_running_loop().create_task(feed())
    found = await drained(stream)
    await feeding
    assert found == {1: payload}
    async with asyncio.timeout(10):
        assert await engine.wait(ref) == 0


async def test_terminal_container(engine: Engine) -> None:
    ref = await engine.create(body("tty; read x; stty size; echo bye", tty=True, open_stdin=True))
    stream = await engine.attach(ref, stdin=True)
    await engine.start(ref)
    await engine.resize(ref, 40, 100)
    await stream.write(b"go\n")
    text = (await drained(stream))[1].decode()
    assert "/dev/pts/0" in text
    assert "40 100" in text


async def test_a_viewer_that_leaves_does_not_stop_the_container(engine: Engine) -> None:
    ref = await engine.create(body("for i in $(seq 20); do echo $i; sleep 0.01; done"))
    stream = await engine.attach(ref)
    await engine.start(ref)
    await stream.read()
    await stream.close()
    async with asyncio.timeout(10):
        assert await engine.wait(ref) == 0
    lines = [line.data async for line in engine.logs(ref)]
    assert lines[-1] == b"20\n"


async def test_a_viewer_that_does_not_read_holds_back_only_its_container(engine: Engine) -> None:
    ref = await engine.create(body("head -c 8m /dev/zero; echo done >&2"))
    stream = await engine.attach(ref)
    await engine.start(ref)
    other = await engine.create(body("echo free"))
    await engine.start(other)
    async with asyncio.timeout(10):
        await engine.wait(other)
    assert engine.find(ref).state == "running"
    found = await drained(stream)
    assert len(found[1]) == 8 << 20


async def test_logs_follow_tail_and_streams(engine: Engine) -> None:
    ref = await engine.create(
        body("for i in 1 2 3 4; do echo $i; done; echo e >&2; printf end; sleep 0.3")
    )
    await engine.start(ref)
    followed = [line.data async for line in engine.logs(ref, LogQuery(follow=True))]
    assert followed == [b"1\n", b"2\n", b"3\n", b"4\n", b"e\n", b"end"]
    assert [line.data async for line in engine.logs(ref, LogQuery(tail=2))] == [b"e\n", b"end"]
    assert [line.data async for line in engine.logs(ref, LogQuery(stdout=False))] == [b"e\n"]
    assert [line.data async for line in engine.logs(ref, LogQuery(tail=0))] == []
    every = [line async for line in engine.logs(ref)]
    first = every[0]
    before = LogQuery(until_ns=first.time_ns - 1)
    assert [line.data async for line in engine.logs(ref, before)] == []
    assert len([line async for line in engine.logs(ref, LogQuery(since_ns=first.time_ns))]) == 6


async def test_logs_rotate_under_a_follower(engine: Engine) -> None:
    options = LogConfig(type="json-file", config={"max-size": "20k", "max-file": "3"})
    ref = await engine.create(
        body(
            "read x; for i in $(seq 30000); do echo line-$i; done",
            open_stdin=True,
            stdin_once=True,
            host_config=HostConfig(log_config=options),
        )
    )
    stream = await engine.attach(ref, stdin=True)
    await engine.start(ref)
    lines: list[bytes] = []

    async def follow() -> None:
        lines.extend([line.data async for line in engine.logs(ref, LogQuery(follow=True))])

    following = asyncio.get_running_loop().create_task(follow())
    await stream.write(b"go\n")
    await drained(stream)
    async with asyncio.timeout(20):
        await following
    numbers = [int(line.decode().strip().removeprefix("line-")) for line in lines]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 30000
    folder = engine._disk.folder(ref)
    sizes = [path.stat().st_size for path in folder.glob("container.log*")]
    assert 2 <= len(sizes) <= 3
    assert max(sizes) < 100_000


async def test_no_log(engine: Engine) -> None:
    ref = await engine.create(
        body("echo x", host_config=HostConfig(log_config=LogConfig(type="none")))
    )
    await engine.start(ref)
    await engine.wait(ref)
    with pytest.raises(NotImplementedHere, match="does not support reading"):
        engine.logs(ref)


async def test_a_terminal_over_a_websocket(engine: Engine, tmp_path: Path) -> None:
    """The whole way: aiohttp's client, the API's path, the keeper, the container's terminal."""
    script = "stty -echo; read line; echo got $line; exit 3"
    ref = await engine.create(body(script, tty=True, open_stdin=True))
    route = next(
        r
        for r in ContainerRoutes(cast(Daemon, SimpleNamespace(engine=engine))).routes()
        if r.path.endswith("/attach/ws")
    )

    async def attach(request: web.Request) -> web.StreamResponse:
        request[API_VERSION_ASKED] = (1, 43)
        return await route.handler(request)

    app = web.Application()
    app.router.add_get(route.path, attach)
    runner = web.AppRunner(app)
    await runner.setup()
    path = str(tmp_path / "api.sock")
    await web.UnixSite(runner, path).start()
    url = f"http://x/containers/{ref}/attach/ws?stream=1&stdin=1&stdout=1"
    connector = aiohttp.UnixConnector(path)
    async with (
        asyncio.timeout(20),
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url) as client,
    ):
        await engine.start(ref)
        await client.send_bytes(b"words\n")
        shown = b""
        while (message := await client.receive()).type is aiohttp.WSMsgType.BINARY:
            shown += message.data
        assert b"got words\r\n" in shown
        assert client.close_code == 1000
        assert await engine.wait(ref) == 3
    await runner.cleanup()
