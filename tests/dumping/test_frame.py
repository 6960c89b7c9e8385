"""A store tells the frame of reference that its boxes and points are in."""

from pathlib import Path
from typing import Any

from pipeline.data.index import build_index
from pipeline.data.rig import Rig
from pipeline.data.source import FrameSource
from pipeline.dumping.dump import dump
from pipeline.dumping.recipe import frame_in_words
from pipeline.dumping.settings import DumpSettings
from pipeline.focal.rule import FocalRule
from store_schema import StoreReader, StoreSchema, verify

REST = "x y z of the centre of gravity, dx dy dz, yaw, vx vy; metres, radians, metres/second"
SIZES: dict[str, Any] = dict(bev=None, pv=[(2, 3, 4, 8)], cameras=("front",), queries=2, bev_kmax=0, pv_kmax=[6])
CAMERAS: dict[str, Any] = SIZES | dict(reading="cameras", layers=1, query_channels=4)


def test_a_store_of_the_lidars_frame_is_as_it_was(store: Path) -> None:
    reader = StoreReader(store)
    assert reader.manifest["coordinates"]["boxes"] == f"LiDAR frame, {REST}"
    assert "frame" not in reader.manifest["schema"]
    arrays = StoreSchema(**CAMERAS).arrays()
    assert arrays["query/boxes"].about == "x y z dx dy dz yaw vx vy, LiDAR frame, z of the centre"
    assert arrays["query/points"].about == "points that are projected into the cameras, LiDAR frame"


def test_other_frames_have_words_of_their_own() -> None:
    assert [frame_in_words(name) for name in ("LIDAR_TOP", "ego", "top")] == [
        "LiDAR frame",
        "ego frame",
        "frame of top",
    ]


def test_a_store_of_another_frame_says_so(world: Path, project: Path, tmp_path: Path) -> None:
    index = build_index(world, "v1.0-world", tmp_path / "index.npz", rig=Rig(reference="ego"))
    settings, scene = DumpSettings(FocalRule(min_score=0.0), frames_per_shard=3), index.splits["world_train"][0]
    source = FrameSource(tmp_path / "index.npz", world, "world_train")
    dump(project / "configs/world/detr3d_expert.py", None, source, tmp_path / "store", settings, 0, [scene])
    reader = StoreReader(tmp_path / "store")
    assert reader.manifest["coordinates"]["boxes"] == f"ego frame, {REST}"
    assert reader.schema.frame == "ego frame" == StoreSchema.from_dict(reader.manifest["schema"]).frame
    assert "ego frame" in reader.group["query/boxes"].attrs["about"]
    assert "ego frame" in reader.group["query/points"].attrs["about"]
    assert verify(tmp_path / "store").problems == []
