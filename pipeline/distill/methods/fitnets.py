"""L2 on whole maps: FitNets' hints (Romero et al., ICLR 2015), in the form that detectors use."""

from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from ..settings import FitNetsSettings
from ..whole_map import WholeMapDistiller, mean_squared


@MODELS.register_module()
class FitNetsDistiller(WholeMapDistiller):
    """Distiller by the mean squared error between the student's features after a 1x1 regressor and the expert's, standardised."""

    settings_type = FitNetsSettings
    always_align = True

    def map_loss(
        self,
        name: str,
        student: Tensor,
        expert: Tensor,
        data_samples: list[Det3DDataSample],
        own: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error ``mean((S - T)^2)``."""
        return mean_squared(student, expert, own)
