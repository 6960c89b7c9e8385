"""Augmentation settings of a detector's config, and the random choice of frames: thinned queues and class-balanced resampling."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import FD3DError
from pipeline.settings import from_mapping

MAX_DRAWS = 1000
"""Draws of another sample after which a data set counts as one without boxes."""


@dataclass(frozen=True)
class Augment:
    """Entry `augment` of a detector's config; no augmentation moves a pixel, so cached targets stay valid."""

    photometric: bool = False
    """Whether brightness, contrast and saturation are distorted, all images of an item alike and within 0..255."""
    photometric_per_image: bool = False
    """Whether each image is distorted for itself, as BEVFormer and DETR3D train: brightness, contrast, saturation, hue and order of
    channels, in float without clipping. In place of `photometric`."""
    thin_queue: bool = False
    """Whether one of the last `queue_length` frames is left out at random, as BEVFormer trains; the frames may reach back into the
    scene before, which ends the history. Otherwise a queue is the frames directly before, of one scene."""
    replace_empty: bool = False
    """Whether an item with a frame without boxes, the current one or one of its history, is replaced by a random other one."""
    class_balanced: bool = False
    """Whether frames are repeated so that each class gives equally many (CBGS, Zhu et al., 2019); on nuScenes an epoch is 4.4 times as
    long."""

    def __post_init__(self) -> None:
        if self.photometric and self.photometric_per_image:
            raise FD3DError("augment.photometric and augment.photometric_per_image are both set; leave one off")


def read_augment(cfg: Mapping[str, Any]) -> Augment:
    """A config's entry ``augment``.

    Raises:
        FD3DError: an unknown name, a value of a wrong type, or settings that exclude each other.
    """
    made: Augment = from_mapping(Augment, dict(cfg.get("augment") or {}), "augment")
    return made


def thinned_queue(number: int, length: int) -> list[int]:
    """Frame numbers of a training item: the last ``length`` before ``number`` but one drawn from numpy's global generator, then ``number``.

    Numbers before the data set's first frame become 0.
    """
    earlier = np.delete(np.arange(number - length, number), np.random.randint(length))
    return [*np.maximum(earlier, 0).tolist(), number]


def class_balanced(labels: Sequence[Collection[int]]) -> np.ndarray:
    """Frame numbers of an epoch in which every class that occurs is drawn equally often, with replacement.

    An epoch has as many frames as there are pairs of a frame and a class in it (rounded down to a multiple of the classes). The draw is
    the same in every process and in every training, since processes share one epoch among them.

    Args:
        labels: classes of the boxes of every frame.
    """
    holding: dict[int, list[int]] = {}
    for number, classes in enumerate(labels):
        for label in set(classes):
            holding.setdefault(label, []).append(number)
    if not holding:
        raise FD3DError("augment.class_balanced is set, but no frame of the split has a box; check the split")
    share = sum(map(len, holding.values())) // len(holding)
    rng = np.random.default_rng(0)
    return np.concatenate([rng.choice(holding[label], share) for label in sorted(holding)])
