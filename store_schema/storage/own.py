"""Which files of a folder or prefix are a store's own, so that nothing else is ever deleted."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..layout import ARRAYS, CONSTANTS, DONE, StoreLayout
from ..schema import StoreSchema

MANIFEST = "manifest.json"
RECIPE = "recipe.json"
LOCK = ".lock"
LEASE = ".lease"
"""Lock of a file system without locks."""
TEMPORARY = ".tmp"
FOLDERS = ("bev", "pv", "query", "frame", "decoder", "code", DONE, TEMPORARY)
"""Folders that a store may have; one of these may be a link to another folder of the same disk."""
_MARKER = re.compile(rf"{re.escape(DONE)}/shard-\d{{5,}}\.json")
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY)}/tmp[a-z0-9_]{{8}}")
_LITTER = re.compile(r"(.*/)?(\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+)")
_CHUNK = re.compile(r"(.+)/c/\d+(/\d+)*")
_SHARD_FOLDER = re.compile(r"(.+)/c(/\d+){0,4}")


def own_files(there: Iterable[str], records: Mapping[str, bytes]) -> list[str]:
    """Those of the files that belong to the store, without recipe and lock.

    Args:
        there: names of all files below the store's folder.
        records: contents of recipe, manifest and markers by name, whatever their state; those that are no record of a store
            tell nothing. A recipe's schema tells all names that its dump may have written; of a store with an unknown schema
            the files are its own that a record lists.
    """
    known, arrays = _names(records)

    def is_own(name: str) -> bool:
        chunk = _CHUNK.fullmatch(name)
        return (
            name in known
            or is_temporary(name)
            or _MARKER.fullmatch(name) is not None
            or (chunk is not None and chunk[1] in arrays)
        )

    return [name for name in there if name not in (RECIPE, LOCK, LEASE) and is_own(name)]


def own_folders(records: Mapping[str, bytes]) -> tuple[set[str], Callable[[str], bool]]:
    """Folders by name that a store has, and whether a name is that of a folder of a store's shards.

    Args:
        records: as of :func:`own_files`.
    """
    known, arrays = _names(records)
    parents = {str(parent) for name in (*known, *(f"{path}/c" for path in arrays)) for parent in Path(name).parents}

    def is_own(name: str) -> bool:
        shard = _SHARD_FOLDER.fullmatch(name)
        return shard is not None and shard[1] in arrays

    return (parents | set(FOLDERS)) - {"."}, is_own


def _names(records: Mapping[str, bytes]) -> tuple[set[str], set[str]]:
    """Names of files and paths of arrays that records tell of."""
    arrays: set[str] = set()
    known = {MANIFEST, ARRAYS, CONSTANTS}
    for record in [_record(data) for name, data in records.items() if is_record(name, data)]:
        listed = [record.get("files"), *_values(record.get("shards"))]
        known |= {name for files in listed if isinstance(files, dict) for name in files}
        try:
            schema = StoreSchema.from_dict(record["schema"])
            layout = StoreLayout(schema, record["scenes"], record["frames_per_shard"])
            known |= set(layout.other_files())
        except (StoreError, KeyError, TypeError, ValueError, AttributeError, IndexError):
            continue
        arrays |= schema.arrays().keys()
    return known, arrays


def is_record(name: str, data: bytes) -> bool:
    """Whether a file is a recipe, manifest or marker of this project's stores: other programs have a ``manifest.json`` with ``files``, too."""
    record = _record(data)
    if name.startswith(f"{DONE}/"):
        return isinstance(record.get("fingerprint"), str) and isinstance(record.get("files"), dict)
    schema = record.get("schema")
    return (
        isinstance(record.get("schema_version"), int)
        and isinstance(record.get("scenes"), dict)
        and isinstance(schema, dict)
        and {"bev", "pv", "queries"} <= schema.keys()
    )


def is_foreign(data: bytes) -> bool:
    """Whether a file of a record's name is another program's, such as a web page's ``manifest.json``; damaged ones are not."""
    return bool(record := _record(data)) and not record.keys() & {"schema_version", "scenes", "crc32c", "fingerprint"}


def is_temporary(name: str) -> bool:
    """Whether a file is one that a writer has not finished: another one below ``.tmp`` is not the store's."""
    return _TEMPORARY.fullmatch(name) is not None


def is_shard(name: str) -> bool:
    """Whether a file is named as one of the frames' arrays: tokens and constants, which are written before, are not."""
    return _CHUNK.fullmatch(name) is not None and name.split("/")[0] in ("bev", "pv", "query")


def is_litter(name: str) -> bool:
    """Whether a file is one that desktops and network file systems leave in any folder, and nobody reads."""
    return _LITTER.fullmatch(name) is not None


def _record(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _values(shards: Any) -> list[Any]:
    return list(shards.values()) if isinstance(shards, dict) else []
