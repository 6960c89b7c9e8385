"""Channel-wise distillation (Shu et al., ICCV 2021): the positions where a channel is active."""

from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from ..settings import CWDSettings
from ..whole_map import WholeMapDistiller, without


def channel_divergence(student: Tensor, expert: Tensor, tau: float) -> Tensor:
    """Divergence ``tau^2 / (N C) * sum_{n, c} KL(softmax_x(T / tau) || softmax_x(S / tau))``, softmax over positions x.

    Args:
        student, expert: (N, C, H, W).
    """
    log_s, log_t = ((feature.flatten(2) / tau).log_softmax(-1) for feature in (student, expert))
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()


@MODELS.register_module()
class CWDDistiller(WholeMapDistiller):
    """Distiller by the divergence of every channel's distribution over positions."""

    settings_type = CWDSettings

    def map_loss(
        self,
        name: str,
        student: Tensor,
        expert: Tensor,
        data_samples: list[Det3DDataSample],
        own: Tensor | None = None,
    ) -> Tensor:
        """:func:`channel_divergence`."""
        return channel_divergence(without(student, own), without(expert, own), self.settings.tau)
