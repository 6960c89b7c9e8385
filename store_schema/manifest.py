"""The manifest, which says what made a store, and the comparison of two manifests."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .checksum import crc32c_text
from .errors import OtherStoreError, StoreError
from .storage import Storage

MANIFEST = "manifest.json"
RECIPE = "recipe.json"
MADE_BY = ("expert", "data", "image", "history", "coordinates", "focal", "libraries")
"""Sections of a manifest that tell a person what made a store."""
# facts about the run that do not change what is stored
_INCIDENTAL = ("libraries", "shards", "statistics", "coverage", "files", "crc32c")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest that decides the store's contents."""
    kept = {key: value for key, value in manifest.items() if key not in _INCIDENTAL}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def differing(a: Any, b: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """First field in which two manifests differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if not path and key in _INCIDENTAL:
                continue
            found = differing(a.get(key), b.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if a == b else (path, a, b)


def refuse_difference(have: dict[str, Any], want: dict[str, Any], where: object, fix: str) -> None:
    """Compare two manifests.

    Raises:
        OtherStoreError: naming the first field that differs and both values.
    """
    found = differing(json.loads(canonical(have)), json.loads(canonical(want)))
    if found:
        field, old, new = found
        stored, wanted = _short(old), _short(new)
        message = f"{where} was made with {field} = {stored}, now it is {wanted}; {fix}"
        raise OtherStoreError(message, field, stored, wanted)


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def read_json(storage: Storage, name: str) -> dict[str, Any]:
    """A JSON file of the store.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        content = json.loads(storage.read(name))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except (OSError, ValueError) as error:
        raise StoreError(f"{name} of store {storage} cannot be read ({error}); run 'fd3d dump' again") from error


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """CRC-32C of a manifest's content, whatever its layout as text."""
    content = {key: value for key, value in manifest.items() if key != "crc32c"}
    return crc32c_text([canonical(content).encode()])
