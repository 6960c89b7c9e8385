"""The trainable distillation head: a decoder of the student's form that reads the expert's BEV map (FD3D's online form).

FD3D (Zeng et al., CVPR 2023) trains such a head beside the student by the head's own detection loss. The head is the
alternative to the expert's own queries, for experts whose queries are weak or unknown.
"""

from dataclasses import dataclass
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.expert import BEVFormerAdapter
from pipeline.models.boxes import decode_boxes


@dataclass
class HeadQueries:
    """Predictions and readings of the head's best queries, without gradients except for ``loss``.

    Attributes:
        loss: scalar, the detection loss.
        boxes: (B, K, 9) LiDAR frame, best score first.
        score: (B, K) score of the best class.
        sampling, attention: (B, L, K, M, P, 2) in 0..1 of the BEV extent, and (B, L, K, M, P).
        value_weight, value_bias: (L, C, C), (L, C), each layer's value projection.
    """

    loss: Tensor
    boxes: Tensor
    score: Tensor
    sampling: Tensor
    attention: Tensor
    value_weight: Tensor
    value_bias: Tensor


class DistillationHead(nn.Module):
    """A student's detection head with parameters of its own, on the expert's BEV grid.

    Args:
        student_head: config of the student's head.
        bev: rows, columns and channels of the expert's map.
        num_queries: K best queries kept.

    Raises:
        FD3DError: the student's head is not BEVFormer's.
    """

    def __init__(self, student_head: dict[str, Any], bev: tuple[int, int, int], num_queries: int) -> None:
        super().__init__()
        if student_head["type"] != "BEVFormerHead":
            raise FD3DError(
                f"distill.head is trainable, but the student has a {student_head['type']}; only BEVFormerHead decodes a BEV map"
            )
        self.num_queries = num_queries
        self.head = MODELS.build(dict(student_head, bev_h=bev[0], bev_w=bev[1], embed_dims=bev[2]))
        self.head.transformer.encoder = nn.Identity()
        # what belongs to encoding, the head's code weights included, stays as it is
        used = ("transformer.decoder", "transformer.reference_points", "query_embedding", "heatmap_queries")
        for name, parameter in self.head.named_parameters():
            parameter.requires_grad_(name.startswith((*used, "cls_branches", "reg_branches")))
        self._read: list[tuple[Tensor, Tensor]] = []
        self.adapter = BEVFormerAdapter(layers="transformer.decoder.layers")
        self.num_layers = self.adapter.num_layers(self.head)
        for layer in range(self.num_layers):
            sampler = self.head.get_submodule(f"{self.adapter.cross_attention(layer)}.sampler")
            sampler.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        positions, weights = self.adapter.positions(args)
        self._read.append((positions.detach(), weights.detach()))

    def init_weights(self) -> None:
        """Initialise like the student's head."""
        self.head.init_weights()

    def forward(self, bev: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> HeadQueries:
        """Detect on the expert's map (B, C, H, W); per frame true boxes (n, 9), LiDAR frame, and labels (n,)."""
        self._read = []
        out = self.head(bev.flatten(2).transpose(1, 2))
        losses = self.head.output_loss(out, gt_boxes, gt_labels)
        score = out.logits[-1].detach().float().sigmoid().amax(-1)
        score, kept = score.topk(min(self.num_queries, score.shape[1]))
        chosen = torch.arange(len(bev), device=bev.device)[:, None], kept
        sampling, attention = (torch.stack([read[i][chosen] for read in self._read], 1) for i in (0, 1))
        value_weight, value_bias = self.adapter.value_projections(self.head)
        return HeadQueries(
            loss=torch.stack(list(losses.values())).sum(),
            boxes=decode_boxes(out.code[-1].detach().float()[chosen]),
            score=score,
            sampling=sampling,
            attention=attention,
            value_weight=value_weight,
            value_bias=value_bias,
        )
