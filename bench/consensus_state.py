"""The rows of `bench.consensus` about a large state: a restart, and a copy for a new manager."""

from bench.consensus_cluster import Managers
from bench.consensus_load import Load, forget_peak, memory_mb
from bench.consensus_member import Fill, Order

FILLED_BYTES = 300  # what an object takes beside its value, about
SMALL = 256
QUIET_S = 2.0  # of load before the new manager comes, to compare with

Row = dict[str, float]


async def measure_restart(managers: Managers, objects: int) -> Row:
    """Kill and start a follower that holds `objects` objects."""
    await managers.leader.ask(Order(fill=Fill(objects=objects, size=SMALL)))
    whole, loading = await managers.restart()
    return {"objects": objects, "seconds": round(whole, 2), "loading_s": round(loading, 2)}


async def measure_join(managers: Managers, objects: int, megabytes: int, writers: int) -> Row:
    """Let the state grow to `megabytes` and give it to a new manager while `writers` write."""
    size = max(megabytes * 1_000_000 // objects - FILLED_BYTES, SMALL)
    await managers.leader.ask(Order(fill=Fill(objects=objects, size=size)))
    leader = managers.leader.pid
    forget_peak(leader)
    before, _ = memory_mb(leader)
    load = Load(writers=writers, size=SMALL, seconds=QUIET_S)
    quiet = await managers.inside(load)
    result, joiner = await managers.join(load)
    _, peak = memory_mb(leader)
    _, joiner_peak = memory_mb(joiner.pid)
    row = {"megabytes": megabytes, "objects": objects, "writers": writers} | {
        "transfer_s": result["transfer_s"],  # until it votes: it has all on disk
        "whole_s": result["whole_s"],  # until it has all in its store
        "rate": result["rate"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "stall_ms": result["stall_ms"],
        "quiet_rate": quiet["rate"],
        "quiet_p99_ms": quiet["p99_ms"],
        "quiet_stall_ms": result["stall_before_ms"],
        "leader_mb": before,
        "leader_peak_mb": peak,
        "joiner_peak_mb": joiner_peak,
    }
    return {key: round(value, 2) for key, value in row.items()}
