"""Options of a checkpoint's conversion, looked at before PyTorch is imported."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.data import CLASSES
from pipeline.errors import FD3DError
from pipeline.files import check_writable

BOXES = ("auto", "old", "new")
"""Conventions of boxes: by the file's notes, of mmdet3d before 1.0, or later."""
SHIFTS = {"auto": None, "true": True, "false": False}
"""``shift_current`` by option; None goes by the file's notes."""


def check_conversion(source: Path, out: Path, boxes: str, classes: Sequence[str] | None, shift: str) -> None:
    """Refuse options of :func:`~pipeline.models.checkpoints.convert_checkpoint`, or a place to write to.

    Raises:
        FD3DError: naming the option or the place.
    """
    if boxes not in BOXES:
        raise FD3DError(f"--boxes is '{boxes}'; use {', '.join(BOXES)}")
    if shift not in SHIFTS:
        raise FD3DError(f"--shift-current is '{shift}'; use {', '.join(SHIFTS)}")
    class_rows(classes, "--classes")
    if out.exists() and source.exists() and out.samefile(source):
        raise FD3DError(f"{out} is the checkpoint itself; give another file to write")
    check_writable(out)


def class_rows(names: Sequence[str] | None, where: str) -> list[int] | None:
    """For each of ``CLASSES`` its row in a checkpoint of these classes; None where the order is the same or not known.

    Args:
        where: the checkpoint or the option that has the names, in messages.

    Raises:
        FD3DError: the names are other classes.
    """
    if names is None or tuple(names) == CLASSES:
        return None
    if sorted(names) != sorted(CLASSES):
        raise FD3DError(f"{where} detects {', '.join(names)}; needed are nuScenes' {', '.join(CLASSES)}")
    return [list(names).index(name) for name in CLASSES]
