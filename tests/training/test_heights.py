"""Configs whose heights are of another frame of reference than the data's."""

import warnings
from pathlib import Path

import pytest

from pipeline.data.index import FrameIndex
from pipeline.models.build import load_config
from pipeline.training.heights import warn_of_heights

CONFIGS = ("world/expert.py", "world/detr3d_expert.py", "bevformer/base.py", "bevformer/tiny.py", "detr3d/r101.py")


@pytest.mark.parametrize("config", CONFIGS)
def test_heights_of_the_datas_own_frame_are_no_news(project: Path, world_index: Path, config: str) -> None:
    index = FrameIndex.load(world_index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_heights(load_config(project / "configs" / config), index, range(len(index)))


def test_heights_of_another_frame_are_warned_of(project: Path, world_index: Path) -> None:
    """Boxes that are two metres higher, as from the ground in place of the LiDAR, and a range that is above all of them."""
    index, cfg = FrameIndex.load(world_index), load_config(project / "configs/world/expert.py")
    raised = index.arrays["boxes"].copy()
    raised[:, 2] += 2
    index.arrays = dict(index.arrays) | {"boxes": raised}
    with pytest.warns(
        UserWarning,
        match=r"2 of 4 pillar_heights of .*configs/world/expert.py are below the ground, which is at 0.[0-9] m of the frame of LIDAR_TOP",
    ):
        warn_of_heights(cfg, index, range(len(index)))
    cfg.pc_range = [*cfg.pc_range[:2], 20.0, *cfg.pc_range[3:5], 28.0]
    with pytest.warns(
        UserWarning,
        match="100% of the boxes are outside the heights 20 to 28 m of pc_range of .*configs/world/expert.py; set",
    ):
        warn_of_heights(cfg, index, range(len(index)))
