"""Recipe of a store: shape, manifest and frames."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
from mmengine.config import Config

from pipeline.data import CAMERAS
from pipeline.data.index import FrameIndex
from pipeline.data.rig import EGO
from pipeline.data.source import FrameSource
from pipeline.dumping.learning import SAMPLE
from pipeline.dumping.settings import DumpSettings
from pipeline.dumping.shared import source_sha256
from pipeline.errors import FD3DError, counted
from pipeline.expert import BEVReading, CameraReading, ExpertFrame
from pipeline.expert.load import identity
from pipeline.expert.rows import ALGORITHM, padded_size
from pipeline.focal.areas import cell_size
from store_schema import StoreSchema
from store_schema.codes import CODED, Code
from store_schema.schema import LIDAR_FRAME


def frame_in_words(reference: str) -> str:
    """The frame of reference of an index, a sensor or ``ego``, as a store tells it."""
    return {"LIDAR_TOP": LIDAR_FRAME, EGO: "ego frame"}.get(reference, f"frame of {reference}")


def schema_of(
    frame: ExpertFrame, settings: DumpSettings, cameras: tuple[str, ...] = CAMERAS, reference: str = "LIDAR_TOP"
) -> StoreSchema:
    """The store's shape, from the expert's first frame.

    Args:
        cameras, reference: names of the cameras in order, and the frame of reference, as of an index.

    Raises:
        FD3DError: the expert's outputs have another number of cameras, or fewer layers than the settings ask for.
        StoreError: ``code_bytes`` does not fit the channels of a map.
    """
    views = [len(f) for f in frame.pv if len(f) != len(cameras)]
    if views:
        raise FD3DError(
            f"the expert's pyramid has {counted(views[0], 'camera')}, the data {len(cameras)} ({', '.join(cameras)}); tap one of all cameras"
        )
    levels = [(*f.shape[-2:], f.shape[1], cell_size(f.shape[-2:], padded_size(frame))) for f in frame.pv]
    reading: dict[str, Any] = {"reading": "none"}
    known = 0
    if isinstance(frame.reading, BEVReading):
        known, _, heads, points = frame.reading.attention.shape
        reading = {"reading": "bev", "heads": heads, "points": points}
    elif isinstance(frame.reading, CameraReading):
        reading, known = {"reading": "cameras"}, len(frame.reading.points)
    layers = known if settings.layers is None else settings.layers
    if layers > known:
        raise FD3DError(
            f"dump.layers is {layers}, but the expert's reading is known of {counted(known, 'layer')}; use null for all"
        )
    bev = None if frame.bev is None else (*frame.bev.shape[-2:], frame.bev.shape[0])
    maps = {f"pv/{i}": level[2] for i, level in enumerate(levels)} | ({"bev": bev[2]} if bev else {})
    return StoreSchema(
        bev=bev,
        pv=levels,
        cameras=cameras,
        queries=len(frame.boxes),
        query_channels=0 if frame.features is None else frame.features.shape[-1],
        layout=settings.layout,
        values=settings.values,
        layers=layers,
        bev_kmax=0 if bev is None else bev[0] * bev[1],
        pv_kmax=[len(cameras) * h * w for h, w, _, _ in levels],
        frame=frame_in_words(reference),
        **_code(settings, maps),
        **reading,
    )


def _code(settings: DumpSettings, maps: Mapping[str, int]) -> dict[str, Any]:
    """Size of a cell's code, for maps of so many channels.

    Raises:
        StoreError: the size does not fit a map.
    """
    if settings.values not in CODED:
        return {}
    quarter = max(min(maps.values(), default=0) // 4, 1)
    size = settings.code_bytes or (min(quarter, 32) if settings.values == "pq" else quarter)
    bits = settings.code_bits or (4 if settings.values == "pca" else 8)
    for name, channels in maps.items():  # as the schema will, which names its own fields
        Code(settings.values, size, bits).check(name, channels, "dump")
    return {"code_bytes": size, "code_bits": bits}


def make_manifest(
    cfg: Config, config: Path, checkpoint: Path | None, index: FrameIndex, source: FrameSource, settings: DumpSettings
) -> dict[str, Any]:
    """Manifest of what made the store; any difference here makes another store."""
    processor = cfg.model.get("data_preprocessor") or {}
    return {
        "expert": {
            "config": config.name,
            **identity(cfg, checkpoint),
            "weights": "checkpoint" if checkpoint else f"random, seed {settings.seed}",
            "autocast": settings.autocast,
            "adapter": dict(cfg.adapter),
            **({"corruption": dict(cfg.corruption)} if "corruption" in cfg else {}),
        },
        "data": {"index_sha256": index.sha256, "split": source.split},
        "image": {
            "scale": cfg.image.scale,
            "channels": "RGB" if cfg.image.to_rgb else "BGR",
            "mean": list(processor.get("mean", ())),
            "std": list(processor.get("std", ())),
            "pad_divisor": processor.get("pad_divisor", processor.get("pad_size_divisor", 1)),
        },
        "history": "streamed through each scene in time order, reset at its first frame",
        "coordinates": {
            "boxes": f"{frame_in_words(index.reference)}, x y z of the centre of gravity, dx dy dz, yaw, vx vy; metres, radians, "
            "metres/second",
            "bev": "row = y, column = x, cell centres",
            "pv": "flat cell = (camera * rows + row) * columns + column",
            "pc_range": list(cfg.pc_range),
        },
        "focal": settings.rule.to_dict(),
        **({"code": {"frames": settings.code_frames, "cells": SAMPLE}} if settings.values in CODED else {}),
        "algorithm": ALGORITHM,
        "libraries": library_versions(),
        "source_sha256": source_sha256(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers in a store, OpenCV's included, which decodes and scales the images."""
    names = ("torch", "mmcv", "mmdet", "mmdet3d", "mmengine", "numba", "zarr", "numcodecs", "numpy")
    # several packages bring OpenCV, even beside each other: the module says which one is there
    own = {"opencv": cv2.__version__, "python": platform.python_version()}
    return {name: version(name) for name in names} | own
