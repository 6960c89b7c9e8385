"""The manifest, which says what made a store, the checksums of JSON files, and the comparison of two manifests."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .checksum import crc32c_text
from .errors import OtherStoreError, StoreError
from .layout import DONE
from .storage import MANIFEST, RECIPE, Storage

__all__ = [
    "MADE_BY",
    "MANIFEST",
    "RECIPE",
    "canonical",
    "differing",
    "fingerprint",
    "identity",
    "made_by",
    "manifest_checksum",
    "normalised",
    "read_manifest",
    "refuse_difference",
    "seal",
    "unseal",
    "unseal_manifest",
    "unseal_recipe",
]

MADE_BY = ("expert", "data", "image", "history", "coordinates", "focal", "libraries")
"""Sections of a manifest that tell a person what made a store."""
_MAPPINGS = (
    "expert",
    "data",
    "image",
    "coordinates",
    "focal",
    "statistics",
    "coverage",
    "schema",
    "scenes",
    "shards",
    "files",
)
ABSENT = "(absent)"
# settings that follow from others, of features: ``values: pca`` is told, not its other number of bits
_FOLLOWING = ("code", "code_bits", "code_bytes")
# facts about the run that do not change what is stored
_INCIDENTAL = ("libraries", "mixed_libraries", "source_sha256", "shards", "statistics", "coverage", "files", "crc32c")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def normalised(value: Any) -> Any:
    """A plain value whose whole numbers are integers: 1 and 1.0 are one setting, True is another."""
    if isinstance(value, Mapping):
        return {str(key): normalised(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [normalised(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over everything in a manifest that decides the store's contents."""
    kept = {key: value for key, value in manifest.items() if key not in _INCIDENTAL}
    return hashlib.sha256(canonical(normalised(kept)).encode()).hexdigest()


def differing(a: Any, b: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """First field in which two manifests differ, with both values; manifests without one have one fingerprint.

    Fields that both have come first: what only one of them has follows from such a field more often than not. Those that
    are known to follow from others come last.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted(a.keys() | b.keys(), key=lambda key: (key in _FOLLOWING, key not in a or key not in b, key)):
            if not path and key in _INCIDENTAL:
                continue
            found = differing(a.get(key, ABSENT), b.get(key, ABSENT), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{path} (number of entries)", len(a), len(b)
        pairs = (differing(*pair, f"{path}[{i}]") for i, pair in enumerate(zip(a, b, strict=True)))
        return next((found for found in pairs if found), None)
    return None if canonical(normalised(a)) == canonical(normalised(b)) else (path, a, b)


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """All that the values of a finished store follow from: recipe, statistics and checksums, without facts about the run."""
    # the root group's attributes, recipe and markers tell facts about the run
    told = ("zarr.json", RECIPE)
    listed = (manifest.get("files") or {}).items()
    files = {name: entry for name, entry in listed if name not in told and not name.startswith(f"{DONE}/")}
    shards = {f"shard {number}": files for number, files in (manifest.get("shards") or {}).items()}
    recipe = {key: value for key, value in manifest.items() if key not in _INCIDENTAL}
    return recipe | {"statistics of": manifest.get("statistics"), "written": shards | files}


def refuse_difference(have: Mapping[str, Any], want: Mapping[str, Any], where: object, fix: str) -> None:
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
    text = ABSENT if value == ABSENT else canonical(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def read_manifest(storage: Storage) -> dict[str, Any]:
    """The manifest of a finished store; only its own checksum is checked here, and its version is not.

    Raises:
        StoreError: the manifest is damaged or cannot be read.
    """
    try:
        content = json.loads(storage.read(MANIFEST))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        if "files" not in content and content.get("schema_version") == 1:
            return content  # whose version a reader refuses
        if not is_manifest(content):
            raise ValueError("its content is another file's")
        if odd := [name for name in _MAPPINGS if not isinstance(content.get(name, {}), dict)]:
            raise ValueError(f"its {odd[0]} is {_short(content[odd[0]])}, no mapping")
        return content
    except (FileNotFoundError, ValueError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{MANIFEST} of store {storage} cannot be read ({error}); run 'fd3d dump' again") from error


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """CRC-32C of the content of a manifest, recipe or marker, whatever its layout as text and the order of its keys."""
    content = {key: value for key, value in manifest.items() if key != "crc32c"}
    return crc32c_text([canonical(content).encode()])


def seal(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A JSON object as a file of the store, with the checksum of its content.

    Raises:
        StoreError: a value is NaN or infinite, or is not of JSON's types.
    """
    try:
        plain = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"a value for the store's JSON files does not fit: {error}; give finite plain values"
        ) from error
    return json.dumps(plain | {"crc32c": manifest_checksum(plain)}, sort_keys=True, indent=indent).encode()


def unseal(data: bytes | None) -> dict[str, Any] | None:
    """The object that :func:`seal` made a file of; None for no file, and for a file that is not as it was written."""
    try:
        content = json.loads(data or b"")
        whole = isinstance(content, dict) and content.get("crc32c") == manifest_checksum(content)
    except (ValueError, RecursionError):
        return None
    return content if whole else None


def unseal_recipe(data: bytes | None) -> dict[str, Any] | None:
    """A recipe, see :func:`unseal`; None also for another of the store's JSON files in its place."""
    content = unseal(data)
    return content if content is not None and "schema" in content and not is_manifest(content) else None


def unseal_manifest(data: bytes | None) -> dict[str, Any] | None:
    """A manifest, see :func:`unseal`; None also for another of the store's JSON files in its place."""
    content = unseal(data)
    return content if content is not None and is_manifest(content) else None


def made_by(storage: Storage) -> dict[str, Any] | None:
    """The recipe of the store that is there, or its manifest; None where neither is whole."""
    found = storage.read_many([RECIPE, MANIFEST])
    return unseal_recipe(found.get(RECIPE)) or unseal_manifest(found.get(MANIFEST))


def is_manifest(content: Mapping[str, Any]) -> bool:
    """Whether an object has what a recipe or marker lacks."""
    return all(field in content for field in ("schema", "shards", "files"))
