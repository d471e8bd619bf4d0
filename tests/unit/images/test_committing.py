"""An image's configuration with one more layer."""

import json

from worker.images.changes import apply
from worker.images.committing import Note, extended, history

BASE = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Cmd": ["old"]},
    "container": "stale",
    "rootfs": {"type": "layers", "diff_ids": ["a", "b"]},
}


def test_a_layer_is_added_with_its_line() -> None:
    note = Note(created="2024-01-01T00:00:00Z", created_by="sh", comment="why", author="who")
    made = json.loads(extended(json.dumps(BASE).encode(), {"Cmd": ["new"]}, "c", note))
    assert made["rootfs"]["diff_ids"] == ["a", "b", "c"]
    assert made["config"] == {"Cmd": ["new"]}
    assert (made["architecture"], made["author"]) == ("amd64", "who")
    assert len(made["history"]) == 3
    assert made["history"][2]["comment"] == "why"
    assert "container" not in made


def test_history_gives_sizes_to_lines_with_files() -> None:
    lines = [{"created_by": "one"}, {"created_by": "env", "empty_layer": True}, {"comment": "two"}]
    rows = history(json.dumps(BASE | {"history": lines}).encode(), [10, 20])
    assert [row["size"] for row in rows] == [20, 0, 10]
    assert [row["size"] for row in history(json.dumps(BASE).encode(), [10, 20])] == [20, 10]


def test_a_variable_is_added_or_replaced_where_it_stands() -> None:
    """What comes of a container has tuples, not lists."""
    before = {"Env": ("PATH=/bin", "A=a", "B=b")}
    assert apply(["ENV A=1 C=2"], before)["Env"] == ["PATH=/bin", "A=1", "B=b", "C=2"]
    assert apply(["ENV C a b"])["Env"] == ["C=a b"]
    assert before == {"Env": ("PATH=/bin", "A=a", "B=b")}
