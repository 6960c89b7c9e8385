"""Which versions of libraries, and which revision of this package, wrote the parts of a store."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import StoreError
from .layout import ARRAYS, CONSTANTS, DONE
from .manifest import MANIFEST, differing, fingerprint, unseal_manifest
from .storage import Storage


def check_versions(storage: object, done: Mapping[int, Mapping[str, Any]], here: Mapping[str, str]) -> None:
    """Refuse to mix shards of several library versions in one store.

    Args:
        done: markers of the shards that are kept, by the shard's number.
        here: versions that the other shards would be written with.

    Raises:
        StoreError: naming the shard, the library and both versions.
    """
    for shard, marker in done.items():
        if found := differing({"versions": marker.get("libraries") or {}}, {"versions": dict(here)}):
            name = found[0].removeprefix("versions.")
            raise StoreError(
                f"shard {shard} of {storage} was written with {name} {found[1]}, now it is {found[2]}; go on with the version of "
                "before, allow the mixture (fd3d dump --allow-versions), or delete the store and dump again"
            )


def check_markers(storage: Storage, markers: Sequence[str], own: str) -> None:
    """Refuse a finished store all of whose markers are gone, which would be written anew from its first shard.

    Args:
        markers: names of the shards' markers.
        own: fingerprint of the dump that is to go on.

    Raises:
        StoreError: naming the folder of the markers.
    """
    found = storage.read_many([MANIFEST, ARRAYS, CONSTANTS, *markers])
    manifest = unseal_manifest(found.pop(MANIFEST, None))
    if manifest is not None and not found and fingerprint(manifest) == own:
        raise StoreError(
            f"store {storage} is finished, but its folder {DONE} is gone, as after a copy without hidden files; copy the folder {DONE} "
            f"too, or delete {MANIFEST} to dump all shards again"
        )


def joined_versions(markers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Library versions and code of all shards as entries of a manifest.

    Args:
        markers: of all shards, in order.

    Returns:
        ``libraries``, the version by library, or a list of versions where shards differ; then also ``mixed_libraries``,
        the versions and numbers of each group of shards; ``source_sha256``, the code's digest, or a list of digests.
    """
    sources = list(dict.fromkeys(marker.get("source_sha256") for marker in markers))
    made = {"source_sha256": sources[0] if len(sources) == 1 else sources} if sources != [None] else {}
    groups: list[tuple[dict[str, str], list[str]]] = []
    for shard, marker in enumerate(markers):
        libraries = marker.get("libraries") or {}
        shards = next((shards for known, shards in groups if known == libraries), None)
        if shards is None:
            shards = []
            groups.append((libraries, shards))
        shards.append(f"{shard:05d}")
    if len(groups) == 1:
        return made | ({"libraries": groups[0][0]} if groups[0][0] else {})
    joined: dict[str, Any] = {}
    for name in sorted({name for known, _ in groups for name in known}):
        versions = list(dict.fromkeys(known.get(name, "unknown") for known, _ in groups))
        joined[name] = versions[0] if len(versions) == 1 else versions
    return made | {
        "libraries": joined,
        "mixed_libraries": [{"libraries": known, "shards": shards} for known, shards in groups],
    }


def is_of_earlier_revision(recipe: bytes | None) -> bool:
    """Whether a recipe was written when recipes and markers had no checksums."""
    try:
        content = json.loads(recipe or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "schema_version" in content and "crc32c" not in content
