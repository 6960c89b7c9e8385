"""Source of frames: index, data root and split, and the splits that settings may name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pipeline.data import CLASSES
from pipeline.errors import FD3DError, counted


@dataclass(frozen=True)
class FrameSource:
    """Frames of a split of an indexed data set."""

    index: Path
    """The frame index (``fd3d index``)."""
    root: Path
    """Root of the nuScenes-format data set that the index describes."""
    split: str
    """Devkit split, one of the data set's ``splits.json``, or ``all``."""

    def at(self, index: Path | None, root: Path | None) -> "FrameSource":
        """The split of another index or below another root, where these are given."""
        return FrameSource(index or self.index, root or self.root, self.split)


def check_classes(classes: Mapping[str, str | None]) -> None:
    """Refuse classes of categories that no detector has.

    Args:
        classes: class by category, None for a category that is no class.

    Raises:
        FD3DError: naming the category.
    """
    for category, name in classes.items():
        if name is not None and name not in CLASSES:
            raise FD3DError(f"data.classes.{category} is '{name}'; use null or one of {', '.join(CLASSES)}")


def check_generated(root: Path, version: str, generate: Collection[str], params: Path) -> None:
    """Refuse an embedded data set that is not generated yet.

    Args:
        generate: names below ``data/`` of the data sets that a profile generates.
        params: the profile.

    Raises:
        FD3DError: naming the command that generates the data set.
    """
    if root in [Path("data") / name for name in generate] and not (root / version).is_dir():
        profile = "" if params == Path("params.yaml") else f" --params {params}"
        raise FD3DError(
            f"{root} has no folder {version}; generate the data set with 'fd3d world --root {root}{profile}'"
        )


def check_boxes(counts: Mapping[str, tuple[str, int]]) -> None:
    """Refuse splits without a box that counts, which nothing can be trained or judged on.

    Args:
        counts: split and number of its boxes that count, by the setting that names it.

    Raises:
        FD3DError: naming setting and split.
    """
    for setting, (split, count) in counts.items():
        if not count:
            raise FD3DError(
                f"{setting} '{split}' has no box that counts; name a split with annotations, or give --out with another file than data.index, "
                "which may be of frames that are only detected on"
            )


def check_different(chosen: Mapping[str, str], version: str) -> None:
    """Refuse two settings that name one split.

    Args:
        chosen: split by the setting that names it.
        version: the data set's version in messages.

    Raises:
        FD3DError: naming both settings.
    """
    for (setting, split), (other, beside) in combinations(chosen.items(), 2):
        if split == beside:
            raise FD3DError(
                f"{setting} and {other} are both '{split}'; name another split of {version} for one, or detectors are judged by "
                "the frames that they were trained or chosen on"
            )


def check_splits(chosen: Mapping[str, str], splits: Mapping[str, Collection[str]], where: str) -> None:
    """Refuse splits that a data set lacks, or that share a scene.

    Args:
        chosen: split by the setting that names it.
        splits: scene names of the data set's splits; ``all`` is every scene.
        where: the data set in messages.

    Raises:
        FD3DError: naming setting and split.
    """
    known = dict(splits) | {"all": splits.get("all", {name for names in splits.values() for name in names})}
    for setting, split in chosen.items():
        if split not in known:
            raise FD3DError(f"{setting} is '{split}', of which {where} has no scene; there are {', '.join(known)}")
    for (setting, split), (other, beside) in combinations(chosen.items(), 2):
        if shared := sorted(set(known[split]) & set(known[beside])):
            raise FD3DError(
                f"{setting} '{split}' and {other} '{beside}' share {counted(len(shared), 'scene')}, first {shared[0]}; choose splits "
                "without common scenes, or detectors are judged by the frames that they were trained or chosen on"
            )
