"""The history of an image, and the configuration of one with one more layer. Pure."""

import json
from typing import Any

import msgspec

from common.errors import Invalid
from worker.images.manifest import MAX_LAYERS


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of the new layer. `created` is RFC 3339."""

    created: str
    created_by: str = ""
    author: str = ""
    comment: str = ""


def extended(base: bytes, settings: dict[str, Any], diff_id: str, note: Note) -> bytes:
    """`base`, a configuration as it came, with one more layer. Raises Invalid."""
    config = json.loads(base)
    layers = config["rootfs"]["diff_ids"]
    if len(layers) >= MAX_LAYERS:
        raise Invalid(f"the image has {len(layers)} layers already; at most {MAX_LAYERS} can be")
    # An image without a history gets one, so that each layer has its line.
    history = config.get("history") or [{"created": config.get("created")} for _ in layers]
    told = {key: value for key, value in msgspec.to_builtins(note).items() if value}
    changed = {
        **config,
        "created": note.created,
        "config": settings,
        "history": [*history, told],
        "rootfs": {**config["rootfs"], "diff_ids": [*layers, diff_id]},
    }
    if note.author:
        changed["author"] = note.author
    for stale in ("container", "container_config", "id", "parent"):  # of Docker's older images
        changed.pop(stale, None)
    return json.dumps(changed).encode()


def history(config: bytes, sizes: list[int]) -> list[dict[str, Any]]:
    """What a configuration tells of its layers, newest first, with their `sizes` (oldest first)."""
    parsed, left = json.loads(config), list(sizes)
    rows = []
    for entry in parsed.get("history") or [{} for _ in sizes]:
        has_files = not entry.get("empty_layer") and bool(left)
        rows.append({**entry, "size": left.pop(0) if has_files else 0})
    return rows[::-1]
