"""Conventions of a checkpoint's boxes, classes and history, as its notes tell them."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.data import CATEGORIES, CLASSES
from pipeline.errors import FD3DError

CONVERTER = "fd3d convert"
"""Entry ``converted_by`` in the notes of a converted checkpoint."""

# Packages whose version tells the box convention, the best witness first: old below the first version, new from the
# second. mmdet3d changed the boxes in 1.0.0rc0 and mmengine came later; the others' bounds are what mmdet3d 0.18 and 1.0 required
# of them (compatibility table in mmdet3d's FAQ).
_WITNESSES = (
    ("mmdet3d_version", (1,), (1,)),
    ("mmengine_version", (0,), (0,)),
    ("mmdet_version", (2, 19), (3,)),
    ("mmcv_version", (1, 3, 17), (1, 5, 1)),
)
# Day on which BEVFormer's encoder stopped to shift the current frame's reference points (its commit 2f37d0d).
_SHIFT_FIXED = datetime(2023, 7, 27)
# Forms of the time in a checkpoint's notes: mmcv's and mmengine's.
_TIMES = ("%a %b %d %H:%M:%S %Y", "%Y%m%d_%H%M%S")


def box_convention(meta: Mapping[str, Any]) -> tuple[str | None, str]:
    """``old`` (mmdet3d before 1.0), ``new``, or None where a checkpoint's notes do not tell; and the note that tells."""
    if meta.get("converted_by") == CONVERTER:
        return "new", CONVERTER
    if meta.get("detr3d_convert_tag"):  # mmdetection3d's DETR3D converter leaves the old version in place
        return "new", "detr3d_convert_tag"
    for name, old_below, new_from in _WITNESSES:
        version = tuple(int(number) for number in re.findall(r"\d+", str(meta.get(name, "")))[:3])
        if version and (version < old_below or version >= new_from):
            return "old" if version < old_below else "new", f"{name} {meta[name]}"
    return None, "nothing in its meta"


def told_classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in a checkpoint's order, None where its notes do not tell."""
    if meta.get("converted_by") == CONVERTER:
        return CLASSES
    names = meta.get("CLASSES")
    if isinstance(data := meta.get("dataset_meta"), dict):  # mmengine's place for them
        names = data.get("classes") or data.get("CLASSES")
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None


def declared_classes(adapter: Mapping[str, Any] | None) -> tuple[str | None, ...]:
    """Names of a detector's classes in its order by the adapter of its config, None for those that are none of ``CLASSES``; the order of
    ``CLASSES`` where the adapter declares none."""
    return tuple((adapter or {}).get("classes") or CLASSES)


def check_trained_classes(training: Mapping[str, Any], path: object, adapter: Mapping[str, Any] | None) -> None:
    """Compare the classes in the notes of a training of this project with those that a config's adapter declares, which may leave classes out
    by None; notes of earlier revisions tell none.

    Args:
        training: notes of the training.
        path: the checkpoint in messages.
        adapter: settings of the adapter in the detector's config; None for the order of ``CLASSES``.

    Raises:
        FD3DError: the two differ.
    """
    declared = declared_classes(adapter)
    if (trained := training.get("classes")) and other_classes(trained, declared):
        told, given = (", ".join(map(str, names)) for names in (trained, declared))
        raise FD3DError(
            f"checkpoint {path} was trained with the classes {told}, the config declares {given}; declare those of the training in the config's "
            "adapter: classes=[...], in that order"
        )


def other_classes(own: Sequence[str | None], declared: Sequence[str | None]) -> bool:
    """Whether a declaration contradicts a detector's own classes; a class may be left out, by None."""
    return len(own) != len(declared) or any(b not in (a, None) for a, b in zip(own, declared, strict=True))


def class_named(name: str) -> str | None:
    """The class of ``CLASSES`` that another project's name means by its letters alone, None where it means none of them.

    Capital letters, spaces, ``_`` and ``-`` make no difference, and groups may stand around the name (``vehicle.car``,
    ``human.pedestrian.adult``).
    """
    parts = [name, *reversed(name.split("."))]
    return next((_BY_LETTERS[letters] for letters in map(_letters, parts) if letters in _BY_LETTERS), None)


def _letters(name: str) -> str:
    return name.casefold().translate(dict.fromkeys(map(ord, "_- ")))


_BY_LETTERS = {_letters(name): own for own, category in CATEGORIES.items() for name in (own, category)}


def shift_convention(meta: Mapping[str, Any], distilled: bool) -> tuple[bool | None, str]:
    """Whether the code that trained a BEVFormer shifted the current frame's reference points; and the note that tells.

    BEVFormer did before 27 July 2023, and FD3D's release does. A later checkpoint may come from a copy of either code, so
    None: its notes do not tell.

    Args:
        meta: the checkpoint's notes.
        distilled: whether the file includes the distiller of FD3D's release around the detector.
    """
    if distilled or re.search(r"type\s*=\s*['\"]\w*DetectionDistiller", str(meta.get("config", ""))):
        return True, "the distiller of FD3D's release"
    for form in _TIMES:
        try:
            made = datetime.strptime(str(meta.get("time", "")), form)
        except ValueError:
            continue
        if made < _SHIFT_FIXED:
            return True, f"time {meta['time']}, before {_SHIFT_FIXED:%d %B %Y}"
        return None, f"time {meta['time']}, after {_SHIFT_FIXED:%d %B %Y}"
    return None, "no time in its meta"
