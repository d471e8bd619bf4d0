"""Runs a script in a real container and says what it printed."""

import asyncio

from common.model.container import ContainerCreate, HostConfig
from tests.support.fake_node import EngineNode


async def inside(
    node: EngineNode, script: str, host: HostConfig | None = None, **fields: object
) -> str:
    """What a container that runs `script` prints on both streams."""
    ref = await begin(node, script, host, **fields)
    async with asyncio.timeout(20):
        await node.engine.wait(ref)
    return "".join([line.data.decode() async for line in node.engine.logs(ref)])


async def begin(
    node: EngineNode, script: str, host: HostConfig | None = None, **fields: object
) -> str:
    """A started container."""
    body = ContainerCreate(
        image=str(fields.pop("image", "busybox")),
        cmd=("sh", "-c", script),
        host_config=host or HostConfig(),
        **fields,  # type: ignore[arg-type]
    )
    ref = await node.engine.create(body)
    await node.engine.start(ref)
    return ref


def status(text: str) -> dict[str, str]:
    """/proc/self/status as a dict."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}
