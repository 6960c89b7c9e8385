"""Maps that a detector makes of the data, measured on a frame: do an expert and a student have them in common?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmdet3d.registry import DATASETS
from mmengine.config import Config

from pipeline.data.frames import collate, frame_dataset
from pipeline.data.geometry import resized_hw
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError, counted
from pipeline.models.build import build_detector, load_config
from pipeline.models.load import load_detector
from pipeline.models.pairs import StudentPlan

from .adapted import trainable_model
from .declared import is_foreign
from .tapped import TappedExpert, adapter_of


@dataclass(frozen=True)
class Maps:
    """Sizes of a detector's maps.

    Attributes:
        pv: pyramid levels, (cameras, channels, rows, columns) each.
        bev: (channels, rows, columns); None without a BEV map.
        pc_range: (x0, y0, z0, x1, y1, z1) metres that the map spans.
        paths: module path of the pyramid ``pv`` and the map ``bev``.
    """

    pv: tuple[tuple[int, int, int, int], ...]
    bev: tuple[int, int, int] | None
    pc_range: tuple[float, ...]
    paths: dict[str, str]


def measured(cfg: Config, source: FrameSource, checkpoint: Path | None = None) -> Maps:
    """Maps of a detector of another project, from running it on the first frame of a split.

    Raises:
        FD3DError: the detector does not fit its adapter, or the adapter's pyramid is not of all cameras.
    """
    with torch.random.fork_rng():
        model = load_detector(cfg, checkpoint)
    expert = TappedExpert(model, adapter := adapter_of(cfg, model), 1)
    data = DATASETS.build(frame_dataset(cfg, source, train=False))
    (frame,), _ = expert.run(collate([data[0]]))
    cameras = data.index.cameras
    if wrong := [len(level) for level in frame.pv if len(level) != len(cameras)]:
        raise FD3DError(
            f"the pyramid of config {cfg.filename} has {counted(wrong[0], 'camera')}, the data {len(cameras)} ({', '.join(cameras)}); tap one of all cameras, or "
            "leave out adapter.pv"
        )
    pv = tuple((len(level), level.shape[1], level.shape[2], level.shape[3]) for level in frame.pv)
    if frame.bev is not None:
        check_turned(cfg, frame.bev.shape[1], frame.bev.shape[2])
    bev = None if frame.bev is None else (frame.bev.shape[0], frame.bev.shape[1], frame.bev.shape[2])
    return Maps(pv, bev, tuple(map(float, cfg.pc_range)), adapter.taps(model))


def check_turned(cfg: Config, rows: int, columns: int) -> None:
    """Refuse a BEV map whose cells are square only if its rows are columns."""
    x0, y0, _, x1, y1, _ = map(float, cfg.pc_range)
    if rows != columns and math.isclose((x1 - x0) / rows, (y1 - y0) / columns, rel_tol=0.01):
        raise FD3DError(
            f"the BEV map of config {cfg.filename} has {counted(rows, 'row')} and {counted(columns, 'column')} for {x1 - x0:g} m along x and {y1 - y0:g} m along y; rows "
            "are y and columns x: give the adapter a map that is transposed"
        )


def maps_of(cfg: Config, source: FrameSource) -> Maps:
    """Maps of a student: of this project's detectors from their pyramid on an empty image and their config.

    Raises:
        FD3DError: as of :func:`measured`.
    """
    if is_foreign(cfg):
        return measured(cfg, source)
    with torch.random.fork_rng():
        model = build_detector(cfg).eval()
    index = DATASETS.build(frame_dataset(cfg, source, train=False)).index
    divisor = cfg.model.data_preprocessor.get("pad_divisor", 32)
    sizes = resized_hw(index.arrays["image_sizes"][0].max(0), cfg.image.scale)
    height, width = (-(-side // divisor) * divisor for side in sizes)
    with torch.no_grad():
        levels = model.img_neck(model.img_backbone(torch.zeros(1, 3, height, width)))
    head = cfg.model.pts_bbox_head
    bev = (head.get("embed_dims", 256), head.bev_h, head.bev_w) if "bev_h" in head else None
    pv = tuple((len(index.cameras), level.shape[1], level.shape[2], level.shape[3]) for level in levels)
    return Maps(pv, bev, tuple(map(float, cfg.pc_range)), {"pv": "img_neck"})


def check_common(expert: Maps, student: Maps, config: Path | str, levels: Sequence[int] | None, section: str) -> None:
    """Refuse an expert and a student whose maps cannot be compared.

    Args:
        config: the student's config, in messages.
        levels: pyramid levels to distil; None for all of the expert's.
        section: section of the profile that they come from, in messages.

    Raises:
        FD3DError: naming the map and both sizes.
    """
    if expert.pv and student.pv:
        wanted = range(len(expert.pv)) if levels is None else levels
        count = min(len(expert.pv), len(student.pv))
        if beyond := [level for level in wanted if level >= count]:
            raise FD3DError(
                f"the expert's pyramid has {counted(len(expert.pv), 'level')}, that of {config} {len(student.pv)}, so level {beyond[0]} cannot be compared; set "
                f"{section}.levels to {list(range(count))}"
            )
        for level in wanted:
            have, want = student.pv[level][2:], expert.pv[level][2:]
            if have != want:
                raise FD3DError(
                    f"pyramid level {level} of the student {config} is {have}, of the expert {want}; choose image sizes and strides that agree, or "
                    f"name the levels that do in {section}.levels"
                )
    if expert.bev and student.bev and expert.pc_range != student.pc_range:
        raise FD3DError(
            f"the expert's BEV map spans pc_range {list(expert.pc_range)}, that of {config} {list(student.pc_range)}; give both configs one range"
        )
    if not (expert.pv and student.pv) and not (expert.bev and student.bev):
        raise FD3DError(
            f"the expert's adapter taps {', '.join(expert.paths)}, and {config} has neither such a pyramid nor such a BEV map: nothing to distil; tap "
            "what both have"
        )


def check_channels(expert: Maps, student: Maps, plan: StudentPlan) -> None:
    """Refuse maps of other channels where a setting adds or mixes the two sides' features.

    Args:
        plan: with the settings ``equal_channels`` and the levels that are compared.

    Raises:
        FD3DError: naming the setting, the map and both numbers.
    """
    maps = {
        f"pyramid level {level}": (ours[1], theirs[1])
        for level, (ours, theirs) in enumerate(zip(student.pv, expert.pv, strict=False))
        if plan.levels is None or level in plan.levels
    }
    if student.bev and expert.bev:
        maps["BEV map"] = student.bev[0], expert.bev[0]
    for setting in plan.equal_channels:
        for name, (have, want) in maps.items():
            if have != want and (name != "BEV map" or setting == "residual"):
                raise FD3DError(
                    f"{plan.section}.{setting} is set, but the {name} of {plan.config} has {have} channels and the expert's {want}; "
                    "leave it out"
                )


def check_foreign(cfg: Config, checkpoint: Path, source: FrameSource, plan: StudentPlan) -> None:
    """Run a detector of another project on one frame, and compare the maps of expert and student, before stage 1 takes its hours.

    Args:
        cfg: config of the expert. A pair of this project's detectors is not run.

    Raises:
        FD3DError: a detector and its adapter, or expert and student, do not fit.
    """
    student = load_config(plan.config)
    if not (is_foreign(cfg) or is_foreign(student)):
        return
    trainable_model(student, source)
    expert = measured(cfg, source, checkpoint) if is_foreign(cfg) else maps_of(cfg, source)
    ours = maps_of(student, source)
    check_common(expert, ours, plan.config, plan.levels, plan.section)
    if plan.equal_channels:
        check_channels(expert, ours, plan)
