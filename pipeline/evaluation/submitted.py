"""Submissions of anyone, read sample by sample and compared with what the devkit and the benchmark's rules take."""

import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox

from pipeline.data.annotations import FARTHEST, possible
from pipeline.data.index import FrameIndex
from pipeline.data.json_stream import JSONStream
from pipeline.data.origin import origin_of
from pipeline.errors import FD3DError, counted

RULES = "detection_cvpr_2019"
"""The benchmark's settings, by the devkit's name."""
REFUSALS = (AssertionError, KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What the devkit raises for a record that cannot be."""
_LISTS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2, "ego_translation": 3}
"""Fields of a record that are lists, and of how many numbers."""
_TOO_LARGE = 1 << 63
"""Numpy makes whole numbers from here on objects, of which the devkit cannot tell whether they are NaN."""


def submitted(
    submission: Path, split: str, wanted: Collection[str], index: FrameIndex | None = None
) -> Iterator[tuple[str, EvalBoxes]]:
    """Token and boxes of each sample, in the file's order; only when all have been taken it is known that the file fits.

    Args:
        split: name in messages.
        wanted: tokens of the samples that the submission has to cover.
        index: index whose splits a submission of other frames is looked for in; None looks nowhere.

    Raises:
        FD3DError: the file is missing or no submission, has a box that cannot be, or not the samples of the split.
    """
    known, given, others = set(wanted), set[str](), list[str]()
    most = config_factory(RULES).max_boxes_per_sample
    for token, records in _results(submission):
        if token not in known:
            others.append(token)
            continue
        if token in given:
            raise FD3DError(f"{submission} has sample {token} twice; keep one")
        given.add(token)
        yield token, _boxes(submission, token, records, most)
    if others or len(given) < len(known):
        first = min([*others, *(known - given)])
        whose = () if index is None else origin_of(index, {*others, *given})
        raise FD3DError(
            f"{submission} has {len(given)} of the {counted(len(known), 'sample')} of {split} and {counted(len(others), 'other')}, "
            f"first {ascii(first)[1:-1]:.80}: {'; '.join(whose or ['give one of this split'])}"
        )


def told(error: Exception) -> str:
    """A refusal of the devkit in a line; some have no words of their own."""
    if words := " ".join(str(error).split()):
        return f"{type(error).__name__}: {words:.160}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.line}"


def _boxes(submission: Path, token: str, records: Any, most: int) -> EvalBoxes:
    """Boxes of one sample, at most ``most``, as the devkit reads them."""
    if not isinstance(records, list):
        raise FD3DError(f"{submission} has {records!r:.40} for sample {token}; it must be a list of boxes")
    if strange := [r for r in records if not isinstance(r, dict) or r.get("sample_token", token) != token]:
        raise FD3DError(f"{submission} has {strange[0]!r:.80} for sample {token}, which is no box of this sample")
    if len(records) > most:
        raise FD3DError(f"{submission} has {len(records)} boxes for sample {token}; {most} are allowed")
    if unsure := [r for r in records if not _is_score(r.get("detection_score"))]:
        raise FD3DError(
            f"{submission} has detection_score {unsure[0].get('detection_score')!r:.40} for sample {token}; give numbers of 0 or more"
        )
    if (odd := next(filter(None, map(_no_number, records)), None)) is not None:
        raise FD3DError(f"{submission} has {odd[0]} {odd[1]!r:.60} for sample {token}; give {odd[2]}")
    try:
        boxes = EvalBoxes.deserialize({token: [_shared_texts(record) for record in records]}, DetectionBox)
    except REFUSALS as error:
        raise FD3DError(f"{submission} has a box of sample {token} that the devkit refuses: {told(error)}") from error
    if (bad := _impossible(boxes.boxes[token])) is not None:
        raise FD3DError(
            f"{submission} has a box of sample {token} that cannot be: translation {bad.translation}, size {bad.size}, rotation "
            f"{bad.rotation}, velocity {bad.velocity}; give finite numbers up to {FARTHEST:g}, sizes above 0 and a rotation"
        )
    return boxes


def _no_number(record: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    """The first field of a record that must be numbers and is not: its name, its value and what it must be. Missing fields and wrong
    numbers of numbers are the devkit's to refuse."""
    lists = [record[name] for name in _LISTS if name in record]
    if "num_pts" not in record and all(type(one) is list for one in lists) and set(map(type, chain(*lists))) == {float}:
        return None  # as nearly all records are
    for name, count in _LISTS.items():
        value = record.get(name, [])
        if not isinstance(value, list) or not all(map(_is_number, value)):
            return name, value, f"{count} numbers"
    points = record.get("num_pts", -1)
    if not (_is_number(points) and abs(points) < _TOO_LARGE):
        return "num_pts", points, "a whole number, or leave it out"
    return None


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _TOO_LARGE)


def _impossible(boxes: list[DetectionBox]) -> DetectionBox | None:
    """The first box that cannot be; a velocity that is not known may be NaN."""
    numbers = [[*box.translation, *box.size, *box.rotation, *box.velocity] for box in boxes]
    values = np.array(numbers, dtype=np.float64).reshape(len(boxes), 12)
    bad = ~possible(values[:, :10]) | (np.abs(values[:, 10:]) > FARTHEST).any(1)
    return boxes[int(bad.argmax())] if bad.any() else None


def _results(submission: Path) -> Iterator[tuple[str, Any]]:
    """Token and records of every sample of a submission.

    Raises:
        FD3DError: the file is missing or no submission.
    """
    try:
        with open(submission, encoding="utf-8-sig") as file:
            stream = JSONStream(file)
            found = False
            for key in stream.members():
                if key != "results":
                    stream.value()
                    continue
                if found:
                    raise ValueError("'results' is there twice")
                found = True
                for token in stream.members():
                    yield token, stream.value()
            stream.end()
    except (OSError, ValueError) as error:
        if isinstance(error, FD3DError):
            raise
        raise FD3DError(f"submission {submission} cannot be read: {error}") from error


def _is_score(value: Any) -> bool:
    # compared exactly, where a float of it would overflow
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _shared_texts(record: dict[str, Any]) -> dict[str, Any]:
    """The record with one copy of each text for all records."""
    return {name: sys.intern(value) if isinstance(value, str) else value for name, value in record.items()}
