"""From flags to a service's spec."""

import copy

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.service_spec import SETTERS, created, updated


def test_a_service_with_little_said() -> None:
    assert created({"name": "web", "image": "web:1"}, {}) == {
        "Name": "web",
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}},
        "Mode": {"Replicated": {"Replicas": 1}},
    }


def test_flags_go_where_docker_has_them() -> None:
    spec = created(
        {
            "image": "web:1",
            "replicas": 6,
            "network": ("net",),
            "publish": ("8080:80",),
            "constraint": ("node.role==worker",),
            "placement_pref": ("spread=node.labels.zone",),
            "health_cmd": "true",
            "limit_memory": 64 << 20,
            "reserve_cpu": 500_000_000,
            "update_parallelism": 0,
            "update_order": "start-first",
            "rollback_monitor": 5,
            "restart_delay": 0,
            "entrypoint": "sh -c 'a b'",
        },
        {},
    )
    template = spec["TaskTemplate"]
    assert spec["Mode"] == {"Replicated": {"Replicas": 6}}
    assert template["Networks"] == [{"Target": "net"}]
    assert template["Placement"] == {
        "Constraints": ["node.role==worker"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
    }
    assert template["Resources"] == {
        "Limits": {"MemoryBytes": 64 << 20},
        "Reservations": {"NanoCPUs": 500_000_000},
    }
    assert template["ContainerSpec"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"]}
    assert template["ContainerSpec"]["Command"] == ["sh", "-c", "a b"]
    assert template["RestartPolicy"] == {"Delay": 0}
    assert spec["UpdateConfig"] == {"Parallelism": 0, "Order": "start-first"}
    assert spec["RollbackConfig"] == {"Monitor": 5}
    assert spec["EndpointSpec"]["Ports"][0]["PublishedPort"] == 8080


def test_global_services_have_no_replicas() -> None:
    assert created({"image": "a", "mode": "global"}, {})["Mode"] == {"Global": {}}
    with pytest.raises(click.UsageError, match="replicated services and jobs"):
        created({"image": "a", "mode": "global", "replicas": 2}, {})


def test_jobs_have_completions_and_tasks_at_a_time() -> None:
    """JOB 104: all at a time, unless something else is said."""
    asked = {"image": "a", "mode": "replicated-job", "replicas": 4}
    job = {"TotalCompletions": 4, "MaxConcurrent": 4}
    assert created(asked, {})["Mode"] == {"ReplicatedJob": job}
    spec = created(asked | {"max_concurrent": 2}, {})
    assert spec["Mode"] == {"ReplicatedJob": job | {"MaxConcurrent": 2}}
    updated(spec, {"replicas": 6}, {})
    assert spec["Mode"] == {"ReplicatedJob": {"TotalCompletions": 6, "MaxConcurrent": 2}}
    assert created({"image": "a", "mode": "global-job"}, {})["Mode"] == {"GlobalJob": {}}
    for wrong in ({"mode": "global-job", "replicas": 2}, {"max_concurrent": 2}):
        with pytest.raises(click.UsageError, match="--max-concurrent"):
            created({"image": "a"} | wrong, {})


def test_an_update_changes_only_what_it_names() -> None:
    spec = created({"image": "web:1", "env": ("A=1", "B=2"), "label": ("x=1",)}, {})
    before = copy.deepcopy(spec)
    assert updated(spec, {}, {}) == before
    changed = updated(spec, {"image": "web:2"}, {})
    before["TaskTemplate"]["ContainerSpec"]["Image"] = "web:2"
    assert changed == before


def test_an_update_adds_replaces_and_removes() -> None:
    spec = created(
        {
            "image": "web:1",
            "env": ("A=1", "B=2"),
            "label": ("x=1", "y=2"),
            "publish": ("8080:80",),
            "mount": ("source=v,target=/v",),
            "constraint": ("node.role==worker",),
        },
        {},
    )
    updated(
        spec,
        {
            "env_add": ("B=3", "C=4"),
            "env_rm": ("A",),
            "label_rm": ("x",),
            "label_add": ("z=3",),
            "publish_add": ("9090:80",),
            "mount_rm": ("/v",),
            "constraint_rm": ("node.role==worker",),
            "force": True,
            "replicas": 3,
        },
        {},
    )
    container = spec["TaskTemplate"]["ContainerSpec"]
    assert container["Env"] == ["B=3", "C=4"]
    assert spec["Labels"] == {"y": "2", "z": "3"}
    assert [port["PublishedPort"] for port in spec["EndpointSpec"]["Ports"]] == [9090]
    assert container["Mounts"] == []
    assert spec["TaskTemplate"]["Placement"]["Constraints"] == []
    assert spec["TaskTemplate"]["ForceUpdate"] == 1
    assert spec["Mode"] == {"Replicated": {"Replicas": 3}}


def test_replicas_of_a_global_service_cannot_be_changed() -> None:
    spec = created({"image": "a", "mode": "global"}, {})
    with pytest.raises(click.UsageError, match="replicated services and jobs"):
        updated(spec, {"replicas": 2}, {})


@given(st.sets(st.sampled_from(sorted(set(SETTERS) - {"entrypoint", "args", "health_cmd"}))))
def test_single_flags_do_not_disturb_one_another(flags: set[str]) -> None:
    """Every flag's value is found again, whatever others are given, in whatever order."""
    given_flags = {flag: f"value of {flag}" for flag in flags}
    spec = created({"image": "i"} | given_flags, {})
    reverse = created({"image": "i"} | dict(reversed(given_flags.items())), {})
    assert spec == reverse
    text = repr(spec)
    assert all(f"value of {flag}" in text for flag in flags)
