"""Comparison of what an adapter declares with the detector behind it, before the detector runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import nn

from pipeline.errors import FD3DError, counted
from pipeline.models.detector import MultiCameraDetector

from .foreign import DetectorAdapter


def is_foreign(cfg: Config) -> bool:
    """Whether a config's detector is none of this project's, which take the data's batches as they are."""
    kind = MODELS.get(cfg.model.type)
    return not (isinstance(kind, type) and issubclass(kind, MultiCameraDetector))


def check_declared(adapter: Any, model: nn.Module, cfg: Config) -> None:
    """Refuse an adapter that contradicts its detector; adapters that are no :class:`DetectorAdapter` are not looked into.

    Raises:
        FD3DError: the number of classes, the frame of boxes or the range of the BEV map is another than the detector's.
    """
    if not isinstance(adapter, DetectorAdapter):
        return
    counts, declared = _class_counts(model), len(adapter.numbers)
    if counts and declared not in counts:
        raise FD3DError(
            f"the detector has {counted(counts[0], 'class')}, the adapter of config {cfg.filename} declares {declared}; list all in the detector's order: "
            "classes=[...], each by a name of this project or None"
        )
    frame = getattr(model, "coord_type", None)
    if isinstance(frame, str) and frame.upper() != adapter.frame:
        raise FD3DError(
            f"the detector's coord_type is {frame}, but {type(adapter).__name__} takes boxes in frame {adapter.frame}; use a detector or an adapter "
            "of the other frame"
        )
    if "bev" in adapter.paths:
        _check_range(model, cfg)


def _class_counts(model: nn.Module) -> list[int]:
    """Numbers of classes of a detector's heads; of heads with several tasks the sum."""
    counts = []
    for name, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        if isinstance(number, Sequence) and not isinstance(number, str) and all(isinstance(n, int) for n in number):
            number = sum(number)
        if isinstance(number, int) and "head" in name:
            counts.append(number)
    return counts


def _check_range(model: nn.Module, cfg: Config) -> None:
    for name in ("prior_generator", "anchor_generator"):  # grids of voxels, whose columns are the map's cells
        ranges = getattr(getattr(model, name, None), "ranges", None)
        if not ranges:
            continue
        theirs, ours = [[float(box[i]) for i in (0, 1, 3, 4)] for box in (ranges[0], cfg.pc_range)]
        if theirs != ours:
            raise FD3DError(
                f"pc_range of config {cfg.filename} spans x and y {ours}, but the detector's voxels span {theirs}; write the detector's range"
            )


@contextmanager
def foreign_errors(adapter: Any, model: nn.Module) -> Iterator[None]:
    """Turn what a detector of another project raises on what its adapter gives into one line; the cause stays attached.

    Raises:
        FD3DError: in place of any other error but a want of memory.
    """
    try:
        yield
    except (FD3DError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:160]
        raise FD3DError(
            f"{type(model).__name__} fails on what {type(adapter).__name__} gives and takes: {type(error).__name__}: {told}; check the config's adapter "
            "(type, views, pv, bev) and what the detector needs"
        ) from error
