"""What the detection heads of BEVFormer and DETR3D share: box branches, set losses and decoding."""

from dataclasses import dataclass

import torch
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from .boxes import CODE_SIZE, decode_top, to_metres
from .matching import SetLoss


@dataclass
class HeadOutput:
    """What a head predicts for a batch.

    Attributes:
        logits: (L, B, N, classes).
        code: (L, B, N, 10) with centres in metres.
        states: (L, B, N, C) query states.
        references: (L, B, N, 3) in 0..1, entering each layer.
    """

    logits: Tensor
    code: Tensor
    states: Tensor
    references: Tensor


class QueryHead(BaseModule):
    """Object queries of which every decoder layer predicts a class and a box.

    Args:
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_layers: decoder layers.
        code_weights: of the L1 terms; velocity counts 0.2 by default.
        post_center_range: limits for decoded centres, metres.
        max_num: boxes per frame.
    """

    pc_range: Tensor

    def __init__(
        self,
        pc_range: list[float],
        num_layers: int,
        num_classes: int = 10,
        embed_dims: int = 256,
        code_weights: tuple[float, ...] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2),
        cls_weight: float = 2.0,
        box_weight: float = 0.25,
        post_center_range: list[float] | None = None,
        max_num: int = 300,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.max_num = max_num
        self.code_weights = nn.Parameter(torch.tensor(code_weights, dtype=torch.float32), requires_grad=False)
        self.cls_branches = nn.ModuleList(self._cls_branch(embed_dims, num_classes) for _ in range(num_layers))
        self.reg_branches = nn.ModuleList(self._reg_branch(embed_dims) for _ in range(num_layers))
        self.set_loss = SetLoss(num_classes, cls_weight, box_weight)
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)
        limits = None if post_center_range is None else torch.tensor(post_center_range)
        self.register_buffer("post_center_range", limits, persistent=False)

    @staticmethod
    def _cls_branch(dims: int, num_classes: int) -> nn.Sequential:
        hidden = [m for _ in range(2) for m in (nn.Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(dims, num_classes))

    @staticmethod
    def _reg_branch(dims: int) -> nn.Sequential:
        hidden = [m for _ in range(2) for m in (nn.Linear(dims, dims), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(dims, CODE_SIZE))

    def init_weights(self) -> None:
        """Start classification at a prior of 0.01 (RetinaNet)."""
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))

    def classify(self, states: Tensor) -> Tensor:
        """Query states (L, B, N, C) to logits (L, B, N, classes)."""
        return torch.stack([branch(s) for branch, s in zip(self.cls_branches, states, strict=True)])

    def in_metres(self, code: Tensor) -> Tensor:
        """Code (..., 10) with its centre turned from 0..1 of the range to metres."""
        centre = to_metres(code[..., [0, 1, 4]], self.pc_range)
        return torch.cat([centre[..., :2], code[..., 2:4], centre[..., 2:], code[..., 5:]], -1)

    def output_loss(self, out: HeadOutput, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses by name; per frame gt_boxes (n, 9) with centres of gravity and gt_labels (n,)."""
        return self.set_loss(out.logits, out.code, gt_boxes, gt_labels, self.code_weights)

    def decode(self, out: HeadOutput) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per frame: boxes (n, 9), scores (n,), labels (n,), query numbers (n,)."""
        return [
            decode_top(logits, code, self.max_num, self.post_center_range)
            for logits, code in zip(out.logits[-1], out.code[-1], strict=True)
        ]
