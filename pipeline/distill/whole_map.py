"""Distillers that compare whole maps: every pyramid level and the BEV map, all of their cells."""

from typing import Any, ClassVar

import torch
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from pipeline.errors import FD3DError
from pipeline.models.views import own_cells, view_sizes

from .base import Distiller, StudentOutputs
from .stored import CachedFrame, dense_bev, dense_pv

_NO_SHARE = -1e9


def mean_squared(student: Tensor, expert: Tensor, own: Tensor | None) -> Tensor:
    """Mean squared error of maps (N, C, H, W) over the cells ``own`` (N, 1, H, W), over all where None."""
    error = (student - expert) ** 2
    return error.mean() if own is None else (error * own).sum() / (student.shape[1] * own.sum())


def without(feature: Tensor, own: Tensor | None) -> Tensor:
    """Features (N, C, H, W) before a softmax over positions, so low outside ``own`` that these cells have no share."""
    return feature if own is None else feature.masked_fill(~own, _NO_SHARE)


class WholeMapDistiller(Distiller):
    """Distiller that adds loss_pv, summed over pyramid levels, and loss_bev, as far as both sides have the maps.

    Subclasses give ``map_loss``.

    The student's features are brought to the expert's channels by a 1x1 convolution where the numbers differ, and the
    student's BEV map is brought to the expert's size before. Settings have ``w_pv`` and ``w_bev``.

    Args:
        bev_size: rows and columns of the student's BEV map; None for a student without one.
        bev_channels, pv_channels: channels of the student's BEV map and pyramid.
        kwargs: arguments of :class:`~pipeline.distill.base.Distiller`.

    Attributes:
        channels: channels of the expert's distilled maps, by map: ``pv_LEVEL`` and ``bev``.

    Raises:
        FD3DError: the store includes focal cells only.
    """

    standardise: ClassVar[bool] = True
    """Whether the expert's channels are brought to mean 0 and deviation 1, so that weights fit any expert."""
    always_align: ClassVar[bool] = False
    """Whether the 1x1 convolution is there with equal channels too."""

    def __init__(self, bev_size: tuple[int, int] | None, bev_channels: int, pv_channels: int, **kwargs: Any) -> None:
        super().__init__(bev_size=bev_size, bev_channels=bev_channels, pv_channels=pv_channels, **kwargs)
        if self.schema.layout != "dense":
            raise FD3DError(
                f"{self.settings.section} compares whole maps, but store {self.store} includes focal cells only; "
                "dump one with dump.layout: dense"
            )
        self.channels = {f"pv_{level}": self.schema.pv[level][2] for level in self.levels}
        have = dict.fromkeys(self.channels, pv_channels)
        if self.schema.bev and self.bev_size is not None:
            self.channels["bev"], have["bev"] = self.schema.bev[2], bev_channels
        self.align = nn.ModuleDict(
            {
                name: nn.Conv2d(have[name], want, 1) if self.always_align or have[name] != want else nn.Identity()
                for name, want in self.channels.items()
            }
        )

    def distillation_losses(
        self, outputs: StudentOutputs, frames: list[CachedFrame], data_samples: list[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """loss_pv and loss_bev, as far as both sides allow."""
        losses: dict[str, Tensor] = {}
        device = (outputs.pv[0] if outputs.bev is None else outputs.bev).device
        terms = []
        for level in self.levels:
            expert = torch.cat([dense_pv(frame, self.schema, level, device)[0] for frame in frames])
            self.check_grid(level, outputs.pv[level], expert)
            terms.append(self._compare(f"pv_{level}", outputs.pv[level], expert, data_samples))
        if terms:
            losses["loss_pv"] = self.settings.w_pv * torch.stack(terms).sum()
        if outputs.bev is not None:
            expert = torch.stack([dense_bev(frame, self.schema, device)[0] for frame in frames])
            restored = self.restore(outputs.bev)
            losses["loss_bev"] = self.settings.w_bev * self._compare("bev", restored, expert, data_samples)
        return losses

    def _compare(self, name: str, student: Tensor, expert: Tensor, data_samples: list[Det3DDataSample]) -> Tensor:
        if self.standardise:
            expert = self.scale(name.replace("_", "/")).standardise(expert)
        aligned = self.align[name](student).float()
        own = None if name == "bev" else self._own(int(name[3:]), data_samples, expert.device)
        # only data with images of several sizes need methods that know of padding
        options = {} if own is None else {"own": own}
        return self.map_loss(name, aligned, expert, data_samples, **options)

    def _own(self, level: int, data_samples: list[Det3DDataSample], device: torch.device) -> Tensor | None:
        """Cells (B*V, 1, Hl, Wl) of the cameras' own images, where images differ in size: what is beside is padding."""
        metas = [sample.frames[-1] for sample in data_samples]
        if (own := view_sizes(metas, device)) is None:
            return None
        return own_cells(own, self.schema.pv[level][:2], metas[0]["pad_hw"]).flatten(0, 1)[:, None]

    def map_loss(
        self,
        name: str,
        student: Tensor,
        expert: Tensor,
        data_samples: list[Det3DDataSample],
        own: Tensor | None = None,
    ) -> Tensor:
        """Loss of one map, a scalar.

        Args:
            name: ``pv_LEVEL`` or ``bev``.
            student, expert: (N, C, H, W), N frames times cameras for a level, frames for the BEV map.
            data_samples: samples of the frames.
            own: bool (N, 1, H, W), cells of a level that count, where images differ in size; None for all cells.
        """
        raise NotImplementedError
