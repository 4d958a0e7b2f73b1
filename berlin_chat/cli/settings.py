"""Where the command keeps what it remembers: defaults without any secret, and the history of conversations."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidRequest

#: What a default can be set for. No password and no key: those stay in the environment.
KEYS = ("provider", "model", "base_url")
_APP = "berlin-chat"


def config_file() -> Path:
    """Where ``set-default`` keeps the defaults."""
    return _folder("XDG_CONFIG_HOME", ".config") / "defaults.json"


def data_folder() -> Path:
    """Where the history is, and what was typed in ``chat``."""
    return _folder("XDG_DATA_HOME", ".local/share")


def _folder(variable: str, usual: str) -> Path:
    named = os.environ.get(variable, "")
    if os.path.isabs(named):  # else it is to be ignored, says the specification
        return Path(named) / _APP
    if sys.platform in ("win32", "darwin"):
        return Path(click.get_app_dir(_APP))
    return Path(os.path.expanduser("~")) / usual / _APP


def defaults() -> dict[str, str]:
    """Returns the defaults that are set. Raises InvalidRequest if the file is broken."""
    path = config_file()
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        found: Any = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(key in KEYS and isinstance(found[key], str) for key in found):
        raise InvalidRequest(f"{path} does not hold what set-default writes: mend it or delete it")
    return found


def keep_defaults(values: dict[str, str]) -> Path:
    """Writes the defaults, whole or not at all; returns where."""
    path = config_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
    new.replace(path)
    return path
