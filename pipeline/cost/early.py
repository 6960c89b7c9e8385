"""Numbers that a plan is asked with, checked before PyTorch is imported."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cost.cameras import Cameras
from pipeline.data.geometry import resized_hw
from pipeline.data.made_for import check_config
from pipeline.errors import FD3DError
from pipeline.profile import Family
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
        scenes: rows of the index by scene of the training split; none where only the number of frames is known.
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
    scenes: Mapping[str, Sequence[int]] = field(default_factory=dict)

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


def check_configs(config: Path | None, families: Sequence[Family], cameras: Cameras, num_queries: int) -> None:
    """Refuse configs of another number of cameras, experts of fewer queries than are kept, and families whose pyramids do not lie on each other.

    Args:
        config: the one that is planned; None plans the families.
        num_queries: kept per frame.

    Raises:
        FD3DError: naming both numbers or both grids.
    """
    if config is not None:
        check_config(config, len(cameras.names), None, num_queries)
        return
    for family in families:
        expert, student = family.expert.config, family.apprentice.config
        for one in (expert, student):
            check_config(one, len(cameras.names), None, num_queries if one is expert else None)
        grids = (pyramid_of(one, cameras.image_hw) for one in (student, expert))
        for level, (ours, theirs) in enumerate(zip(*grids, strict=False)):
            check_grid(level, ours, theirs)


def check_grid(
    level: int,
    student: tuple[int, int],
    expert: tuple[int, int],
    advice: str = "or the data set's size by --height and --width",
) -> None:
    """Refuse a pyramid level whose cells (rows, columns) are not the expert's.

    Args:
        advice: what else than other image sizes and strides may mend this.

    Raises:
        FD3DError: with both grids.
    """
    if student != expert:
        raise FD3DError(
            f"pyramid level {level} of the student is {student}, of the expert {expert}; choose image sizes and strides that agree, {advice}"
        )


def pyramid_of(config: Path, image_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of a config's pyramid levels, finest first, for images of a size.

    Levels are known of this project's preprocessing with mmdet's ResNet and FPN, and only those that the backbone gives, not those
    that the FPN adds; none of other configs, which are compared when they are built.
    """
    from mmengine.config import Config  # a second, which commands have only after cheaper checks

    try:
        cfg = Config.fromfile(config, import_custom_modules=False)
        model, backbone, neck = cfg.model, cfg.model.img_backbone, cfg.model.img_neck
        kinds = (model.data_preprocessor.type, backbone.type, neck.type)
        if kinds != ("FramePreprocessor", "mmdet.ResNet", "mmdet.FPN"):
            return []
        divisor = model.data_preprocessor.pad_divisor
        padded = [-(-pixels // divisor) * divisor for pixels in resized_hw(image_hw, cfg.image.scale)]
        strides = backbone.get("strides", (1, 2, 2, 2))
        given = backbone.out_indices[neck.get("start_level", 0) :][: neck.num_outs]
    except Exception:  # a config is code, and may be anything
        return []
    levels = []
    for stage in given:
        stride = 4 * math.prod(strides[: stage + 1])  # the stem's is 4
        levels.append((-(-padded[0] // stride), -(-padded[1] // stride)))
    return levels
