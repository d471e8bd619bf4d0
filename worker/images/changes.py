"""`--change` of import and commit: instructions of a Dockerfile that set the configuration."""

import copy
import json
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from common.errors import Invalid

Config = dict[str, Any]


def apply(changes: Iterable[str], before: Config | None = None) -> Config:
    """`before` with such instructions carried out. Raises Invalid naming the instruction."""
    config: Config = copy.deepcopy(before or {})
    for change in changes:
        word, _, rest = change.strip().partition(" ")
        action = _ACTIONS.get(word.upper())
        if action is None:
            known = ", ".join(sorted(_ACTIONS))
            raise Invalid(f"change {change!r}: {word.upper()} cannot be used here; use {known}")
        if not rest.strip():
            raise Invalid(f"change {change!r}: {word.upper()} needs a value")
        try:
            action(config, rest.strip())
        except ValueError as error:
            raise Invalid(f"change {change!r}: {error}") from error
    return config


def _command(key: str) -> Callable[[Config, str], None]:
    def action(config: Config, text: str) -> None:
        if not text.startswith("["):
            config[key] = ["/bin/sh", "-c", text]
            return
        words = json.loads(text)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("must be a JSON list of strings")
        config[key] = words

    return action


def _text(key: str) -> Callable[[Config, str], None]:
    def action(config: Config, text: str) -> None:
        config[key] = text

    return action


def _names(key: str) -> Callable[[Config, str], None]:
    def action(config: Config, text: str) -> None:
        words = json.loads(text) if text.startswith("[") else text.split()
        config.setdefault(key, {}).update({str(word): {} for word in words})

    return action


def _ports(config: Config, text: str) -> None:
    for word in text.split():
        number, _, protocol = word.partition("/")
        if not number.isdecimal() or not 0 < int(number) < 65536:
            raise ValueError(f"{word} is not PORT[/PROTOCOL]")
        config.setdefault("ExposedPorts", {})[f"{int(number)}/{protocol or 'tcp'}"] = {}


def _pairs(text: str) -> dict[str, str]:
    """`KEY=VALUE …` or `KEY VALUE`."""
    words = shlex.split(text)
    if "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    if wrong := [word for word in words if "=" not in word]:
        raise ValueError(f"{wrong[0]} is not KEY=VALUE")
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _environment(config: Config, text: str) -> None:
    """What is set already gets the new value where it stands."""
    known = {line.partition("=")[0]: line for line in config.get("Env") or ()}
    known |= {key: f"{key}={value}" for key, value in _pairs(text).items()}
    config["Env"] = list(known.values())


def _labels(config: Config, text: str) -> None:
    config.setdefault("Labels", {}).update(_pairs(text))


_ACTIONS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _command("Cmd"),
    "ENTRYPOINT": _command("Entrypoint"),
    "ENV": _environment,
    "EXPOSE": _ports,
    "LABEL": _labels,
    "STOPSIGNAL": _text("StopSignal"),
    "USER": _text("User"),
    "VOLUME": _names("Volumes"),
    "WORKDIR": _text("WorkingDir"),
}
