"""Source of frames: index, data root and split."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FrameSource:
    """Frames of a split of an indexed data set."""

    index: Path
    """The frame index (``fd3d index``)."""
    root: Path
    """Root of the nuScenes-format data set that the index describes."""
    split: str
    """Devkit split, one of the data set's ``splits.json``, or ``all``."""
