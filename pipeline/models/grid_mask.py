"""GridMask augmentation (Chen et al., 2020), as BEVFormer and DETR3D train with: one random grid for all cameras."""

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Blank out a random regular grid of squares in training; has no parameters and moves no pixels.

    Args:
        prob: chance that a batch is masked.
        ratio: side of a kept square over the period of the grid.
    """

    def __init__(self, prob: float = 0.7, ratio: float = 0.5) -> None:
        super().__init__()
        self.prob, self.ratio = prob, ratio

    def forward(self, img: Tensor) -> Tensor:
        """Images (N, 3, H, W), masked in training."""
        if not self.training or torch.rand(()) > self.prob:
            return img
        height, width = img.shape[-2:]
        period = int(torch.randint(2, max(height, 3), ()))
        side = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        row0, col0 = (int(v) for v in torch.randint(0, period, (2,)))
        rows = (torch.arange(height, device=img.device) + row0) % period < side
        cols = (torch.arange(width, device=img.device) + col0) % period < side
        # mode 1 of the reference: what lies inside both stripes is dropped
        return img * (~(rows[:, None] & cols[None, :])).to(img.dtype)
