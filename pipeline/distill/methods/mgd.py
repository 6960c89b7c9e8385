"""Masked Generative Distillation on whole maps (Yang et al., ECCV 2022)."""

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from ..generators import FeatureGenerator
from ..losses import block_mask
from ..settings import MGDSettings
from ..whole_map import WholeMapDistiller, mean_squared


@MODELS.register_module()
class MGDDistiller(WholeMapDistiller):
    """Distiller that hides random pixels of the student's map and generates the expert's whole map from the rest."""

    settings_type = MGDSettings

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generators = nn.ModuleDict({name: FeatureGenerator(n, n) for name, n in self.channels.items()})

    def map_loss(
        self,
        name: str,
        student: Tensor,
        expert: Tensor,
        data_samples: list[Det3DDataSample],
        own: Tensor | None = None,
    ) -> Tensor:
        """Generation error ``mean((G(S * mask) - T)^2)`` over all cells, hidden or not."""
        everywhere = torch.ones_like(student[:, 0], dtype=torch.bool)
        hidden = block_mask(everywhere, self.settings.mask_ratio, block=1)
        return mean_squared(self.generators[name](student * hidden[:, None]), expert, own)
