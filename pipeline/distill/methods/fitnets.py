"""L2 on whole maps: FitNets' hints (Romero et al., ICLR 2015), in the form that detectors use."""

from dataclasses import dataclass

from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from ..settings import MethodSettings
from ..whole_map import WholeMapDistiller


@dataclass(frozen=True)
class FitNetsSettings(MethodSettings):
    """Weights; the paper trains hints alone first, so it has none."""

    section = "methods.fitnets"
    w_pv: float = 1.0
    """Of the pyramid's error, summed over levels."""
    w_bev: float = 1.0
    """Of the BEV map's error."""


@MODELS.register_module()
class FitNetsDistiller(WholeMapDistiller):
    """Mean squared error between the student's features after a 1x1 regressor and the expert's, standardised."""

    settings_type = FitNetsSettings
    always_align = True

    def map_loss(self, name: str, student: Tensor, expert: Tensor, data_samples: list[Det3DDataSample]) -> Tensor:
        """``mean((S - T)^2)``."""
        return ((student - expert) ** 2).mean()
