"""Modulated deformable convolution (DCNv2, Zhu et al., 2019) that is right, and fast on a CPU too."""

import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
from mmengine.registry import MODELS
from torch import Tensor

from .attention import infers_on_cpu, row_blocks, shapes_tensor
from .gathering import gather

# Output cells that are gathered at a time, so that their columns stay in a core's cache.
_BLOCK = 512


@MODELS.register_module()
class DeformConv2d(ModulatedDeformConv2dPack):
    """mmcv's DCNv2 layer, same parameters.

    mmcv's CPU operator reads its input as if it were contiguous whatever its memory format, so a channels_last input
    gives silently wrong numbers; here the layout is put right first. It is also slow: in inference on a CPU the layer
    gathers whole channel vectors instead. Under autocast the layer runs in float32, or in half on a GPU: mmcv has no
    kernel for bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), any memory format."""
        first, second, mask = self.conv_offset(x).chunk(3, dim=1)
        made = first.dtype
        unknown = made == torch.bfloat16 or (made == torch.float16 and not x.is_cuda)
        dtype = torch.float32 if unknown else made
        with torch.autocast(x.device.type, enabled=False):
            offset, mask = torch.cat((first, second), dim=1).to(dtype), mask.to(dtype).sigmoid()
            return self._convolved(x.to(dtype), offset, mask).to(made)

    def _convolved(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """The layer's output of input, offsets and mask in one precision."""
        if infers_on_cpu(x, self.weight) and self.groups == self.deform_groups == 1:
            return deform_conv_by_rows(
                x, offset, mask, self.weight, self.bias, self.stride, self.padding, self.dilation
            )
        return modulated_deform_conv2d(
            x.contiguous(),
            offset.contiguous(),
            mask.contiguous(),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )


def deform_conv_by_rows(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """DCNv2 with one group: every tap is a weighted sum of channel vectors, then one matrix product.

    Args:
        x: (N, C, H, W) float32, best channels_last.
        offset: (N, 2 * taps, Ho, Wo), y before x for each tap, cells.
        mask: (N, taps, Ho, Wo).
        weight: (D, C, kh, kw).
        bias: (D,).

    Returns:
        (N, D, Ho, Wo) in channels_last.
    """
    batch, channels, height, width = x.shape
    kernel_h, kernel_w = weight.shape[2:]
    taps, out_h, out_w = kernel_h * kernel_w, *offset.shape[2:]
    # regular positions of the taps, (Ho, Wo, taps)
    row = torch.arange(out_h, device=x.device) * stride[0] - padding[0]
    col = torch.arange(out_w, device=x.device) * stride[1] - padding[1]
    tap_y = (torch.arange(kernel_h, device=x.device) * dilation[0]).repeat_interleave(kernel_w)
    tap_x = (torch.arange(kernel_w, device=x.device) * dilation[1]).repeat(kernel_h)
    base_y = (row[:, None, None] + tap_y).expand(out_h, out_w, taps).reshape(-1, taps)
    base_x = (col[None, :, None] + tap_x).expand(out_h, out_w, taps).reshape(-1, taps)
    matrix = weight.permute(2, 3, 1, 0).reshape(taps * channels, -1)
    out = x.new_empty(batch, out_h * out_w, matrix.shape[1])
    sizes = shapes_tensor(((height, width),), x.device)
    for n in range(batch):
        table = x[n].permute(1, 2, 0).reshape(height * width, 1, channels)
        moved = offset[n].flatten(1).T.view(-1, taps, 2)
        points = torch.stack([base_x + moved[..., 1], base_y + moved[..., 0]], -1)
        shares = mask[n].flatten(1).T.contiguous()
        for rows in row_blocks(out_h * out_w, _BLOCK):
            size = (shares[rows].numel(), 1, 1, 1)
            columns = gather(table, sizes, points[rows].view(*size, 2), shares[rows].view(size), in_cells=True)
            torch.mm(columns.view(-1, taps * channels), matrix, out=out[n, rows])
    if bias is not None:
        out += bias
    return out.view(batch, out_h, out_w, -1).permute(0, 3, 1, 2)
