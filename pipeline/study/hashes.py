"""Hashes of what decides a result, each file read again only when it has changed."""

import dataclasses
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.files import file_sha256
from pipeline.models.build import load_config


def short_hash(value: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def deciding(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, without the settings that do nothing.

    A field whose metadata has ``counts_with`` is left out while a setting of these names is 0 or false: a part that is off and
    was added later leaves the hashes of earlier trainings as they are.
    """
    found = {}
    for field in dataclasses.fields(settings):
        switches, value = field.metadata.get("counts_with", ()), getattr(settings, field.name)
        if all(getattr(settings, name) for name in switches):
            found[field.name] = deciding(value) if dataclasses.is_dataclass(value) else value
    return found


@lru_cache(maxsize=64)
def _resolved(path: Path, changed: int) -> dict[str, Any]:
    return load_config(path).to_dict()


def resolved_config(path: str | Path) -> dict[str, Any]:
    """A detector config with all that it inherits."""
    path = Path(path)
    return _resolved(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=256)
def _sha256(path: Path, changed: int) -> str:
    return file_sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, read again only when it has changed.

    Raises:
        FileNotFoundError: the file is not there.
    """
    return _sha256(path, path.stat().st_mtime_ns)
