"""Folding batch normalisation into the convolutions before it, for frozen detectors."""

from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .deform_conv import DeformConv2d

Module = TypeVar("Module", bound=nn.Module)


def fold_batchnorm(model: Module) -> Module:
    """Fold every BatchNorm that directly follows a convolution among its parent's children, in place.

    The outputs stay, up to rounding; the state dict does not, so fold after loading and never before saving.

    Args:
        model: in evaluation mode. Children must be registered in the order they run, as those of mmdet's ResNet and of
            ``nn.Sequential`` are.

    Raises:
        ValueError: the model is in training mode, where batch statistics are not constants.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be folded; call eval() first")
    for parent in model.modules():
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and isinstance(before, (nn.Conv2d, DeformConv2d)):
                _fold(before, child)
                setattr(parent, name, nn.Identity())
            before = child
    return model


@torch.no_grad()
def _fold(conv: nn.Conv2d | DeformConv2d, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.requires_grad_(False)
