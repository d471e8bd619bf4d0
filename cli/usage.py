"""shoal container stats and top, shoal system df: what containers do and take."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from cli import format as fmt
from cli.client import ApiError, Client
from cli.context import output_option, pass_client

_AT_ONCE = 16  # containers asked for their figures at a time
_STATS = ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O",
          "PIDS")  # fmt: skip


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("ref", metavar="CONTAINER")
@click.argument("ps_options", metavar="[PS OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@pass_client
def top(client: Client, ref: str, ps_options: tuple[str, ...]) -> None:
    """Show the processes of CONTAINER, with columns as `ps` has them: -o pid,cmd."""
    query = {"ps_args": " ".join(ps_options)} if ps_options else {}
    found = client.get(f"/containers/{ref}/top", **query)
    click.echo(fmt.table(found["Titles"], found["Processes"] or []))


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also containers that don't run.")
@click.option("--no-stream", is_flag=True, help="Show the figures once.")
@output_option
@click.argument("containers", nargs=-1)
@pass_client
def stats(
    client: Client, everything: bool, no_stream: bool, output: str, containers: tuple[str, ...]
) -> None:
    """Show what CONTAINERS take of CPU, memory, network and disk; without any: all that run."""
    live = sys.stdout.isatty() and not no_stream and output == "table"
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while True:
            refs = list(containers) or [
                item["Id"] for item in client.get("/containers/json", all=everything)
            ]
            found = list(pool.map(lambda ref: _figures(client, ref, bool(containers)), refs))
            _show_stats([item for item in found if item is not None], live, output)
            if no_stream:
                return


def _figures(client: Client, ref: str, named: bool) -> dict[str, Any] | None:
    """None for a container that was listed and is gone since."""
    try:
        figures: dict[str, Any] = client.get(f"/containers/{ref}/stats", stream=False)
    except ApiError as error:
        if named or error.status != 404:
            raise
        return None
    return figures


def _show_stats(found: list[dict[str, Any]], live: bool, output: str) -> None:
    if output == "json":
        for item in found:
            click.echo(json.dumps(item))
        return
    click.echo(("\033[H\033[J" if live else "") + fmt.table(_STATS, [stats_row(i) for i in found]))


def stats_row(item: dict[str, Any]) -> tuple[str, ...]:
    """One container's figures, as `docker stats` computes them; dashes for one that has none."""
    names = (fmt.short(item.get("id", "")), item.get("name", "").lstrip("/"))
    memory = item.get("memory_stats") or {}
    if not memory.get("usage"):
        return (*names, *["--"] * 6)
    # What the kernel may take back at any time is not counted: v1 and v2 name it differently.
    details = memory.get("stats") or {}
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    used = max(memory["usage"] - cache, 0)
    limit = memory.get("limit") or 0
    networks = (item.get("networks") or {}).values()
    blocks = (item.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
    return (
        *names,
        f"{cpu_percent(item):.2f}%",
        f"{fmt.binary_size(used)} / {fmt.binary_size(limit)}",
        f"{100 * used / limit if limit else 0:.2f}%",
        _two(sum(n["rx_bytes"] for n in networks), sum(n["tx_bytes"] for n in networks)),
        _two(*(_bytes(blocks, operation) for operation in ("read", "write"))),
        str((item.get("pids_stats") or {}).get("current", 0)),
    )


def cpu_percent(item: dict[str, Any]) -> float:
    """100 is one CPU for the whole time between the two samples."""
    now, before = item["cpu_stats"], item.get("precpu_stats") or {}
    spent = now["cpu_usage"]["total_usage"] - (before.get("cpu_usage") or {}).get("total_usage", 0)
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cpus = now.get("online_cpus") or 1
    return 100 * spent / passed * cpus if passed > 0 and spent > 0 else 0.0


def _two(first: float, second: float) -> str:
    return f"{fmt.size(first)} / {fmt.size(second)}"


def _bytes(entries: list[dict[str, Any]], operation: str) -> int:
    return sum(entry["value"] for entry in entries if entry["op"].lower() == operation)


@click.command()
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table")
@pass_client
def df(client: Client, output: str) -> None:
    """Show what takes up this node's disk."""
    found = client.get("/system/df")
    if output == "json":
        click.echo(json.dumps(found))
        return
    headings = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")
    click.echo(fmt.table(headings, df_rows(found)))


def df_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Images, containers and volumes: how many, how large, and what a prune would free."""
    images, containers = found.get("Images") or [], found.get("Containers") or []
    volumes = found.get("Volumes") or []
    used = [item for item in images if item["Containers"]]
    # Which layers are shared with whom is not told: what the one shares most is taken as in use.
    taken = sum(item["Size"] - max(item["SharedSize"], 0) for item in used)
    taken += max((item["SharedSize"] for item in used), default=0)
    alive = [item for item in containers if item["State"] in ("running", "paused", "restarting")]
    referred = [item for item in volumes if item["UsageData"]["RefCount"]]
    total = found.get("LayersSize", 0)
    return [
        _kind("Images", images, used, total, total - taken),
        _kind("Containers", containers, alive, _sizes(containers), _idle(containers, alive)),
        _kind("Volumes", volumes, referred, _sizes(volumes), _idle(volumes, referred)),
    ]


def _kind(name: str, every: list[Any], active: list[Any], size: int, free: int) -> tuple[str, ...]:
    freed = max(free, 0)
    share = f" ({100 * freed // size}%)" if size else ""
    return (name, str(len(every)), str(len(active)), fmt.size(size), f"{fmt.size(freed)}{share}")


def _sizes(items: list[dict[str, Any]]) -> int:
    """A volume that is mounted from elsewhere takes -1: nobody knows."""
    every = (i["UsageData"]["Size"] if "UsageData" in i else i.get("SizeRw", 0) for i in items)
    return sum(max(size, 0) for size in every)


def _idle(every: list[dict[str, Any]], active: list[dict[str, Any]]) -> int:
    return _sizes(every) - _sizes(active)


COMMANDS = (top, stats)
