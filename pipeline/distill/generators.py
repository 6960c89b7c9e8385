"""Training-only modules: generators of expert features and the restoring of a smaller BEV map."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from .cells import Cells, conv_at, rows_of

Reader = Callable[[Cells], Tensor]
"""Features (n, C) of maps at the cells that are asked for."""


def start_at_zero(conv: nn.Conv2d) -> None:
    """Make a residual branch's last convolution give nothing at first."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class FeatureGenerator(nn.Sequential):
    """conv3x3 - ReLU - conv3x3 (Masked Generative Distillation, Yang et al., 2022), after a 1x1 conv where channels differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        align = [nn.Conv2d(in_channels, out_channels, 1)] if in_channels != out_channels else []
        super().__init__(
            *align,
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )

    def at(self, read: Reader, visible: Tensor, cells: Cells) -> Tensor:
        """Generated features at chosen cells: those of ``forward`` on the student's map with hidden cells zeroed.

        Args:
            read: reader of the student's maps.
            visible: bool (N, H, W), False where the student's map is hidden.
            cells: n cells where the result is needed.

        Returns:
            (n, C').
        """
        *align, first, activation, last = cast(list[Any], list(self))
        inner = cells.grown
        outer = inner.grown
        if align:  # whose bias hidden cells have too
            (conv,) = align
            rows = read(outer) * visible.flatten()[outer.index, None]
            given, rows = outer, nn.functional.linear(rows, conv.weight.flatten(1), conv.bias)
        else:
            given = Cells(outer.mask & visible)
            rows = read(given)
        rows = activation(conv_at(first, rows, inner, given))
        return conv_at(last, rows, cells, inner)


class RestoreBEV(nn.Module):
    """Module that brings a student's BEV map to the expert's size.

    One transposed convolution (4, stride 2, padding 1, no bias) - BN - ReLU per doubling, bilinear interpolation for what
    remains of a ratio that is no power of two, then conv3x3 (FD3D's release, there for a ratio of 2).

    Args:
        size: rows and columns of the student's map.
        target: rows and columns of the expert's map.
        residual: add the layers' result, zero at the start, to the bilinearly interpolated map.
    """

    def __init__(self, channels: int, size: tuple[int, int], target: tuple[int, int], residual: bool = False) -> None:
        super().__init__()
        self.target, self.residual = target, residual
        ratio = min(target[0] / size[0], target[1] / size[1])
        stages: list[nn.Module] = []
        while ratio >= 2:
            stages += [
                nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            ratio /= 2
        self.upsample = nn.Sequential(*stages)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        if residual:
            start_at_zero(self.conv)

    def forward(self, bev: Tensor) -> Tensor:
        """Map (B, C, H, W) of the expert's size from the student's map (B, C, h, w)."""
        out = self.upsample(bev)
        if out.shape[-2:] != self.target:
            out = self._interpolated(out)
        out = self.conv(out)
        return out + self._interpolated(bev) if self.residual else out

    def reader(self, bev: Tensor) -> Reader:
        """Reader of the restored maps (B, C, H, W), which computes the last convolution where it is read, from the student's map
        (B, C, h, w)."""
        upsampled = self.upsample(bev)
        if upsampled.shape[-2:] != self.target:
            upsampled = self._interpolated(upsampled)
        own = self._interpolated(bev) if self.residual else None

        def read(cells: Cells) -> Tensor:
            around = cells.grown
            rows = conv_at(self.conv, rows_of(upsampled, around), cells, around)
            return rows if own is None else rows + rows_of(own, cells)

        return read

    def _interpolated(self, bev: Tensor) -> Tensor:
        return nn.functional.interpolate(bev, self.target, mode="bilinear", align_corners=False)
