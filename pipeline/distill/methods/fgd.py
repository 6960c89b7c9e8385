"""Focal and Global Distillation (Yang et al., CVPR 2022): objects apart from background, by the expert's attention."""

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from ..foreground import area_weights, object_cells
from ..settings import FGDSettings
from ..whole_map import WholeMapDistiller, without


def attention_masks(feature: Tensor, temperature: float, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Spatial mask ``H W softmax(mean_c |F| / t)`` (N, 1, H, W) and channel mask ``C softmax(mean_x |F| / t)`` (N, C, 1, 1).

    Args:
        feature: (N, C, H, W).
        own: bool (N, 1, H, W), the cells that means and softmax are of, H W their number; None for all.
    """
    batch, channels, height, width = feature.shape
    strength = feature.abs()
    if own is None:
        cells: Tensor | int = height * width
        where, means = strength.mean(1), strength.mean((2, 3))
    else:
        cells = own.sum((1, 2, 3))[:, None]
        where = without(strength.mean(1, keepdim=True), own)[:, 0]
        means = (strength * own).sum((2, 3)) / cells
    spatial = (where.flatten(1) / temperature).softmax(-1) * cells
    channel = (means / temperature).softmax(-1) * channels
    return spatial.view(batch, 1, height, width), channel.view(batch, channels, 1, 1)


def focal_terms(
    student: Tensor,
    expert: Tensor,
    foreground: Tensor,
    background: Tensor,
    temperature: float,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Foreground, background and attention loss, each a sum over cells and channels and a mean over images.

    Squared errors are weighted by the expert's masks and by ``foreground`` or ``background``; the attention loss is the
    L1 distance of both masks.

    Args:
        student, expert: (N, C, H, W).
        foreground, background: (N, H, W) weights of :func:`~pipeline.distill.foreground.area_weights`.
        own: as of :func:`attention_masks`.
    """
    spatial_s, channel_s = attention_masks(student, temperature, own)
    spatial_t, channel_t = attention_masks(expert, temperature, own)
    error = ((student - expert) ** 2 * spatial_t * channel_t).sum(1)
    images = len(student)
    attention = (spatial_s - spatial_t).abs().sum() + (channel_s - channel_t).abs().sum()
    return (error * foreground).sum() / images, (error * background).sum() / images, attention / images


class GlobalContext(nn.Module):
    """A global context block (GCNet, Cao et al., 2019): features plus a transform of an attended sum of all cells.

    The last convolution starts at zero, so the block starts as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.where = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.where.weight, mode="fan_in")
        hidden, last = channels // 2, nn.Linear(channels // 2, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.add = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True), last)

    def forward(self, feature: Tensor, own: Tensor | None = None) -> Tensor:
        """Features with context (N, C, H, W), from features of the same shape; of the cells ``own`` (N, 1, H, W) where given."""
        share = without(self.where(feature), own).flatten(1).softmax(-1)
        context = torch.einsum("nchw,nhw->nc", feature, share.unflatten(-1, feature.shape[-2:]))
        return feature + self.add(context)[..., None, None]


@MODELS.register_module()
class FGDDistiller(WholeMapDistiller):
    """Distiller by focal terms and the global relation of every map; foreground comes from annotations."""

    settings_type = FGDSettings

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.context_s = nn.ModuleDict({name: GlobalContext(n) for name, n in self.channels.items()})
        self.context_t = nn.ModuleDict({name: GlobalContext(n) for name, n in self.channels.items()})

    def map_loss(
        self,
        name: str,
        student: Tensor,
        expert: Tensor,
        data_samples: list[Det3DDataSample],
        own: Tensor | None = None,
    ) -> Tensor:
        """Sum of the four weighted terms."""
        s = self.settings
        level = None if name == "bev" else int(name.removeprefix("pv_"))
        pc_range = self.manifest["coordinates"]["pc_range"]
        cells = object_cells(data_samples, self.schema, pc_range, level, student.device)
        views = [None] * len(cells) if own is None else own.unflatten(0, (len(cells), -1))[:, :, 0]
        weights = zip(*(area_weights(masks, some) for masks, some in zip(cells, views, strict=True)), strict=True)
        foreground, background = (torch.stack(part).view(-1, *student.shape[-2:]) for part in weights)
        inside, outside, attention = focal_terms(student, expert, foreground, background, s.temperature, own)
        apart = (self.context_s[name](student, own) - self.context_t[name](expert, own)) ** 2
        relation = (apart if own is None else apart * own).sum() / len(student)
        return s.w_foreground * inside + s.w_background * outside + s.w_attention * attention + s.w_relation * relation
