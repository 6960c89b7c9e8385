"""Cells of annotated objects on the expert's maps."""

from collections.abc import Sequence

import torch
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from pipeline.focal.areas import bev_footprints, project_boxes, pv_rectangles_to_cells
from pipeline.models.detector import gt_tensors
from store_schema import StoreSchema


def object_cells(
    samples: list[Det3DDataSample],
    schema: StoreSchema,
    pc_range: Sequence[float],
    level: int | None,
    device: torch.device,
) -> list[Tensor]:
    """Cells of every annotated box, one mask per object and image.

    Args:
        samples: samples with ``gt_instances_3d`` and metainfo of the current frame.
        schema: schema of the store, which gives the grids.
        pc_range: (x0, y0, z0, x1, y1, z1) metres that the BEV map spans.
        level: level of the pyramid, None for the BEV map.

    Returns:
        per sample bool (n, H, W) of footprints on the BEV map, or (n, V, Hl, Wl) of projected boxes' rectangles.
    """
    masks = []
    for boxes, sample in zip(gt_tensors(samples, device)[0], samples, strict=True):
        if level is None:
            masks.append(bev_footprints(boxes, pc_range, schema.bev[:2]))
            continue
        meta = sample.frames[-1]
        own, lidar2img = meta.get("view_hw"), torch.as_tensor(meta["lidar2img"], device=device)
        rectangles, valid = project_boxes(boxes, lidar2img, meta["pad_hw"] if own is None else own)
        size = schema.pv[level][:2]
        masks.append(pv_rectangles_to_cells(rectangles, valid, size, meta["pad_hw"], view_hw=own))
    return masks


def area_weights(masks: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights of the foreground, where every object counts alike, and of the background, which counts as one object.

    A foreground cell weighs one over the number of cells of the smallest object that covers it, a background cell one over the
    number of background cells (FGD's scale masks, Yang et al., CVPR 2022).

    Args:
        masks: bool (n, ..., H, W), a mask per object and image.
        own: bool (..., H, W), the cells that may be background, where images differ in size; None for all.

    Returns:
        foreground and background (..., H, W), each zero on the other.
    """
    area = masks.sum((-2, -1), keepdim=True).clamp(min=1)
    foreground = (masks / area).amax(0) if len(masks) else masks.new_zeros(masks.shape[1:], dtype=torch.float32)
    background = ((foreground == 0) if own is None else (foreground == 0) & own).float()
    return foreground, background / background.sum((-2, -1), keepdim=True).clamp(min=1)
