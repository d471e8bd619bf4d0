"""/_ping, /version, /info, /events, /auth: the daemon itself."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from common.errors import NotImplementedHere
from node.api import body
from node.api.cluster_events import merged
from node.api.daemon import Daemon
from node.api.routes import Route, json_response
from node.api.streaming import json_objects
from node.api.swarm import cluster_json

API_VERSION = "1.43"
MIN_API_VERSION = "1.24"


class SystemRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/events", self.events),
            Route("POST", "/auth", self.auth),
        ]

    async def ping(self, request: web.Request) -> web.StreamResponse:
        """What opens every command of the docker CLI; it reads the headers."""
        return web.Response(
            text="" if request.method == "HEAD" else "OK",
            headers={
                "Api-Version": API_VERSION,
                "Ostype": "linux",
                "OSType": "linux",
                "Docker-Experimental": "false",
                "Builder-Version": "1",
                "Swarm": self._swarm_role(),
                "Cache-Control": "no-cache, no-store, must-revalidate",
                "Pragma": "no-cache",
            },
        )

    def _swarm_role(self) -> str:
        swarm = self._daemon.swarm
        if swarm.state != "active":
            return swarm.state
        return "active/manager" if self._daemon.manager is not None else "active/worker"

    async def version(self, request: web.Request) -> web.StreamResponse:
        machine = platform.uname()
        ours = {
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "Os": "linux",
            "Arch": architecture(),
            "KernelVersion": machine.release,
            "Experimental": "false",
        }
        return json_response(
            {
                "Platform": {"Name": "Shoal"},
                "Version": self._daemon.version,
                "GitCommit": "",
                "GoVersion": f"python{platform.python_version()}",
                "BuildTime": "",
                "Components": [
                    {"Name": "Engine", "Version": self._daemon.version, "Details": ours}
                ],
                **{key: value for key, value in ours.items() if key != "Experimental"},
            }
        )

    async def info(self, request: web.Request) -> web.StreamResponse:
        daemon = self._daemon
        containers = daemon.engine.list(all=True)
        machine = await asyncio.to_thread(_machine)
        states = [container.state for container in containers]
        running, paused = states.count("running"), states.count("paused")
        return json_response(
            {
                "ID": daemon.swarm.node_id or daemon.config.hostname,
                "Containers": len(states),
                "ContainersRunning": running,
                "ContainersPaused": paused,
                "ContainersStopped": len(states) - running - paused,
                "Images": len(daemon.images.list()),
                "Driver": "overlay2",
                "DriverStatus": [],
                "Plugins": {
                    "Volume": ["local"],
                    "Network": ["bridge", "host", "none", "overlay"],
                    "Authorization": None,
                    "Log": ["json-file", "local", "none"],
                },
                "MemoryLimit": True,
                "SwapLimit": False,
                "CpuCfsPeriod": True,
                "CpuCfsQuota": True,
                "CPUShares": True,
                "CPUSet": True,
                "PidsLimit": True,
                "OomKillDisable": False,
                "IPv4Forwarding": True,
                "Debug": daemon.config.log_level == "debug",
                "SystemTime": daemon.clock.now().isoformat(),
                "LoggingDriver": "json-file",
                "CgroupDriver": "cgroupfs",
                "CgroupVersion": machine["cgroup"],
                "KernelVersion": machine["kernel"],
                "OperatingSystem": machine["os"],
                "OSVersion": machine["os_version"],
                "OSType": "linux",
                "Architecture": platform.machine(),
                "IndexServerAddress": "https://index.docker.io/v1/",
                "RegistryConfig": {
                    "InsecureRegistryCIDRs": ["127.0.0.0/8"],
                    "IndexConfigs": {},
                    "Mirrors": [],
                },
                "NCPU": os.cpu_count() or 1,
                "MemTotal": machine["memory"],
                "DockerRootDir": str(daemon.config.state_dir),
                "Name": daemon.config.hostname or platform.node(),
                "Labels": [f"{key}={value}" for key, value in daemon.config.labels.items()],
                "ExperimentalBuild": False,
                "ServerVersion": daemon.version,
                "Runtimes": {
                    name: {"path": path}
                    for name, path in {"shoal": "shoal", **daemon.engine.runtimes.paths}.items()
                },
                "DefaultRuntime": daemon.engine.runtimes.default,
                "Swarm": self._swarm_info(),
                "LiveRestoreEnabled": True,
                "Isolation": "",
                "InitBinary": "",
                "ContainerdCommit": {"ID": ""},
                "RuncCommit": {"ID": ""},
                "InitCommit": {"ID": ""},
                "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
                "Warnings": self._warnings(),
            }
        )

    def _warnings(self) -> list[str]:
        found = sum(self._daemon.networks.counts.differences.values())
        line = f"the network of this node was repaired in {found} places; the daemon's log says why"
        return [line] if found else []

    def _swarm_info(self) -> dict[str, Any]:
        daemon = self._daemon
        swarm = daemon.swarm
        info: dict[str, Any] = {
            "NodeID": swarm.node_id,
            "NodeAddr": swarm.address,
            "LocalNodeState": swarm.state,
            "ControlAvailable": daemon.manager is not None,
            "Error": swarm.error,
            "RemoteManagers": [
                {"NodeID": node_id, "Addr": address} for node_id, address in swarm.managers
            ]
            or None,
        }
        if daemon.manager is not None:
            info |= daemon.manager.api.cluster.counts()
            if (cluster := daemon.manager.api.cluster.find()) is not None:
                info["Cluster"] = cluster_json(cluster, tokens=False)
        return info

    async def events(self, request: web.Request) -> web.StreamResponse:
        events: AsyncIterator[dict[str, object]] = merged(
            self._daemon,
            since_ns=body.time_ns(request, "since"),
            until_ns=body.time_ns(request, "until"),
            filters=body.filters(request),
        )
        return await json_objects(request, events)

    async def auth(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedHere(
            "docker login is not supported by this version of Shoal; "
            "credentials for a pull are sent with X-Registry-Auth"
        )


def architecture() -> str:
    """The machine's architecture in Go's words."""
    names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
    return names.get(platform.machine(), platform.machine())


def _machine() -> dict[str, Any]:
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return {
        "os": release.get("PRETTY_NAME", "Linux"),
        "os_version": release.get("VERSION_ID", ""),
        "kernel": platform.uname().release,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cgroup": "2" if v2 else "1",
    }
