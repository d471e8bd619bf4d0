"""The cluster's changes as Docker's events."""

import pytest
from msgspec.structs import replace

from common.model.base import Object
from common.model.node import Availability, NodeState
from common.model.secret import Config, ConfigSpec, Secret, SecretSpec
from common.model.service import UpdateStatus
from manager.store.store import Event
from node.api.cluster_events import describe, passes
from tests.support import build


def attributes(new: Object, old: Object | None) -> dict[str, str]:
    event = describe(Event("update" if old is not None else "create", new, old), 3_000_000_007)
    assert event is not None
    assert (event["scope"], event["time"], event["timeNano"]) == ("swarm", 3, 3_000_000_007)
    found: dict[str, str] = event["Actor"]["Attributes"]
    return found


def test_a_nodes_event_has_old_and_new() -> None:
    """DIS 165."""
    old = build.node("n1")
    new = build.node("n1", state=NodeState.DOWN, availability=Availability.DRAIN)
    assert attributes(new, old) == {
        "name": "n1",
        "state.old": "ready",
        "state.new": "down",
        "availability.old": "active",
        "availability.new": "drain",
    }
    assert attributes(old, None) == {"name": "n1"}
    assert attributes(old, old) == {"name": "n1"}


def test_a_services_event_has_old_and_new() -> None:
    """DIS 165."""
    old = build.service("web", replicas=2, image="web:1")
    new = replace(
        build.service("web", replicas=3, image="web:2"),
        update_status=UpdateStatus(state="updating"),
    )
    assert attributes(new, old) == {
        "name": "web",
        "replicas.old": "2",
        "replicas.new": "3",
        "image.old": "web:1",
        "image.new": "web:2",
        "updatestate.new": "updating",
    }


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("secret", Secret(id="s1", spec=SecretSpec(name="key", data=b"hidden"))),
        ("config", Config(id="s1", spec=ConfigSpec(name="key", data=b"hidden"))),
    ],
)
def test_a_secret_or_config_comes_and_goes(kind: str, made: Object) -> None:
    """Its name is told, never what it holds; and it can be asked for by kind, name and id."""
    for action in ("create", "remove"):
        event = describe(Event(action, made, None), 0)
        assert event is not None
        assert (event["Type"], event["Action"]) == (kind, action)
        assert event["Actor"] == {"ID": "s1", "Attributes": {"name": "key"}}
        assert passes(event, {kind: ["key"]})
        assert passes(event, {kind: ["s1"], "type": [kind]})
        assert not passes(event, {kind: ["other"]})
        assert not passes(event, {"node": ["key"]})


def test_tasks_make_no_events() -> None:
    assert describe(Event("create", build.task(), None), 0) is None


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"type": ["service"], "event": ["update"]}, True),
        ({"service": ["web"], "scope": ["swarm"]}, True),
        ({"type": ["node"]}, False),
        ({"node": ["web"]}, False),
        ({"container": ["web"]}, False),
    ],
)
def test_filters(filters: dict[str, list[str]], found: bool) -> None:
    web = build.service("web")
    event = describe(Event("update", web, web), 0)
    assert event is not None
    assert passes(event, filters) is found
