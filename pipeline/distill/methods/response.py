"""Response distillation: the student's queries learn the expert's boxes and scores.

Our form of what DETRDistill (Chang et al., ICCV 2023) and KD-DETR (Wang et al., CVPR 2024) do with the expert's predictions.
"""

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.errors import FD3DError
from pipeline.models.boxes import encode_boxes
from pipeline.models.matching import match
from pipeline.models.query_head import HeadOutput

from ..base import Distiller, StudentOutputs
from ..settings import ResponseSettings
from ..stored import CachedFrame


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float) -> Tensor:
    """Quality focal loss (Li et al., NeurIPS 2020): ``sum |t - p|^beta * BCE(p, t)``, soft targets t, p = sigmoid(logits)."""
    away = (target - logits.sigmoid()).abs() ** beta
    return (away * binary_cross_entropy_with_logits(logits, target, reduction="none")).sum()


@MODELS.register_module()
class ResponseDistiller(Distiller):
    """Distiller that adds loss_response_cls and loss_response_box, summed over the student's decoder layers.

    Every layer's queries are matched to the expert's boxes as to annotations. A matched query's target is the expert's score for
    its class and 0 elsewhere, and an unmatched query's target is 0. Boxes are weighted by score. Both losses are divided
    by the sum of the scores.
    """

    settings_type = ResponseSettings
    reads_maps = False
    reads_head = True

    def distillation_losses(
        self, outputs: StudentOutputs, frames: list[CachedFrame], data_samples: list[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """loss_response_cls and loss_response_box, weighted.

        Raises:
            FD3DError: the student's head gives no logits and box code.
        """
        if not isinstance(outputs.head, HeadOutput):
            raise FD3DError(f"{self.settings.section} needs a student with a QueryHead, which is BEVFormer or DETR3D")
        s, logits, code = self.settings, outputs.head.logits.float(), outputs.head.code.float()
        target, boxes_apart, total = torch.zeros_like(logits), code.new_zeros(()), code.new_zeros(())
        code_weights = self.student.pts_bbox_head.code_weights
        for b, frame in enumerate(frames):
            boxes, score, label = (
                torch.as_tensor(frame[f"query/{name}"]).to(code.device) for name in ("boxes", "score", "label")
            )
            kept = score >= s.min_score
            boxes, score, label = boxes[kept], score[kept], label[kept].long()
            expert_code, total = encode_boxes(boxes), total + score.sum()
            for layer, (query, own) in enumerate(match(logits[:, b], code[:, b], boxes, label, (s.w_cls, s.w_box))):
                target[layer, b, query, label[own]] = score[own]
                apart = ((code[layer, b, query] - expert_code[own]).abs() * code_weights).sum(-1)
                boxes_apart = boxes_apart + (apart * score[own]).sum()
        total = total.clamp(min=1)
        return {
            "loss_response_cls": s.w_cls * quality_focal_loss(logits, target, s.beta) / total,
            "loss_response_box": s.w_box * boxes_apart / total,
        }
