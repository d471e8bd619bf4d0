"""The `shoald` command: reads the settings, starts the daemon, waits for a signal."""

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec

from common import log
from common.clock import Clock, SystemClock
from common.config import DaemonConfig, load
from common.errors import Forbidden, ShoalError
from common.ids import Ids
from node.limits import raise_open_files
from node.memory import frugal

if TYPE_CHECKING:
    from manager.raft.driver import Driver
    from manager.store.store import Store
    from manager.term import Parts

_log = logging.getLogger(__name__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state-dir", type=click.Path(path_type=Path), help="Survives reboots.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Sockets; gone after a reboot.")
@click.option(
    "--host", "-H", "hosts", multiple=True, help="unix://PATH or tcp://ADDRESS:PORT; repeatable."
)
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file with settings.")
@click.option("--advertise-addr", metavar="ADDR[:PORT]", help="Where other nodes reach this one.")
@click.option("--data-path-addr", metavar="ADDR", help="Where this node's overlays end.")
@click.option("--log-level", type=click.Choice(log.LEVELS))
@click.option("--version", is_flag=True, help="Print the version and exit.")
def main(
    state_dir: Path | None,
    run_dir: Path | None,
    hosts: tuple[str, ...],
    config: Path | None,
    advertise_addr: str | None,
    data_path_addr: str | None,
    log_level: str | None,
    version: bool,
) -> None:
    """Run the daemon of one machine."""
    if version:
        click.echo(f"shoald version {_version()}")
        return
    given = {
        "state_dir": state_dir,
        "run_dir": run_dir,
        "hosts": hosts or None,
        "advertise_addr": advertise_addr,
        "data_path_addr": data_path_addr,
        "log_level": log_level,
    }
    try:
        settings = load(config, {name: value for name, value in given.items() if value is not None})
        log.setup(settings.log_level)
        if os.geteuid() != 0:
            raise Forbidden("shoald must run as root: it makes namespaces, mounts and networks")
        frugal()
        before = raise_open_files()
        files = settings.container_open_files or before
        settings = msgspec.structs.replace(settings, container_open_files=files)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except ShoalError as error:
        click.echo(f"shoald: {error}", err=True)
        sys.exit(1)


async def _serve(settings: DaemonConfig) -> None:
    from node.api.app import make_app
    from node.daemon import Daemon

    settings = msgspec.structs.replace(settings, hostname=settings.hostname or socket.gethostname())
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, _log_tasks)
    rng = random.SystemRandom()  # tokens and ids must not be guessed
    daemon = Daemon(settings, _version(), SystemClock(), rng, make_app, _make_parts)
    _freeze()
    with log.fields(host=settings.hostname):
        await daemon.run(stopping)


def _make_parts(
    store: "Store",
    raft: "Driver",
    config: DaemonConfig,
    clock: Clock,
    ids: Ids,
    rng: random.Random,
) -> "Parts":
    """A manager's parts, loaded by who is one: they take 3 MB."""
    from manager.parts import make_parts

    _freeze()
    return make_parts(store, raft, config, clock, ids, rng)


def _freeze() -> None:
    """What was imported stays: no need to look through it again and again."""
    gc.collect()
    gc.freeze()


def _log_tasks() -> None:
    """What the daemon is doing, for whoever wonders why it does nothing (kill -USR1)."""
    for task in asyncio.all_tasks():
        where: list[str] = []
        waiting: Any = task.get_coro()
        while waiting is not None and (frame := getattr(waiting, "cr_frame", None)) is not None:
            code = frame.f_code
            where.append(f"{Path(code.co_filename).stem}.{code.co_name}:{frame.f_lineno}")
            waiting = getattr(waiting, "cr_await", None)
        _log.warning("task", extra={"named": task.get_name(), "where": " > ".join(where)})


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop

        return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)
    return None


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("shoal")
    except metadata.PackageNotFoundError:
        return "0.1.0"  # run from a source folder that is not installed


if __name__ == "__main__":
    main()
