"""Frames of a dump, looked at before PyTorch is imported."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.data.index import FrameIndex
from pipeline.data.made_for import check_config
from pipeline.data.source import FrameSource
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError, listed
from pipeline.files import check_outside_stores, check_writable
from store_schema import OtherStoreError, StoreError, open_storage
from store_schema.layout import check_scenes, plan_shards
from store_schema.provenance import found_maker
from store_schema.storage import RECIPE, LocalStorage, RemoteStorage, Storage

STORE_OBJECTS = (("manifest.json", "recipe.json"), ("zarr.json", ".done/arrays", ".lock"))
"""Names by which a prefix is known as a store, also an unfinished one: one of each has to be there."""


def frames_to_dump(
    source: FrameSource,
    scenes: Sequence[str] | None,
    settings: DumpSettings,
    config: Path | None = None,
    metrics: Path | None = None,
    checkpoint: Path | None = None,
) -> tuple[FrameIndex, list[int], dict[str, list[str]]]:
    """The index of a dump, its rows in the order of :func:`scene_rows`, and its tokens by scene name.

    Args:
        config: of the expert, read here for the numbers of its cameras and queries; None leaves that to a later check.
        metrics: file for the coverage, if any.
        checkpoint: of the expert, compared with the config; None for random weights, and one that is not here is not compared.

    Raises:
        FD3DError: the config is made for another number of cameras, not the checkpoint's, or of fewer queries, the index is damaged or does not fit the root, a split or scene is not there, or the file cannot be written.
        StoreError: two scenes have a token in common, or a token does not fit.
    """
    index = FrameIndex.load(source.index, source.root)
    rows = scene_rows(index, source.split, scenes)
    tokens = {name: [token.decode() for token in index.arrays["token"][own].tolist()] for name, own in rows.items()}
    check_scenes(tokens, settings.frames_per_shard)
    check_shards(tokens, settings.frames_per_shard)
    if metrics is not None:
        check_writable(metrics)
    if config is not None:
        check_config(config, len(index.cameras), checkpoint, settings.rule.num_queries)
    return index, [row for own in rows.values() for row in own], tokens


def check_shards(scenes: Mapping[str, Sequence[Any]], frames_per_shard: int) -> None:
    """Refuse scenes that are longer than a shard, which includes whole scenes.

    Args:
        scenes: frames by scene.

    Raises:
        FD3DError: naming the setting and the scene.
    """
    try:
        plan_shards(scenes, frames_per_shard)
    except StoreError as error:
        raise FD3DError(f"dump.frames_per_shard is {frames_per_shard}, too few: {error}") from error


def place_of(out: str | Path) -> Storage:
    """The place of a store, a folder or URL, which is left as it was found.

    Raises:
        FD3DError: the place lies in another store.
        StoreError: another process writes the store, the place cannot be written, or it has other files and no store.
    """
    storage = open_storage(out)
    if isinstance(storage, LocalStorage):
        check_outside_stores(Path(os.path.realpath(storage.path)).parent)
    elif isinstance(storage, RemoteStorage):
        storage.exists(RECIPE)  # whether anything answers
        _check_outside(storage)
    with storage.lock(), suppress(OtherStoreError):  # which may be replaced
        storage.check_writable()
        found_maker(storage)
    return storage


def _check_outside(storage: RemoteStorage) -> None:
    """Refuse a URL below that of a store, as :func:`~pipeline.files.check_outside_stores` does a folder."""
    url = storage.url
    while (url := url.rpartition("/")[0]) and not url.endswith("/"):
        place = RemoteStorage(url, storage.options)
        with suppress(StoreError):  # keys may be for a part of a bucket only
            if all(any(map(place.exists, names)) for names in STORE_OBJECTS):
                raise FD3DError(f"{storage} cannot be written: {place} is a store; give a place outside of it")


def scene_rows(index: FrameIndex, split: str, scenes: Sequence[str] | None) -> dict[str, list[int]]:
    """Index rows by scene name, in time order; scenes are sorted by name, as in the store.

    Raises:
        FD3DError: a scene is not in the split.
    """
    chosen = set(index.select(split))
    available = {name: [r for r in rows if r in chosen] for name, rows in index.scenes.items()}
    available = {name: available[name] for name in sorted(available) if available[name]}
    if scenes is None:
        return available
    unknown = [name for name in scenes if name not in available]
    if unknown:
        others = [name for name, there in index.splits.items() if unknown[0] in there]
        where = f", but in '{others[0]}'; give --split {others[0]}" if others else f"; it has {listed(available)}"
        raise FD3DError(f"scene {unknown[0]} is not in split {split}{where}")
    return {name: rows for name, rows in available.items() if name in scenes}
