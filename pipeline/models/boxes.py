"""The regression code of DETR-style 3D heads and its inverse.

Code, 10 values: (cx, cy, log dx, log dy, cz, log dz, sin yaw, cos yaw, vx, vy), metres in the LiDAR frame, cz the centre
of gravity (DETR3D, Wang et al., 2021). Boxes, 9 values: (x, y, z, dx, dy, dz, yaw, vx, vy), z likewise the centre.
"""

import torch
from torch import Tensor

CODE_SIZE = 10


def encode_boxes(boxes: Tensor) -> Tensor:
    """Code (..., 10) of boxes (..., 9)."""
    x, y, z, dx, dy, dz, yaw, vx, vy = boxes.unbind(-1)
    return torch.stack([x, y, dx.log(), dy.log(), z, dz.log(), yaw.sin(), yaw.cos(), vx, vy], -1)


def decode_boxes(code: Tensor) -> Tensor:
    """Boxes (..., 9) of code (..., 10)."""
    x, y, log_dx, log_dy, z, log_dz, sin, cos, vx, vy = code.unbind(-1)
    return torch.stack([x, y, z, log_dx.exp(), log_dy.exp(), log_dz.exp(), torch.atan2(sin, cos), vx, vy], -1)


def to_metres(points: Tensor, pc_range: Tensor) -> Tensor:
    """Points (..., 3) from 0..1 of ``pc_range`` (x0, y0, z0, x1, y1, z1) to metres."""
    return points * (pc_range[3:] - pc_range[:3]) + pc_range[:3]


def to_unit(points: Tensor, pc_range: Tensor) -> Tensor:
    """Points (..., 3) from metres to 0..1 of ``pc_range``."""
    return (points - pc_range[:3]) / (pc_range[3:] - pc_range[:3])


def decode_top(
    logits: Tensor, code: Tensor, max_num: int, post_center_range: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ``max_num`` best (query, class) pairs of one frame, without NMS.

    Args:
        logits: (N, classes).
        code: (N, 10) in metres.
        post_center_range: (6,) limits for box centres, metres; None keeps all. Centres that are not finite are kept.

    Returns:
        boxes (n, 9), scores (n,) falling, labels (n,), query numbers (n,).
    """
    num_classes = logits.shape[-1]
    scores, flat = logits.float().sigmoid().flatten().topk(min(max_num, logits.numel()))
    query = torch.div(flat, num_classes, rounding_mode="floor")
    boxes, labels = decode_boxes(code.float()[query]), flat % num_classes
    if post_center_range is not None:
        centres = boxes[:, :3]
        inside = ((centres >= post_center_range[:3]) & (centres <= post_center_range[3:])).all(-1)
        inside |= ~centres.isfinite().all(-1)  # for the caller to see, in place of no box at all
        return boxes[inside], scores[inside], labels[inside], query[inside]
    return boxes, scores, labels, query
