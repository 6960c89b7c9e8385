"""Numbers that a plan is asked with, checked before PyTorch is imported."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.cost.cameras import Cameras
from pipeline.errors import FD3DError
from store_schema import StoreReader


@dataclass(frozen=True)
class Outlook:
    """Numbers that a profile does not have.

    Attributes:
        frames: frames of the training split.
        cameras: calibrated cameras of the data set.
        rate: frames per second of the expert on one GPU; None where not measured.
        train_rate: frames per second of a training on one GPU; None where not measured.
        gpus: numbers of GPUs that hours are given for.
        students: trainings that read the store.
        epochs: epochs of a training, beside which the expert online is counted.
        like: finished store that coverage and compression are taken from.
        coverage: ``MAP=SHARE`` texts that replace the shares.
    """

    frames: int
    cameras: Cameras
    rate: float | None = None
    train_rate: float | None = None
    gpus: tuple[int, ...] = (1,)
    students: int = 1
    epochs: int = 24
    like: Path | None = None
    coverage: list[str] | None = None

    def __post_init__(self) -> None:
        for name, rate in (("rate", self.rate), ("train-rate", self.train_rate)):
            if rate is not None and not 0 < rate < math.inf:
                raise FD3DError(f"--{name} is {rate}; give the measured frames per second")
        for text in self.coverage or ():
            share_of(text)
        if self.like is not None:
            StoreReader(self.like)  # names a store that is not finished


def share_of(text: str, maps: Collection[str] | None = None) -> tuple[str, float]:
    """Map and share of cells stored of a text ``MAP=SHARE``.

    Args:
        maps: names of the store's maps; None where these are not known yet.

    Raises:
        FD3DError: the text is not of this form.
    """
    name, _, share = text.partition("=")
    try:
        number = float(share)
    except ValueError:
        number = math.nan
    if not (name and 0 <= number <= 1) or (maps is not None and name not in maps):
        known = "" if maps is None else f" of {', '.join(maps)}"
        raise FD3DError(f"--coverage is '{text}'; give MAP=SHARE with a map{known} and a share in 0..1")
    return name, number
