"""shoal swarm: form, join and leave a cluster."""

import sys

import click

from cli import recovery
from cli.client import Client, CliError
from cli.context import pass_client
from cli.options import Duration
from common.model import labels


@click.group()
def swarm() -> None:
    """Form, join and leave a cluster."""


@swarm.command()
@click.option("--advertise-addr", default="", metavar="ADDR[:PORT]", help="Where others reach us.")
@click.option("--listen-addr", default="", metavar="ADDR[:PORT]", help="Where we listen.")
@click.option("--data-path-addr", default="", metavar="ADDR", help="Where overlays run.")
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]), default="active")
@click.option("--default-addr-pool", multiple=True, metavar="CIDR", help="For overlay networks.")
@click.option("--default-addr-pool-mask-length", type=int, default=24, show_default=True)
@click.option("--data-path-port", type=int, default=0, help="UDP port of the overlays.")
@click.option(
    "--force-new-cluster",
    is_flag=True,
    help="Go on as the only manager: the others are lost for good.",
)
@click.option(
    "--dry-run", is_flag=True, help="With --force-new-cluster: only say what would be lost."
)
@click.option("--autolock", is_flag=True, help="Managers need a key after each restart.")
@pass_client
def init(
    client: Client,
    advertise_addr: str,
    listen_addr: str,
    data_path_addr: str,
    availability: str,
    default_addr_pool: tuple[str, ...],
    default_addr_pool_mask_length: int,
    data_path_port: int,
    force_new_cluster: bool,
    dry_run: bool,
    autolock: bool,
) -> None:
    """Make this node the first manager of a new cluster."""
    if dry_run and not force_new_cluster:
        raise click.UsageError("--dry-run goes with --force-new-cluster")
    if dry_run:
        found = client.post("/swarm/init", {"ForceNewCluster": True}, dryRun=True)
        click.echo(recovery.text(found))
        return
    node_id = client.post(
        "/swarm/init",
        {
            "ForceNewCluster": force_new_cluster,
            "ListenAddr": listen_addr,
            "AdvertiseAddr": advertise_addr,
            "DataPathAddr": data_path_addr,
            "Availability": availability,
            "DefaultAddrPool": list(default_addr_pool),
            "SubnetSize": default_addr_pool_mask_length,
            "DataPathPort": data_path_port,
            "AutoLockManagers": autolock,
        },
    )
    if force_new_cluster:
        click.echo(f"This node ({node_id}) goes on as the only manager, with all that it had.\n")
    else:
        click.echo(f"Swarm initialized: current node ({node_id}) is now a manager.\n")
    click.echo("To add a worker to this swarm, run the following command on it:\n")
    click.echo(f"{_join_command(client, 'Worker')}\n")
    click.echo("To add a manager, run: shoal swarm join-token manager")
    if autolock:
        click.echo()
        _show_unlock_key(client)


@swarm.command()
@click.option("--token", required=True, help="From: shoal swarm join-token worker|manager")
@click.option("--advertise-addr", default="", metavar="ADDR[:PORT]", help="Where others reach us.")
@click.option("--listen-addr", default="", metavar="ADDR[:PORT]", help="Where we listen.")
@click.option("--data-path-addr", default="", metavar="ADDR", help="Where overlays run.")
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]), default="active")
@click.argument("remote", metavar="HOST:PORT", nargs=-1, required=True)
@pass_client
def join(
    client: Client,
    token: str,
    advertise_addr: str,
    listen_addr: str,
    data_path_addr: str,
    availability: str,
    remote: tuple[str, ...],
) -> None:
    """Join the cluster whose manager listens on HOST:PORT."""
    client.post(
        "/swarm/join",
        {
            "ListenAddr": listen_addr,
            "AdvertiseAddr": advertise_addr,
            "DataPathAddr": data_path_addr,
            "Availability": availability,
            "RemoteAddrs": list(remote),
            "JoinToken": token,
        },
    )
    manager = client.get("/info")["Swarm"]["ControlAvailable"]
    click.echo(f"This node joined a swarm as a {'manager' if manager else 'worker'}.")


@swarm.command("join-token")
@click.option("--rotate", is_flag=True, help="Make a new token; the old one is refused at once.")
@click.option("-q", "--quiet", is_flag=True, help="Print the token only.")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@pass_client
def join_token(client: Client, rotate: bool, quiet: bool, role: str) -> None:
    """Show how a machine joins as ROLE."""
    if rotate:
        found = client.get("/swarm")
        client.post(
            "/swarm/update",
            found["Spec"],
            version=found["Version"]["Index"],
            **{f"rotate{role.capitalize()}Token": True},
        )
        if not quiet:
            click.echo(f"Successfully rotated {role} join token.\n")
    if quiet:
        click.echo(client.get("/swarm")["JoinTokens"][role.capitalize()])
        return
    command = _join_command(client, role.capitalize())
    click.echo(f"To add a {role} to this swarm, run the following command:\n\n{command}\n")


@swarm.command()
@click.option("-f", "--force", is_flag=True, help="Also as a manager, also as the last one.")
@pass_client
def leave(client: Client, force: bool) -> None:
    """Leave the cluster. The tasks of this node are removed from it."""
    client.post("/swarm/leave", force=force)
    click.echo("Node left the swarm.")


@swarm.command()
@click.option(
    "--autolock",
    type=bool,
    is_flag=False,
    flag_value=True,
    default=None,
    metavar="true|false",
    help="Whether managers need the unlock key after each restart.",
)
@click.option("--cert-expiry", type=Duration(), help="How long new certificates are good.")
@click.option("--dispatcher-heartbeat", type=Duration(), help="How often agents say they live.")
@click.option("--task-history-limit", type=int, help="Ended tasks kept for each slot.")
@click.option(
    "--rebalance",
    type=click.IntRange(0),
    metavar="MOVES",
    help="Tasks that may be moved to emptier nodes in a minute; 0: none.",
)
@pass_client
def update(
    client: Client,
    autolock: bool | None,
    cert_expiry: int | None,
    dispatcher_heartbeat: int | None,
    task_history_limit: int | None,
    rebalance: int | None,
) -> None:
    """Change settings of the whole cluster."""
    asked = {
        ("EncryptionConfig", "AutoLockManagers"): autolock,
        ("CAConfig", "NodeCertExpiry"): cert_expiry,
        ("Dispatcher", "HeartbeatPeriod"): dispatcher_heartbeat,
        ("Orchestration", "TaskHistoryRetentionLimit"): task_history_limit,
        ("Labels", labels.REBALANCE): None if rebalance is None else str(rebalance),
    }
    if all(value is None for value in asked.values()):
        raise click.UsageError("nothing to change; `shoal swarm update --help` shows what can be")
    found = client.get("/swarm")
    spec = found["Spec"]
    was_locked = spec["EncryptionConfig"]["AutoLockManagers"]
    for (part, name), value in asked.items():
        if value is not None:
            spec.setdefault(part, {})[name] = value
    client.post("/swarm/update", spec, version=found["Version"]["Index"])
    click.echo("Swarm updated.")
    if autolock and not was_locked:
        _show_unlock_key(client)


@swarm.command("unlock-key")
@click.option("--rotate", is_flag=True, help="Make a new key; the old one is of no use then.")
@click.option("-q", "--quiet", is_flag=True, help="Print the key only.")
@pass_client
def unlock_key(client: Client, rotate: bool, quiet: bool) -> None:
    """Show what a locked manager needs after a restart."""
    if rotate:
        found = client.get("/swarm")
        version = found["Version"]["Index"]
        client.post("/swarm/update", found["Spec"], version=version, rotateManagerUnlockKey=True)
        if not quiet:
            click.echo("Successfully rotated manager unlock key.\n")
    if quiet:
        click.echo(_unlock_key(client))
    else:
        _show_unlock_key(client)


@swarm.command()
@pass_client
def unlock(client: Client) -> None:
    """Open a manager that was locked by its restart. Reads the key from standard input."""
    state = client.get("/info")["Swarm"]["LocalNodeState"]
    if state == "inactive":
        raise CliError("this node is not part of a swarm")
    if state != "locked":
        raise CliError("swarm is not locked")
    if sys.stdin.isatty():
        key = click.prompt("Enter unlock key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline()
    client.post("/swarm/unlock", {"UnlockKey": key.strip()})


def _unlock_key(client: Client) -> str:
    key: str = client.get("/swarm/unlockkey")["UnlockKey"]
    if not key:
        raise CliError("no unlock key is set: `shoal swarm update --autolock=true` sets one")
    return key


def _show_unlock_key(client: Client) -> None:
    click.echo(
        "To unlock a manager after it restarts, run `shoal swarm unlock` on it and give this "
        f"key:\n\n    {_unlock_key(client)}\n\n"
        "Keep the key in a password manager: without it the manager cannot be started again."
    )


def _join_command(client: Client, role: str) -> str:
    token = client.get("/swarm")["JoinTokens"][role]
    node = client.get(f"/nodes/{client.get('/info')['Swarm']['NodeID']}")
    address = node["ManagerStatus"]["Addr"]
    return f"    shoal swarm join --token {token} {address}"
