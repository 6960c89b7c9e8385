"""Modulated deformable convolution (DCNv2, Zhu et al., 2019) that is right, and fast on a CPU too."""

import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class DeformConv2d(ModulatedDeformConv2dPack):
    """mmcv's DCNv2 layer, same parameters.

    mmcv's CPU operator reads its input as if it were contiguous whatever its memory format, so a channels_last input
    gives silently wrong numbers; here the layout is put right first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), any memory format."""
        first, second, mask = self.conv_offset(x).chunk(3, dim=1)
        offset, mask = torch.cat((first, second), dim=1).contiguous(), mask.sigmoid().contiguous()
        return modulated_deform_conv2d(
            x.contiguous(),
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )
