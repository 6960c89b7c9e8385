"""Which versions of libraries, and which revision of this package, wrote the parts of a store."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import OtherStoreError, StoreError
from .layout import ARRAYS, CONSTANTS, DONE
from .manifest import MANIFEST, RECIPE, differing, fingerprint, unseal, unseal_manifest, unseal_recipe
from .storage import LEASE, LOCK, Storage
from .storage.own import is_foreign, is_litter, is_shard, is_temporary


def found_maker(
    storage: Storage, own: Mapping[str, Any] | None = None, has_marker: Callable[[], bool] | None = None
) -> tuple[dict[str, Any] | None, bool]:
    """What made the store that is there, None for an empty folder, and whether its recipe is as it was written.

    Args:
        own: manifest of the dump that asks; None where it is not known yet, and markers alone are taken for anyone's.
        has_marker: whether there is a shard's marker of that dump.

    Raises:
        OtherStoreError: an earlier revision of this package made the store.
        StoreError: the folder has other files, or nothing whole tells what made the store.
    """
    found = storage.read_many([RECIPE, MANIFEST, ARRAYS, CONSTANTS])
    if (recipe := unseal_recipe(found.get(RECIPE))) is not None:
        return recipe, True
    if is_of_earlier_revision(found.get(RECIPE)):
        raise OtherStoreError(
            f"store {storage} was written by an earlier revision, whose files have no checksums of their own; it "
            "cannot be continued: delete it and dump again, or choose another folder",
            "revision",
            "an earlier one",
            "this one",
        )
    if (manifest := unseal_manifest(found.get(MANIFEST))) is not None:
        return manifest, False
    if own is not None:
        marked = [marker.get("fingerprint") for name in (ARRAYS, CONSTANTS) if (marker := unseal(found.get(name)))]
        if fingerprint(own) in marked or (has_marker is not None and has_marker()):
            return dict(own), False
    elif storage.list(DONE):
        return None, False
    if RECIPE in found and not is_foreign(found[RECIPE]):
        raise StoreError(
            f"{RECIPE} of store {storage} is damaged, and no whole file says what made the store; delete the store "
            "or choose another folder"
        )

    def is_anothers(name: str) -> bool:
        return name.split("/")[0] not in (DONE, LOCK, LEASE) and not is_temporary(name) and not is_litter(name)

    if (foreign := storage.first(is_anothers)) is not None:
        raise StoreError(f"{storage} is not empty and no store (it has {foreign}); choose another folder")
    return None, False


def check_recipe(storage: Storage, own: str) -> None:
    """Refuse to go on when another dump has made the store its own; a damaged recipe tells nothing.

    Args:
        own: fingerprint of the dump that goes on.

    Raises:
        StoreError: the recipe is gone, or another dump's.
    """
    data = storage.read_many([RECIPE]).get(RECIPE)
    recipe = unseal_recipe(data)
    if data is None or (recipe is not None and fingerprint(recipe) != own):
        raise StoreError(
            f"store {storage} was deleted or replaced by another dump while this one was writing it; stop one of them, or "
            "choose another folder"
        )


def other_version(marker: Mapping[str, Any], here: Mapping[str, str]) -> tuple[str, Any, Any] | None:
    """First library of which a shard's marker tells another version, with both versions; None where none is.

    Of a library that the marker's list leaves out, as one does that an earlier revision wrote, nothing is known: it does not
    count as another version, and the manifest lists it as unknown. A marker without any list tells of no library.

    Args:
        here: versions that the shard would be written with.
    """
    known = marker.get("libraries") or {}
    asked = {name: version for name, version in here.items() if name in known or not known}
    found = differing({"versions": known}, {"versions": asked})
    return found and (found[0].removeprefix("versions."), *found[1:])


def check_versions(storage: object, done: Mapping[int, Mapping[str, Any]], here: Mapping[str, str]) -> None:
    """Refuse to mix shards of several library versions in one store.

    Args:
        done: markers of the shards that are kept, by the shard's number.
        here: versions that the other shards would be written with.

    Raises:
        StoreError: naming the shard, the library and both versions.
    """
    for shard, marker in done.items():
        if found := other_version(marker, here):
            name, old, new = found
            raise StoreError(
                f"shard {shard} of {storage} was written with {name} {old}, now it is {new}; go on with the version of "
                "before, allow the mixture (fd3d dump --allow-versions), or delete the store and dump again"
            )


def check_markers(storage: Storage) -> None:
    """Refuse shards all of whose markers are gone: they would be written anew from the first one, without a word.

    A dump writes markers of metadata and constants before its first shard, so that a kill leaves no such store.

    Raises:
        OtherStoreError: naming the folder of the markers.
    """
    if not all(map(is_litter, storage.list(DONE))):
        return
    finished = unseal_manifest(storage.read_many([MANIFEST]).get(MANIFEST)) is not None
    if finished or storage.first(is_shard) is not None:
        raise OtherStoreError(
            f"store {storage} {'is finished' if finished else 'has shards'}, but its folder {DONE} is gone, as after a copy without hidden "
            f"files; copy the folder {DONE} too, or dump all shards again with fd3d dump --replace",
            f"folder {DONE}",
            "there",
            "gone",
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
