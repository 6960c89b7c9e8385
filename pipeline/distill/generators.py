"""Training-only modules: generators of expert features and the restoring of a smaller BEV map."""

from torch import Tensor, nn


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


class RestoreBEV(nn.Module):
    """Bring an apprentice's BEV map to the expert's size.

    One transposed convolution (4, stride 2, padding 1, no bias) - BN - ReLU per doubling, bilinear interpolation for what
    remains of a ratio that is no power of two, then conv3x3 (FD3D's release, there for a ratio of 2).

    Args:
        size: the apprentice's rows and columns.
        target: the expert's.
    """

    def __init__(self, channels: int, size: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.target = target
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

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, H, W)."""
        out = self.upsample(bev)
        if out.shape[-2:] != self.target:
            out = nn.functional.interpolate(out, self.target, mode="bilinear", align_corners=False)
        return self.conv(out)
