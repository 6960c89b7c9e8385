"""Frames and places of an evaluation or a detection, looked at before PyTorch is imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.data.asked_scene import check_scene
from pipeline.data.folder import only_version, table_folder
from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.json_stream import rows_of
from pipeline.data.made_for import check_config
from pipeline.data.rig import rig_of_tables
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError, counted, listed
from pipeline.files import check_writable


def frames_to_evaluate(
    source: FrameSource,
    version: str | None,
    out: Path,
    metrics: Path,
    config: Path | None = None,
    checkpoint: Path | None = None,
) -> FrameIndex:
    """The index of frames that can be evaluated.

    Args:
        version: folder of the data set's tables; None for the index's.
        out: folder for ``submission.json`` and ``pr.csv``.
        metrics: JSON file for the metrics.
        config, checkpoint: of the detector that will run; None where none does.

    Raises:
        FD3DError: the config is made for another number of cameras or not the checkpoint's, the index is damaged or does not fit the root or the tables, it lacks the split, the split has boxes of which none
            counts, or a place cannot be written.
    """
    index = FrameIndex.load(source.index, source.root)
    if index.version != (version or index.version):
        raise FD3DError(
            f"index {source.index} was made from {index.version}, but the tables to evaluate on are {version}; make it again with 'fd3d index'"
        )
    boxes, count = index.boxes_of(index.select(source.split))
    if boxes and not count:
        raise FD3DError(
            f"none of the {counted(boxes, 'box')} of split '{source.split}' has a LiDAR or radar point, so none counts; name another split"
        )
    for path in (out / "submission.json", out / "pr.csv", metrics):
        check_writable(path)
    if config is not None:
        check_config(config, len(index.cameras), checkpoint)
    return index


def check_detection(
    config: Path,
    root: Path,
    scene: str,
    out: Path,
    version: str | None,
    index: Path | None,
    frames: int,
    checkpoint: Path | None = None,
) -> None:
    """Refuse a scene, number of frames or place, or a config of another number of cameras or another checkpoint; arguments as of :func:`~pipeline.evaluation.scene.detect_scene`.

    Without an index scene and cameras are looked up in the tables.

    Raises:
        FD3DError: naming which.
    """
    if frames < 1:
        raise FD3DError(f"frames is {frames}; it must be at least 1")
    check_writable(out / "submission.json")
    if index is None:
        with naming_an_index(root):
            folder = table_folder(root, version or only_version(root))
    check_scene(scene, root, version, index)
    if index is None:
        with naming_an_index(root):
            if (rig := rig_of_tables(folder)) is not None:
                check_config(config, len(rig[0]), checkpoint)
    else:
        known = open_scene(index, root, scene)
        check_images(known, root, known.scenes[scene][:frames], index)
        check_config(config, len(known.cameras), checkpoint)


@contextmanager
def naming_an_index(root: Path) -> Iterator[None]:
    """Errors that are of tables without an index also say how cameras and classes are named: by an index or a profile."""
    try:
        yield
    except FD3DError as error:
        raise FD3DError(f"{error}; or name an index of {root} by --index, or its profile by --params") from error


def open_scene(index: Path, root: Path, scene: str) -> FrameIndex:
    """An index that has a scene.

    Raises:
        FD3DError: the index is damaged, does not fit the root, or lacks the scene.
    """
    known = FrameIndex.load(index, root)
    if scene not in known.scenes:
        raise FD3DError(f"scene '{scene}' of {root} has no frame that counts; there are {listed(known.scenes)}")
    return known


def frames_in_words(index: Path, root: Path, scene: str, frames: int) -> str:
    """How many frames of a scene are detected on, and what the others are: beyond the asked number, or not in the index.

    Args:
        index: frame index that has the scene.
        frames: largest number of frames from the scene's start.

    Raises:
        FD3DError: as of :func:`open_scene`.
    """
    known = open_scene(index, root, scene)
    there = len(known.scenes[scene])
    told = f"all {there} frames of {scene}" if 1 < there <= frames else f"{counted(there, 'frame')} of {scene}"
    if frames < there:
        told = f"the first {frames} of {counted(there, 'frame')} of {scene} (--frames {there} takes all)"
    samples = _samples(root / known.version, scene)
    if samples is None or samples == there:
        return told
    left = counted(samples - there, "more sample")
    return f"{told}; the tables have {left} of the scene, left out of index {index}, as samples that lack a camera or the LiDAR"


def _samples(folder: Path, scene: str) -> int | None:
    """Number of a scene's samples in a folder of tables; None where these cannot be read."""
    try:
        (token,) = (row["token"] for row in rows_of(folder / "scene.json") if row["name"] == scene)
        return sum(row["scene_token"] == token for row in rows_of(folder / "sample.json"))
    except (OSError, ValueError, LookupError, TypeError):
        return None
