"""Number of cameras that a detector is made for against the data's; a config is read without PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data import CAMERAS
from pipeline.errors import FD3DError, counted


def check_cameras(made_for: int, views: int, detector: object = "the detector") -> None:
    """Refuse images of another number of cameras than a transformer has weights for.

    Args:
        made_for: the config's ``num_cams``.
        views: number of cameras of the data.
        detector: the detector in messages.

    Raises:
        FD3DError: naming the setting.
    """
    if made_for != views:
        raise FD3DError(
            f"{detector} has weights for {counted(made_for, 'camera')}, the data {views}; set num_cams={views} in the config's transformer and "
            f"train it, or name the detector's {counted(made_for, 'camera')} under data.cameras"
        )


def check_views(cfg: Mapping[str, Any], views: int, name: object) -> None:
    """Refuse a config of BEVFormer or DETR3D that is made for another number of cameras than the data have.

    Args:
        name: the config in messages.

    Raises:
        FD3DError: naming the config and both numbers.
    """
    head = cfg.get("model", {}).get("pts_bbox_head") or {}
    if head.get("type") in ("BEVFormerHead", "DETR3DHead"):
        check_cameras(head["transformer"].get("num_cams", len(CAMERAS)), views, f"config {name}")


def check_config(config: Path, views: int) -> None:
    """:func:`check_views` of a config's file; one that cannot be read here is for its readers to name.

    Raises:
        FD3DError: as of :func:`check_views`.
    """
    from mmengine.config import Config  # a second, which commands have only after cheaper checks

    try:
        cfg = Config.fromfile(config, import_custom_modules=False)
        check_views(cfg, views, config)
    except FD3DError:
        raise
    except Exception:  # a config is code, and may be anything
        return
