"""Secrets and configs on their node."""

import asyncio

import pytest

from common.errors import Invalid
from common.model.node import NodeDescription
from common.model.secret import Config, ConfigSpec, Driver, Secret, SecretSpec
from common.model.task import (
    ConfigReference,
    ContainerSpec,
    FileTarget,
    SecretReference,
    Task,
    TaskState,
)
from common.protocol.dispatcher import Assign
from manager.dispatcher.assignments import Assignments
from tests.support import build
from worker.agent.task_files import TaskFiles, wanted

NODE = NodeDescription(hostname="m1")
GOLANG = Driver(name="golang")


def secret(id: str, data: bytes = b"sesame", templating: Driver | None = None) -> Secret:
    return Secret(id=id, spec=SecretSpec(name=id, data=data, templating=templating))


def config(id: str, data: bytes, templating: Driver | None = GOLANG) -> Config:
    return Config(id=id, spec=ConfigSpec(name=id, data=data, templating=templating))


def task(
    secrets: tuple[str, ...] = (), configs: tuple[str, ...] = (), id: str = "t1", slot: int = 3
) -> Task:
    container = ContainerSpec(
        image="web:1",
        env=("COLOUR=blue", "WHERE={{.Node.Hostname}}"),
        secrets=tuple(
            SecretReference(secret_id=name, file=FileTarget(name=name)) for name in secrets
        ),
        configs=tuple(
            ConfigReference(config_id=name, file=FileTarget(name=f"/etc/{name}"))
            for name in configs
        ),
    )
    service = build.service("web", container_spec=container)
    return build.task(service, id=id, slot=slot, node="n1", state=TaskState.ASSIGNED)


def test_where_they_go() -> None:
    paths = [file.path for file in wanted(task(("key",), ("app.conf",)))]
    assert paths == ["/run/secrets/key", "/etc/app.conf"]


async def test_a_task_waits_for_what_it_needs() -> None:
    files, wants = TaskFiles(), task(("key", "lock"))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(files.ready(wants))
        files.take(Assign(sequence=1, secrets=(secret("key"),)), [wants])
        await asyncio.sleep(0)
        assert not waiting.done()
        files.take(Assign(sequence=2, secrets=(secret("lock", b"bolt"),)), [wants])
    assert files.contents(wants, NODE) == [b"sesame", b"bolt"]


async def test_what_no_task_needs_is_forgotten() -> None:
    """DIS 154."""
    files = TaskFiles()
    files.take(Assign(sequence=1, secrets=(secret("key"),)), [task(("key",))])
    files.take(Assign(sequence=2), [])
    with pytest.raises(KeyError):
        files.contents(task(("key",)), NODE)


def test_templates_are_filled_in() -> None:
    data = b'{{.Service.Name}}.{{.Task.Slot}} {{env "COLOUR"}} {{env "WHERE"}} {{secret "key"}}'
    files, wants = TaskFiles(), task(("key",), ("app",))
    files.take(
        Assign(sequence=1, secrets=(secret("key"),), configs=(config("app", data),)), [wants]
    )
    assert files.contents(wants, NODE)[1] == b"web.3 blue m1 sesame"


@pytest.mark.parametrize("data", [b'{{env "NOPE"}}', b'{{secret "NOPE"}}', b"\xff{{.Task.Slot}}"])
def test_a_template_that_cannot_be_filled_in(data: bytes) -> None:
    files, wants = TaskFiles(), task(configs=("app",))
    files.take(Assign(sequence=1, configs=(config("app", data),)), [wants])
    with pytest.raises(Invalid):
        files.contents(wants, NODE)


def test_a_file_without_a_template_is_left_as_it_is() -> None:
    files, wants = TaskFiles(), task(configs=("app",))
    plain = config("app", b'{{env "NOPE"}}\xff', templating=None)
    files.take(Assign(sequence=1, configs=(plain,)), [wants])
    assert files.contents(wants, NODE) == [plain.spec.data]


def test_nodes_are_sent_what_their_tasks_need_and_nothing_else() -> None:
    """DIS 154, 156, AGT 239: secrets leave the managers only for nodes that run a task with them;
    one that is missing holds up nothing else."""
    assignments = Assignments()
    mine = task(("key",))
    assignments.load(
        [build.node("n1"), build.node("n2")], [], [], [mine], [secret("key"), secret("other")]
    )
    assignments.flush()
    assert [found.id for found in assignments.connect("n1").secrets] == ["key"]
    assert not assignments.connect("n2").secrets
    assignments.observe(task(("other",), id="t2", slot=4), removed=False)
    assignments.observe(task(("missing",), id="t4", slot=5), removed=False)
    assignments.observe(build.task(build.service("bare"), id="t3", node="n1"), removed=False)
    assert [found.id for found in assignments.flush().increments["n1"].secrets] == ["other"]
