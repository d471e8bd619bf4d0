"""Who may import whom, and what may not reach the world (docs/design.md, section 1)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "common": set(),
    "manager": {"common"},
    "worker": {"common"},
    "node": {"common", "manager", "worker"},
    "cli": {"common"},
    "lab": {"common"},
}
OURS = set(MAY_IMPORT)

# Cores: the same inputs give the same outputs, so nothing here may reach the world.
CORES = [
    "common/model",
    "common/protocol",
    "manager/raft/core.py",
    "manager/raft/log.py",
    "manager/raft/progress.py",
    "manager/raft/quorum.py",
    "manager/orchestrator",
    "manager/allocator",
    "manager/scheduler",
    "cli/service_spec.py",
]
WORLD = {"asyncio", "os", "secrets", "selectors", "socket", "subprocess", "threading", "time"}


def sources(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    for path in sources(package):
        reached = {name.split(".")[0] for name in imports(path)} & OURS
        wrong = reached - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("core", CORES)
def test_a_core_does_not_reach_the_world(core: str) -> None:
    paths = sources(core)
    assert paths, f"{core} is not there any more: mend the list"
    for path in paths:
        reached = {name for name in imports(path) if name.split(".")[0] in WORLD}
        assert not reached, f"{path.relative_to(ROOT)} imports {reached}"


def test_the_rule_sees_what_it_forbids() -> None:
    """The check itself can fail."""
    found = set(imports(ROOT / "node" / "api" / "hijack.py"))
    assert {"node.api.routes", "asyncio"} <= found
