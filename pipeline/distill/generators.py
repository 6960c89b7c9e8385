"""Training-only modules: generators of expert features and the restoring of a smaller BEV map."""

from typing import Any, cast

from torch import Tensor, nn

from .cells import conv_at, grow

# Limits where a convolution at chosen cells beats one of the whole map, forward and backward on a CPU (measured by
# python -m benchmarks.generators)
_MIN_CHANNELS, _MAX_SHARE = 128, 0.25


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
        self.channels = out_channels
        self.gathers = out_channels >= _MIN_CHANNELS

    def forward(self, features: Tensor, cells: Tensor | None = None) -> Tensor:
        """Generate a map.

        Args:
            features: (N, C, H, W).
            cells: bool (N, H, W), where the result is needed; everywhere when None. Few cells of wide maps are generated alone:
                at the papers' 256 channels a tenth of the cells takes a third of the time.

        Returns:
            (N, C', H, W); values outside of ``cells`` have no meaning.
        """
        if cells is None or not self.gathers or cells.float().mean() > _MAX_SHARE:
            return super().forward(features)
        return self.forward_at(features, cells)

    def forward_at(self, features: Tensor, cells: Tensor) -> Tensor:
        """Generated map at ``cells`` alone, 0 elsewhere."""
        *align, first, activation, last = cast(list[Any], list(self))
        inner = grow(cells)
        outer = grow(inner)
        rows = features.permute(0, 2, 3, 1)[outer]
        for conv in align:
            rows = nn.functional.linear(rows, conv.weight.flatten(1), conv.bias)
        rows = activation(conv_at(first, rows, inner, outer))
        rows = conv_at(last, rows, cells, inner)
        out = rows.new_zeros(*cells.shape, self.channels)
        out[cells] = rows
        return out.permute(0, 3, 1, 2)


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

    def _interpolated(self, bev: Tensor) -> Tensor:
        return nn.functional.interpolate(bev, self.target, mode="bilinear", align_corners=False)
