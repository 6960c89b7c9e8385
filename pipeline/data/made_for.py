"""Detectors against data and checkpoints by their configs alone, which are read without PyTorch: numbers of cameras, and shapes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.data import CAMERAS
from pipeline.data.tensor_shapes import Shape, tensor_shapes
from pipeline.errors import FD3DError, counted

_BLOCKS: dict[Any, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks of the stages of a ResNet, by its depth."""


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


def tells_cameras_apart(cfg: Mapping[str, Any]) -> bool:
    """Whether a config's detector has weights for each camera by its place in the order: BEVFormer's embeddings; DETR3D has none."""
    head = cfg.get("model", {}).get("pts_bbox_head") or {}
    return bool(head.get("type") == "BEVFormerHead")


def check_queries(cfg: Mapping[str, Any], wanted: int, name: object) -> None:
    """Refuse to keep more queries a frame than a detector of this project has; of other detectors boxes count, and missing ones are padded.

    Args:
        wanted: the profile's ``focal.num_queries``.
        name: the config in messages.

    Raises:
        FD3DError: naming both numbers.
    """
    head = cfg.get("model", {}).get("pts_bbox_head") or {}
    if head.get("type") in ("BEVFormerHead", "DETR3DHead") and wanted > (there := head.get("num_query", 900)):
        raise FD3DError(
            f"focal.num_queries is {wanted}, but the expert of config {name} has {counted(there, 'query')}; set it to {there} at most, and "
            "distill.rule.num_queries too"
        )


def check_config(
    config: Path, views: int | None, checkpoint: Path | None = None, num_queries: int | None = None
) -> None:
    """:func:`check_views`, :func:`check_shapes` and :func:`check_queries` of a config's file; one that cannot be read here is for its
    readers to name.

    Args:
        views: number of cameras of the data; None where it is not known.
        checkpoint: None where there is none.
        num_queries: kept per frame; None where none are.

    Raises:
        FD3DError: as of these.
    """
    from mmengine.config import Config  # a second, which commands have only after cheaper checks

    try:
        cfg = Config.fromfile(config, import_custom_modules=False)
        if views is not None:
            check_views(cfg, views, config)
        if checkpoint is not None:
            check_shapes(cfg, checkpoint, config)
        if num_queries is not None:
            check_queries(cfg, num_queries, config)
    except FD3DError:
        raise
    except Exception:  # a config is code, and may be anything
        return


def check_shapes(cfg: Mapping[str, Any], checkpoint: Path, name: object) -> None:
    """Refuse a checkpoint of another of this project's detectors, by what a config says of its tensors.

    A few tensors tell the family, grid, queries and depths; all are compared when the detector is built.

    Args:
        name: the config in messages.

    Raises:
        FD3DError: naming the first tensor that differs.
    """
    model = cfg.get("model", {})
    if (model.get("pts_bbox_head") or {}).get("type") not in ("BEVFormerHead", "DETR3DHead"):
        return
    there = tensor_shapes(checkpoint)
    for tensor, wanted in _told_shapes(model) if there else ():
        given = there.get(tensor)
        if given is not None and wanted is None:
            raise FD3DError(_other(checkpoint, name, f"{tensor} {given}, which the config's detector has not"))
        if wanted is not None and (given is None or given[: len(wanted)] != wanted):
            has = f"{tensor} {given} instead of {wanted}" if given else f"no {tensor}"
            raise FD3DError(_other(checkpoint, name, has))


def _other(checkpoint: Path, name: object, what: str) -> str:
    return f"checkpoint {checkpoint} does not fit the config {name}: it has {what}; give the config that it was trained with"


def _told_shapes(model: Mapping[str, Any]) -> Iterator[tuple[str, Shape | None]]:
    """Tensors with the first numbers of their shapes that a config tells, None where the detector has no such tensor."""
    head, neck = model["pts_bbox_head"], model.get("img_neck") or {}
    bev = head["type"] == "BEVFormerHead"
    yield "pts_bbox_head.bev_embedding.weight", (head["bev_h"] * head["bev_w"],) if bev else None
    if head.get("query_source", "learned") == "learned":
        yield "pts_bbox_head.query_embedding.weight", (head["num_query"],) if "num_query" in head else ()
    else:
        yield "pts_bbox_head.query_embedding.weight", None
    if layers := head["transformer"].get("decoder", {}).get("num_layers"):
        yield f"pts_bbox_head.cls_branches.{layers - 1}.0.weight", (head["embed_dims"],) if "embed_dims" in head else ()
        yield f"pts_bbox_head.cls_branches.{layers}.0.weight", None
    if neck.get("type") == "mmdet.FPN":
        wide = neck["in_channels"][neck.get("start_level", 0)]
        yield "img_neck.lateral_convs.0.conv.weight", (neck["out_channels"], wide)
    yield from _of_resnet(model.get("img_backbone") or {})


def _of_resnet(backbone: Mapping[str, Any]) -> Iterator[tuple[str, Shape | None]]:
    blocks = _BLOCKS.get(backbone.get("depth"))
    if backbone.get("type") == "mmdet.ResNet" and blocks:
        for stage, count in enumerate(blocks[: backbone.get("num_stages", 4)], 1):
            yield f"img_backbone.layer{stage}.{count - 1}.conv1.weight", ()
            yield f"img_backbone.layer{stage}.{count}.conv1.weight", None
