"""FD3D's losses as pure functions on tensors."""

import torch
from torch import Tensor

from pipeline.models.precision import in_float32

MATCHING_DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Metres on the ground within which nuScenes' detection metric matches a box (Caesar et al., CVPR 2020)."""
_LEAST_VARIANCE = 0.05
"""Least variance of the values that the expert's queries read, as a share of these values' mean square. Of single frames of
the embedded world the lowest share was 0.67, of two experts."""


def query_trust(scores: Tensor, threshold: float, power: float = 1.0) -> Tensor:
    """Trust in queries: zero below ``threshold`` and for scores of 0, else the score to ``power``.

    The expert is imperfect, and the score is the only sign of errors that the expert itself gives; power 0 trusts all
    kept queries alike. A score of 0 is no detection, but fills up a frame of fewer detections than queries.

    Args:
        scores: (..., K) best class score in 0..1.
    """
    return torch.where((scores >= threshold) & (scores > 0), scores.clamp(min=1e-6) ** power, torch.zeros_like(scores))


def agreement(boxes: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor) -> Tensor:
    """Agreement of queries with the annotations: the share of nuScenes' matching distances within which a query's box
    centre has an annotated box of the query's class.

    A score does not tell that a box is misplaced: where depth is wrong the expert may be as sure as elsewhere.

    Args:
        boxes: (K, 9) of the queries, LiDAR frame.
        labels: (K,) class numbers.
        true_boxes, true_labels: (n, 9) and (n,).

    Returns:
        (K,) in 0..1 by quarters.
    """
    if len(true_boxes) == 0:
        return boxes.new_zeros(len(boxes))
    distance = torch.cdist(boxes[:, :2], true_boxes[:, :2])
    nearest = distance.masked_fill(labels[:, None] != true_labels, torch.inf).amin(1)
    return (nearest[:, None] < boxes.new_tensor(MATCHING_DISTANCES)).float().mean(1)


@in_float32
def masked_generation_loss(generated: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error at weighted cells, per cell and channel.

    ``sum(w * (G - T)^2) / (C * sum(w))``: Masked Generative Distillation's error (Yang et al., ECCV 2022) counted only
    in instance areas as FD3D does, normalised by their weighted size so that large objects and many objects do not
    raise the loss.

    Args:
        generated, target: (n, C) at the cells of the areas.
        weight: (n,). No cell gives 0 with a gradient path.
    """
    error = ((generated - target) ** 2).sum(-1)
    return (error * weight).sum() / (generated.shape[-1] * weight.sum()).clamp(min=1e-6)


def block_mask(area: Tensor, ratio: float, block: int, generator: torch.Generator | None = None) -> Tensor:
    """Random blocks hidden inside an area: 0 where hidden, 1 elsewhere.

    Args:
        area: bool (..., H, W).
        ratio: share of blocks hidden.
        block: side of a block, cells.

    Returns:
        float32 (..., H, W).
    """
    height, width = area.shape[-2:]
    coarse = (*area.shape[:-2], -(-height // block), -(-width // block))
    hidden = torch.rand(coarse, generator=generator, device=area.device) < ratio
    hidden = hidden.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :height, :width]
    return 1.0 - (hidden & area).float()


@in_float32
def fine_grained_loss(sampled_s: Tensor, sampled_t: Tensor, trust: Tensor) -> Tensor:
    """Error between the values that queries read on the student's and on the expert's map, in units of the expert's scale.

    Per layer ``sum_k trust_k * mean_c (S - T)^2 / (sum_k trust_k * var_T)`` with ``var_T`` the trust-weighted variance
    of T around its mean query; then the mean over layers. The loss does not depend on the scale of the value
    projection, so that one weight serves all layers and detectors. A single query with trust, or several that read the
    same, have no variance that an error could be measured in: ``var_T`` is at least 0.05 of the mean square of T.

    Args:
        sampled_s, sampled_t: (L, B, K, C).
        trust: (B, K).
    """
    weight = trust[None, :, :, None]
    total = weight.sum((1, 2), keepdim=True).clamp(min=1e-6)
    mean = (sampled_t * weight).sum((1, 2), keepdim=True) / total
    variance = ((sampled_t - mean) ** 2 * weight).sum((1, 2)) / total[:, 0, 0]
    square = (sampled_t**2 * weight).sum((1, 2)) / total[:, 0, 0]
    error = ((sampled_s - sampled_t) ** 2 * weight).sum((1, 2)) / total[:, 0, 0]
    scale = torch.maximum(variance.mean(-1), _LEAST_VARIANCE * square.mean(-1))
    return (error.mean(-1) / scale.clamp(min=1e-6)).mean()


@in_float32
def relation_loss(student: Tensor, expert: Tensor, trust: Tensor) -> Tensor:
    """Difference of the relations inside objects: ``mean |F_S F_S^T - F_T F_T^T|`` of features of length 1.

    Relations between the places of one object do not tell where the object is (UniDistill, Zhou et al., CVPR 2023).

    Args:
        student, expert: (B, K, G, C) features at G places of each query's object.
        trust: (B, K). All zero gives 0 with a gradient path.
    """
    ours, theirs = (torch.nn.functional.normalize(side, dim=-1) for side in (student, expert))
    difference = (ours @ ours.transpose(-1, -2) - theirs @ theirs.transpose(-1, -2)).abs().mean((-2, -1))
    return (difference * trust).sum() / trust.sum().clamp(min=1e-6)
