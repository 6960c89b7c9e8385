"""Hungarian matching of predictions to ground truth, and the set losses that follow from it."""

import torch
from mmdet.models.losses import FocalLoss, L1Loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import encode_boxes
from .positives import mean_positives


def matching_cost(
    logits: Tensor, code: Tensor, gt_code: Tensor, gt_labels: Tensor, weights: tuple[float, float]
) -> Tensor:
    """Cost of assigning each prediction to each true box: focal classification cost plus L1 over the code.

    Velocity is left out of the L1 term (DETR3D and BEVFormer match on the first eight code values).

    Args:
        logits: (..., N, classes).
        code: (..., N, 10).
        gt_code: (n, 10).
        gt_labels: (n,).
        weights: weights of the classification and the box term.

    Returns:
        (..., N, n).
    """
    alpha, gamma, eps = 0.25, 2.0, 1e-12
    prob = logits.sigmoid()
    negative = -(1 - prob + eps).log() * (1 - alpha) * prob.pow(gamma)
    positive = -(prob + eps).log() * alpha * (1 - prob).pow(gamma)
    cls_cost = (positive - negative)[..., gt_labels]
    box_cost = torch.cdist(code[..., :8], gt_code[..., :8], p=1)
    return torch.nan_to_num(weights[0] * cls_cost + weights[1] * box_cost, nan=100.0, posinf=100.0, neginf=-100.0)


@torch.no_grad()
def match(
    logits: Tensor, code: Tensor, gt_boxes: Tensor, gt_labels: Tensor, weights: tuple[float, float]
) -> list[tuple[Tensor, Tensor]]:
    """Match one frame's predictions of all decoder layers at once, with one transfer to the host.

    Args:
        logits: (L, N, classes).
        code: (L, N, 10).
        gt_boxes: (n, 9).
        gt_labels: (n,).

    Returns:
        Per layer the matched query numbers and the true boxes' numbers, each (min(N, n),).
    """
    empty = gt_labels.new_zeros(0)
    if len(gt_labels) == 0:
        return [(empty, empty)] * len(logits)
    cost = matching_cost(logits.float(), code.float(), encode_boxes(gt_boxes), gt_labels, weights).cpu().numpy()
    pairs = (linear_sum_assignment(layer) for layer in cost)
    return [(torch.as_tensor(q, device=code.device), torch.as_tensor(g, device=code.device)) for q, g in pairs]


class SetLoss(torch.nn.Module):
    """Focal and L1 losses of every decoder layer after matching.

    Args:
        num_classes: C.
        cls_weight: weight of the focal loss and of its matching cost.
        box_weight: weight of the L1 loss and of its matching cost.
    """

    def __init__(self, num_classes: int = 10, cls_weight: float = 2.0, box_weight: float = 0.25) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weights = (cls_weight, box_weight)
        self.loss_cls = FocalLoss(use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=cls_weight)
        self.loss_bbox = L1Loss(loss_weight=box_weight)

    def forward(
        self, logits: Tensor, code: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor], code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Losses by name: the last layer's without prefix, layer i's as ``d{i}.``.

        Args:
            logits: (L, B, N, classes).
            code: (L, B, N, 10).
            gt_boxes: per frame (n, 9).
            gt_labels: per frame (n,).
            code_weights: (10,).
        """
        num_layers, batch = logits.shape[:2]
        logits, code = logits.float(), code.float()
        matches = [match(logits[:, b], code[:, b], gt_boxes[b], gt_labels[b], self.weights) for b in range(batch)]
        losses: dict[str, Tensor] = {}
        for layer in range(num_layers):
            labels = torch.full(logits.shape[1:3], self.num_classes, dtype=torch.long, device=logits.device)
            predicted, target = [], []
            for b in range(batch):
                query, gt = matches[b][layer]
                labels[b, query] = gt_labels[b][gt]
                predicted.append(code[layer, b, query])
                target.append(encode_boxes(gt_boxes[b][gt]))
            pred_code, gt_code = torch.cat(predicted), torch.cat(target)
            num_pos = mean_positives(pred_code.new_tensor([float(len(pred_code))]))
            weight = code_weights.expand_as(pred_code) * torch.isfinite(gt_code).all(-1, keepdim=True)
            prefix = "" if layer == num_layers - 1 else f"d{layer}."
            losses[prefix + "loss_cls"] = self.loss_cls(
                logits[layer].flatten(0, 1), labels.flatten(), avg_factor=num_pos
            )
            losses[prefix + "loss_bbox"] = self.loss_bbox(
                pred_code, torch.nan_to_num(gt_code), weight, avg_factor=num_pos
            )
        return losses
