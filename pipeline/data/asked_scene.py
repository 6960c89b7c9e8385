"""Scene that a command is asked for, looked up before anything is loaded that takes seconds."""

from collections.abc import Collection
from pathlib import Path

from pipeline.data.folder import only_version, table_folder
from pipeline.data.index import FrameIndex
from pipeline.data.splits import scene_names
from pipeline.errors import FD3DError, listed


def check_scene(scene: str, root: Path, version: str | None, index: Path | None) -> None:
    """Refuse a scene that the index, or where none is given the tables, lack.

    Args:
        root: data root.
        version: folder of the root's tables; None for the only one.
        index: frame index of the root.

    Raises:
        FD3DError: naming scenes that there are; the index is of another version, or index or table cannot be read.
    """
    known: Collection[str]
    if index is not None:
        made = FrameIndex.load(index, root)
        if version not in (None, made.version):
            raise FD3DError(f"index {index} was made from {made.version}, not {version}; leave out one of the two")
        known = made.scenes
    else:
        known = scene_names(table_folder(root, version or only_version(root)))
    if scene not in known:
        raise FD3DError(f"scene '{scene}' is not in {index or root}; there are {listed(known)}")
