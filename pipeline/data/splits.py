"""Splits of a nuScenes-format data set: the devkit's, and those of the data set's own ``splits.json``."""

import json
from collections.abc import Collection
from pathlib import Path

from pipeline.data.json_stream import rows_of
from pipeline.errors import FD3DError, counted, listed

FILE = "splits.json"
"""Name of the file beside the tables with a data set's own splits: scene names by split."""


def split_scenes(root: str | Path, version: str) -> dict[str, list[str]]:
    """Scene names by split; an own split takes the place of the devkit's of that name.

    Raises:
        FD3DError: ``splits.json`` is no mapping of split names to lists of scene names.
    """
    from nuscenes.utils.splits import create_splits_scenes  # seconds, and every index is read without it

    return dict(create_splits_scenes()) | own_splits(Path(root) / version)


def scene_names(folder: Path) -> list[str]:
    """Names of all scenes of a folder of tables, sorted.

    Raises:
        FD3DError: ``scene.json`` cannot be read.
    """
    path = folder / "scene.json"
    try:
        return sorted(str(row["name"]) for row in rows_of(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FD3DError(f"{path} cannot be read: {error!r}; copy the tables again") from error


def scenes_by_split(root: str | Path, version: str) -> dict[str, list[str]]:
    """:func:`split_scenes` with the scenes that the tables have, and ``all``; a split without any is left out.

    Raises:
        FD3DError: as of :func:`scene_names` and :func:`split_scenes`.
    """
    here = scene_names(Path(root) / version)
    known = {split: [name for name in names if name in here] for split, names in split_scenes(root, version).items()}
    return {split: names for split, names in known.items() if names} | {"all": here}


def own_splits(folder: Path, scenes: Collection[str] | None = None) -> dict[str, list[str]]:
    """Splits of ``splits.json``, none where the file is absent.

    Args:
        folder: of the tables.
        scenes: names of the data set's scenes, which the splits must keep to; None checks no names.

    Raises:
        FD3DError: the file cannot be read, is no mapping of split names to lists of scene names, or a split has no scene, one
            twice, or one that the data set lacks.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise FD3DError(
            f"{path} cannot be read as JSON ({error}); repair it, or remove it to use the devkit's splits"
        ) from error
    if not isinstance(content, dict) or not content:
        raise FD3DError(f'{path} must be a mapping such as {{"train": ["scene-1"]}}; it is {content!r:.60}')
    for split, names in content.items():
        where = f"split '{split}' of {path}"
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FD3DError(f"{where} is {names!r:.60}; it must be a list of scene names")
        if not names:
            raise FD3DError(f"{where} has no scene; add one, or remove the split")
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise FD3DError(f"{where} has scene {twice[0]} twice; remove one")
        if scenes is not None and (unknown := [name for name in names if name not in scenes]):
            raise FD3DError(
                f"{where} has {counted(len(unknown), 'scene')} that scene.json lacks, first '{unknown[0]}'; "
                f"there are {listed(sorted(scenes))}"
            )
    return content
