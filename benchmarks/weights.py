"""Weights that are a function of their names and shapes, so that two programs fill one model alike."""

import math
import re
import zlib

import torch
from torch import nn


def fill(model: nn.Module, stem_gain: float) -> None:
    """Fill a model with seeded noise that depends on each entry's key and shape only.

    Args:
        stem_gain: factor on the noise of the backbone's first convolution, small for images in 0..255.
    """
    state = model.state_dict()
    for key, old in state.items():
        leaf, shape = key.rsplit(".", 1)[-1], tuple(old.shape)
        if not old.is_floating_point() or leaf == "code_weights":
            continue
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if leaf == "running_mean":
            value = noise * 0.1
        elif leaf == "running_var":
            value = 1 + 0.1 * noise.abs()
        elif len(shape) <= 1:
            value = 1 + 0.1 * noise if leaf == "weight" else noise * 0.02
        elif key.endswith(("_embeds", "embed.weight", "embedding.weight")):
            value = noise
        else:
            gain = stem_gain if key.endswith("img_backbone.conv1.weight") else 1.0
            value = noise * (gain / math.sqrt(math.prod(shape[1:])))
            if re.search(r"reg_branches\.\d+\.4\.weight$", key):
                value[[0, 1, 4]] *= 0.01
        state[key] = value.to(old.dtype)
    model.load_state_dict(state)
