"""Multiply-adds of a model that runs, by part and kind: forward hooks, and one rule per type of layer."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmcv.cnn import Scale
from mmcv.ops import ModulatedDeformConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pipeline.errors import FD3DError
from pipeline.models.attention import DeformableSampler
from pipeline.models.deform_conv import DeformConv2d

# Part: prefixes of its modules' paths; the first part that fits takes a module.
PARTS: dict[str, tuple[str, ...]] = {
    "backbone": ("img_backbone.", "backbone."),
    "neck": ("img_neck.", "neck."),
    "encoder": ("pts_bbox_head.transformer.encoder.",),
    "decoder": ("pts_bbox_head.transformer.decoder.",),
    "branches": ("pts_bbox_head.cls_branches.", "pts_bbox_head.reg_branches."),
    "other": ("",),
}

# The official heads run every regression branch twice per layer, to refine the references and for the output. Ours keeps
# the first result, so the second run is in the paper's convention only.
REPEATED = "repeated regression branches"

Counts = Counter[str]


def part_of(path: str) -> str:
    return next(part for part, prefixes in PARTS.items() if path.startswith(prefixes))


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, Counts]]:
    """Count the multiply-adds that ``model`` runs inside the context, by part and kind.

    Raises:
        FD3DError: a layer with parameters has no rule, so the count would be too small.
    """
    macs: dict[str, Counts] = {part: Counter() for part in PARTS}

    def hook(path: str, rule: Callable[..., dict[str, int]]) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            inputs = inspect.signature(module.forward).bind(*args, **kwargs).args
            counts = rule(module, inputs, output)
            macs[part_of(path)].update(counts)
            if ".reg_branches." in path:
                macs[part_of(path)][REPEATED] += sum(counts.values())

        return add

    handles = []
    try:
        for path, module in model.named_modules():
            rule = next((rule for types, rule in _RULES if isinstance(module, types)), None)
            if rule is not None:
                handles.append(module.register_forward_hook(hook(path, rule), with_kwargs=True))
            elif next(module.parameters(), None) is not None and not [*module.children()]:
                raise FD3DError(
                    f"{path} is a {type(module).__name__}, which no counting rule covers; add one to _RULES"
                )
        yield macs
    finally:
        for handle in handles:
            handle.remove()


# Rules: (module, inputs, output) to multiply-adds by kind.


def _conv(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    return {"convolution": _products(conv, output)}


def _transposed(conv: Any, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    bias = 0 if conv.bias is None else output.numel()
    return {"convolution": inputs[0].numel() // inputs[0].shape[1] * conv.weight.numel() + bias}


def _products(conv: Any, output: Tensor) -> int:
    """Multiply-adds of a convolution: a product per output position (N, C, ...) and weight; a bias adds 1 per element."""
    bias = 0 if conv.bias is None else output.numel()
    return output.numel() // output.shape[1] * conv.weight.numel() + bias


# A bilinear sample takes 4 multiply-adds, and 1 to weigh it.
_PER_SAMPLE = 5


def _deform_conv(conv: Any, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    taps = inputs[0].shape[1] * conv.weight.shape[2] * conv.weight.shape[3]
    sampled = output.numel() // output.shape[1] * taps
    return {"deformable convolution": _products(conv, output), "sampling": _PER_SAMPLE * sampled}


def _sampler(sampler: DeformableSampler, inputs: tuple[Any, ...], output: Tensor) -> dict[str, int]:
    value, _, _, weights, *_ = inputs
    return {"sampling": _PER_SAMPLE * weights.numel() * value.shape[-1]}


def _attention(attention: nn.MultiheadAttention, inputs: tuple[Tensor, ...], output: Any) -> dict[str, int]:
    query, key, value = inputs[:3]
    keys = key.shape[1 if attention.batch_first else 0]
    projections = (2 * query.numel() + key.numel() + value.numel()) * attention.embed_dim
    return {"attention": projections + 2 * query.numel() * keys}


def _linear(linear: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    return {"linear": inputs[0].numel() * linear.out_features}


def _norm(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    return {"norm": 2 * output.numel()}


def _relu(relu: nn.Module, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    return {"activation": output.numel()}


def _pool(pool: nn.Module, inputs: tuple[Tensor], output: Tensor) -> dict[str, int]:
    return {"pooling": inputs[0].numel()}


def _free(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> dict[str, int]:
    return {}


# The first rule that fits counts a module.
_RULES: list[tuple[type | tuple[type, ...], Callable[..., dict[str, int]]]] = [
    ((DeformConv2d, ModulatedDeformConv2d), _deform_conv),
    (DeformableSampler, _sampler),
    (nn.MultiheadAttention, _attention),
    (_ConvTransposeNd, _transposed),
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    ((nn.LayerNorm, nn.GroupNorm, _BatchNorm), _norm),
    (nn.ReLU, _relu),
    (nn.MaxPool2d, _pool),
    ((nn.Embedding, Scale), _free),
]
