"""GPU memory of a training, from shapes alone.

The detector runs a training's forward pass on torch's meta device, and autograd tells which tensors it keeps for the backward pass;
two that share their memory count once. The sum is what a training holds where the forward pass ends. Not in the sum: the detection
losses, gradients of activations during the backward pass, work space of the convolutions, what the allocator reserves and cannot
use, and the CUDA context. A measured peak is higher (docs/planning.md).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from torch import Tensor, nn

from pipeline.cost.cameras import Cameras
from pipeline.cost.complexity import on_meta
from pipeline.cost.early import check_grid
from pipeline.distill.base import Taps
from pipeline.distill.generators import FeatureGenerator, RestoreBEV
from pipeline.distill.losses import masked_generation_loss
from store_schema import StoreSchema


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training holds on one GPU at the end of the forward pass, in float32."""

    weights: int
    """Parameters and buffers."""
    optimiser: int
    """Gradients of the parameters that train, and AdamW's two moments of each."""
    images: int
    """Normalised and padded images of the whole queue."""
    history: int
    """BEV map of the frame before; the history's other tensors are freed by then."""
    activations: int
    """Tensors that autograd keeps for the backward pass."""
    distillation: int = 0
    """At most: FD3D's generators with their optimiser, targets and activations, as if whole maps were generated, and the head's
    pass on a mixed pyramid."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


@contextmanager
def kept_for_backward(held: Iterable[Tensor]) -> Iterator[list[torch.UntypedStorage]]:
    """Storages that autograd keeps inside the context for a backward pass, each once, without those of ``held``."""
    known = {tensor.untyped_storage()._cdata for tensor in held}
    found: list[torch.UntypedStorage] = []  # which keeps their addresses from being given away again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            found.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def training_memory(
    cfg: Config, cameras: Cameras, batch_size: int, schema: StoreSchema | None = None, mixed: bool = False
) -> TrainingMemory:
    """Memory of a detector's training.

    Args:
        cfg: detector config.
        cameras: calibrated cameras, which decide image sizes and the cells that cameras see.
        batch_size: frames that one process takes at once.
        schema: store of a distilled training.
        mixed: whether the distilled student's head learns on mixed pyramids too.

    Raises:
        FD3DError: the config is no detector of this project, or its pyramid does not lie on the store's.
    """
    with on_meta(cfg, cameras, batch_size) as (model, batch, _):
        head = cfg.model.pts_bbox_head
        bev = (head.bev_h, head.bev_w) if "bev_h" in head else None
        paths = {"pv": "img_neck"} | ({"bev": "pts_bbox_head.transformer.encoder"} if bev else {})
        taps = Taps(model, paths)
        images = batch["inputs"]["img"]
        with kept_for_backward([images, *model.parameters(), *model.buffers()]) as kept:
            model(**batch, mode="tensor")
        activations = sum(storage.nbytes() for storage in kept)
        levels = list(taps.read("pv"))
        mapped = taps.read("bev").transpose(1, 2).unflatten(-1, bev) if bev else None
        history = 0 if mapped is None or cfg.queue_length == 1 else _bytes([mapped])
        distillation = 0 if schema is None else _distillation(levels, mapped, schema, batch_size)
        if schema is not None and mixed:
            distillation += _mixed(model, levels, batch["data_samples"])
    return TrainingMemory(
        weights=_bytes([*model.parameters(), *model.buffers()]),
        optimiser=_optimiser(model),
        images=_bytes([images]),
        history=history,
        activations=activations,
        distillation=distillation,
    )


def _distillation(levels: Sequence[Tensor], bev: Tensor | None, schema: StoreSchema, samples: int) -> int:
    """Bytes that FD3D adds: the pyramid's levels (B*V, C, H, W) and the BEV map (B, C, h, w) are the student's."""
    maps = [(student, (len(student), level[2], *level[:2])) for student, level in zip(levels, schema.pv, strict=False)]
    for number, (student, shape) in enumerate(maps):
        check_grid(number, (student.shape[-2], student.shape[-1]), (shape[2], shape[3]))
    modules = nn.ModuleList()
    with torch.device("meta"):
        if bev is not None and schema.bev is not None:
            restore = RestoreBEV(bev.shape[1], (bev.shape[2], bev.shape[3]), schema.bev[:2])
            modules.append(restore)
            maps.append((bev, (samples, schema.bev[2], *schema.bev[:2])))
        generators = [FeatureGenerator(student.shape[1], shape[1]) for student, shape in maps]
        modules.extend(generators)
        targets = [torch.empty(shape) for _, shape in maps]
        trust = [torch.empty(shape[0], *shape[2:]) for _, shape in maps]
    with kept_for_backward([*modules.parameters(), *modules.buffers(), *targets, *levels]) as kept:
        losses = []
        for (student, shape), generator, target, weight in zip(maps, generators, targets, trust, strict=True):
            seen = student if student.shape[-2:] == shape[2:] else restore(student)
            generated = generator(seen * weight[:, None])
            rows, wanted = (t.movedim(1, -1).flatten(0, 2) for t in (generated, target))
            losses.append(masked_generation_loss(rows, wanted, weight.flatten()))
            # in the expert's scale, where queries read
            losses.append((generated * generated.new_empty(shape[1], 1, 1)).square())
        total = sum(storage.nbytes() for storage in kept)
    # the BEV targets are there twice, standardised and as stored
    twice = _bytes(targets[-1:]) if bev is not None and schema.bev is not None else 0
    return total + _bytes([*modules.parameters(), *modules.buffers(), *targets]) + twice + _optimiser(modules)


def _mixed(model: Any, levels: Sequence[Tensor], samples: list[Det3DDataSample]) -> int:
    """Bytes that the head's pass on a mixed pyramid keeps, the pyramid included."""
    pyramid = [level.detach().unflatten(0, (len(samples), -1)) for level in levels]
    with kept_for_backward([*model.parameters(), *model.buffers()]) as kept:
        model.detect_on(pyramid, samples)
    return sum(storage.nbytes() for storage in kept)


def _optimiser(model: nn.Module) -> int:
    return 3 * _bytes([parameter for parameter in model.parameters() if parameter.requires_grad])


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
